"""Layers of windows along the slowest dimension, and the chunks that they touch: many at a time, integers only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, reduce

import numpy as np

from monai_chunked.plan.chunk_grid import ChunkGrid

__all__ = ["NEVER", "HeadChunks", "Layers"]


NEVER = np.iinfo(np.int64).max
"""The number of a window that there is not."""


class HeadChunks:
    """The chunks of one head over one image. Dimensions are in scan order, the slowest first.

    Args:
        grid: of the chunks.
        voxel_bytes: what one voxel of an open chunk takes.
        seen: for each window in scan order, whether the network may get it.
    """

    def __init__(self, grid: ChunkGrid, voxel_bytes: int, seen: np.ndarray) -> None:
        order = grid.windows.order
        self.voxel_bytes = voxel_bytes
        self.shape = tuple(grid.windows.shape[d] for d in order)
        self.around = [grid.around[d] for d in order]
        self.touched = [[grid.touched_along(d, w) for w in range(grid.windows.shape[d])] for d in order]
        self.sizes = [np.diff(grid.cuts[d]) for d in order]
        self.shared = [_shared(grid, d) for d in order]
        self.row = len(seen) // self.shape[0]  # windows in a layer
        self._seen = None if seen.all() else seen

    @cached_property
    def opens(self) -> np.ndarray | None:
        """For each chunk its first window that is not skipped; ``None``: none is skipped, so that the grid says it."""
        if self._seen is None:
            return None
        numbers = np.where(self._seen, np.arange(len(self._seen)), NEVER).reshape(self.shape)
        return _reduced(numbers, self.around, np.minimum, NEVER)

    def layers(self, start: int, stop: int) -> Layers:
        """The layers of windows in which those from one to before another are."""
        return Layers(self, range(start // self.row, (stop - 1) // self.row + 1))


class Layers:
    """Some layers of windows along the slowest dimension, and the chunks that they touch.

    Args:
        head: the chunks of the head.
        windows: indices of the layers along the slowest dimension.
    """

    def __init__(self, head: HeadChunks, windows: range) -> None:
        self.head = head
        self.windows = windows
        self.chunks = range(head.touched[0][windows[0]].start, head.touched[0][windows[-1]].stop)
        slowest = head.around[0][self.chunks.start : self.chunks.stop]
        self._around = [slowest, *head.around[1:]]

    def wider(self) -> Layers:
        """These layers, and those before them that touch the same chunks."""
        return Layers(self.head, range(self._around[0][0].start, self.windows.stop))

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Of a value for each window of the image, a view of those in these layers."""
        row = self.head.row
        return values[self.windows.start * row : self.windows.stop * row].reshape(-1, *self.head.shape[1:])

    def numbers(self) -> np.ndarray:
        """The numbers of the windows."""
        row = self.head.row
        return np.arange(self.windows.start * row, self.windows.stop * row).reshape(-1, *self.head.shape[1:])

    def opens(self) -> np.ndarray:
        """For each chunk the number of the first window that is not skipped."""
        opens = self.head.opens
        return self._corner(0) if opens is None else opens[self.chunks.start : self.chunks.stop]

    def last(self) -> np.ndarray:
        """For each chunk the number of its last window."""
        return self._corner(-1)

    def sizes(self) -> np.ndarray:
        """For each chunk its bytes."""
        sides = [self.head.sizes[0][self.chunks.start : self.chunks.stop], *self.head.sizes[1:]]
        return reduce(np.multiply.outer, sides) * self.head.voxel_bytes

    def of_chunks(self, numbers: np.ndarray, what: np.ufunc) -> np.ndarray:
        """For each chunk, what comes of the numbers of the windows here that touch it."""
        inside = [range(max(a.start, self.windows.start), min(a.stop, self.windows.stop)) for a in self._around[0]]
        moved = [range(a.start - self.windows.start, a.stop - self.windows.start) for a in inside]
        return _reduced(numbers, [moved, *self._around[1:]], what, NEVER)

    def of_windows(self, chosen: np.ndarray, chunks: range) -> np.ndarray:
        """For each window, whether it touches one of the chosen chunks; these are given for some layers of chunks."""
        touched = [self.head.touched[0][w] for w in self.windows]
        inside = [range(max(a.start, chunks.start), min(a.stop, chunks.stop)) for a in touched]
        moved = [range(a.start - chunks.start, max(a.stop, a.start) - chunks.start) for a in inside]
        return _reduced(chosen, [moved, *self.head.touched[1:]], np.logical_or, False)

    def products(self, chosen: np.ndarray) -> np.ndarray:
        """For each chunk, how many voxels the chosen windows add to it in all."""
        shared = self.head.shared
        here = shared[0][self.windows.start : self.windows.stop, self.chunks.start : self.chunks.stop]
        voxels = chosen.astype(np.float64)  # exact, and PyTorch's manner of products of integers is slow
        for side in (here, *shared[1:]):
            voxels = np.tensordot(voxels, side, axes=(0, 0))
        return voxels.round().astype(np.int64)

    def _corner(self, which: int) -> np.ndarray:
        number = np.zeros((), np.int64)
        for around, size in zip(self._around, self.head.shape):
            number = np.add.outer(number * size, np.array([windows[which] for windows in around], np.int64))
        return number


def _shared(grid: ChunkGrid, dim: int) -> np.ndarray:
    """Along one dimension, how many voxels a window and a chunk have in common: ``(windows, chunks)``."""
    kept, cuts = np.array(grid.kept[dim]), np.array(grid.cuts[dim])
    low = np.maximum.outer(kept[:, 0], cuts[:-1])
    return np.maximum(np.minimum.outer(kept[:, 1], cuts[1:]) - low, 0).astype(np.float64)


def _reduced(values: np.ndarray, around: Sequence[Sequence[range]], what: np.ufunc, nothing: int) -> np.ndarray:
    """What comes of the values in each box; its sides are a range in each dimension."""
    for ranges in around:
        parts = [what.reduce(values[side.start : side.stop], axis=0, initial=nothing) for side in ranges]
        values = np.stack(parts, axis=-1)
    return values
