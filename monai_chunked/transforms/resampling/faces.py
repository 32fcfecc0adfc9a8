"""How much of finished chunks is kept, until the chunks behind them have seen it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.transforms.resampling.axes import ChunkResampling

__all__ = ["finishing_order", "largest_box", "most_kept"]


def finishing_order(grid: ChunkGrid) -> Iterable[tuple[int, ...]]:
    """Positions of the chunks of an image, in the order in which they are finished."""
    for window in grid.windows.positions():
        yield from grid.finished_by(window)


def most_kept(
    resampled: ChunkResampling, cuts: Sequence[Sequence[int]], order: Iterable[tuple[int, ...]]
) -> tuple[int, list[tuple[int, ...]]]:
    """The most voxels of faces that are kept at a time, and in which order boxes are made.

    Args:
        resampled: how chunks make a grid.
        cuts: of the chunks, for each dimension.
        order: in which chunks are finished.
    """
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
        for dim, other in resampled.before(position):
            users[other, dim] -= 1
            if not users[other, dim]:
                held -= _face(resampled, cuts, other, dim)
    return most, made


def largest_box(resampled: ChunkResampling) -> int:
    """Voxels of the largest box that a chunk makes."""
    return prod(max(part.made.stop - part.made.start for part in parts) for parts in resampled.parts)


def _face(resampled: ChunkResampling, cuts: Sequence[Sequence[int]], position: tuple[int, ...], dim: int) -> int:
    sizes = [each[k + 1] - each[k] for each, k in zip(cuts, position)]
    sizes[dim] = resampled.kept(position)[dim]
    return prod(sizes)
