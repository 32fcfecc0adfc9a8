"""How much of finished chunks is kept, until the chunks behind them have seen it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.resampling.axes import ChunkResampling

__all__ = ["largest_box", "most_kept"]


def most_kept(grid: ChunkGrid, inverse: Sequence[ChunkResampling]) -> int:
    """The most voxels of faces that are kept at a time, in an image.

    Args:
        grid: the chunks of the network's grid.
        inverse: how they make the grids on the way, one after the other.
    """
    order: Iterable[tuple[int, ...]] = (
        position for window in grid.windows.positions() for position in grid.finished_by(window)
    )
    kept, cuts = 0, grid.cuts
    for resampled in inverse:
        most, order = _most_kept(resampled, cuts, order)
        kept, cuts = kept + most, resampled.cuts
    return kept


def _most_kept(
    resampled: ChunkResampling, cuts: Sequence[Sequence[int]], order: Iterable[tuple[int, ...]]
) -> tuple[int, list[tuple[int, ...]]]:
    """The most voxels of faces that are kept at a time on the way to one grid, and in which order boxes are made."""
    held = most = 0
    users: dict[tuple[tuple[int, ...], int], int] = {}
    made = []
    for position in order:
        for dim in range(len(cuts)):
            if count := resampled.users(position, dim):
                users[position, dim] = count
                held += _face(resampled, cuts, position, dim)
        most = max(most, held)
        if resampled.makes(position):
            made.append(resampled.place(position))
        for dim, earlier in resampled.before(position):
            users[earlier, dim] -= 1
            if not users[earlier, dim]:
                held -= _face(resampled, cuts, earlier, dim)
    return most, made


def largest_box(resampled: ChunkResampling) -> int:
    """Voxels of the largest box that a chunk makes."""
    return prod(max(part.made.stop - part.made.start for part in parts) for parts in resampled.parts)


def _face(resampled: ChunkResampling, cuts: Sequence[Sequence[int]], position: tuple[int, ...], dim: int) -> int:
    sizes = [along[k + 1] - along[k] for along, k in zip(cuts, position)]
    sizes[dim] = resampled.kept(position)[dim]
    return prod(sizes)
