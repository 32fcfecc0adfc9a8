"""
Reading an array that lies in a file or behind a network once, although windows overlap.

Windows advance along one dimension last. The rows of the array (its full cross-sections along that dimension) that the
current windows need are kept, new ones are read as windows advance, and those that no window needs any more are
overwritten. Reads end where the storage chunks of the array do, so that none of these is read and decompressed twice.
"""

from __future__ import annotations

import itertools
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from monai_chunked.inputs.lazy.damage import read_stored
from monai_chunked.inputs.lazy.lazy_array import Array
from monai_chunked.machine.scratch import scratch_map
from monai_chunked.plan.boxes import Box, box_text, sizes, voxels
from monai_chunked.plan.window_grid import WindowGrid, inside

__all__ = ["KeptRows", "RowsPlan", "plan_rows", "read_array", "reads"]


IN_MEMORY = 2**30
"""The most bytes of rows that are kept in memory; more are kept in a scratch file."""


READ_BYTES = 2**24
"""The most bytes that are asked for at once, unless one storage chunk has more."""


@dataclass(frozen=True)
class RowsPlan:
    """Which rows are kept. Integers only.

    Attributes:
        shape: of the array, ``(B, C, *spatial)``.
        dtype: of the array.
        dim: of the array, along which windows advance last.
        edges: for each dimension of the array, where storage chunks end, ascending from 0; the last one may end beyond
            the array.
        rows: the most rows that are kept at one time.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    dim: int
    edges: tuple[Sequence[int], ...]
    rows: int

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """``(C, *spatial)`` of the memory for rows, with ``rows`` along ``dim``."""
        return tuple(self.rows if d == self.dim else size for d, size in enumerate(self.shape) if d > 0)

    @property
    def nbytes(self) -> int:
        return prod(self.kept_shape) * self.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        """Whether rows are kept in memory; otherwise they are in a scratch file."""
        return self.nbytes <= IN_MEMORY


def plan_rows(
    shape: Sequence[int], dtype: np.dtype, chunks: Sequence[int | Sequence[int]] | None, windows: WindowGrid
) -> RowsPlan:
    """
    Args:
        shape: of the array, ``(B, C, *spatial)``, not padded.
        dtype: of the array.
        chunks: for each dimension, the length of a storage chunk, or the lengths of all of them; ``None``: the array
            can be read from anywhere.
        windows: the windows over an image.

    >>> from monai_chunked.plan.window_grid import window_grid
    >>> windows = window_grid((100, 40), (48, 40), (0.5, 0.5))
    >>> plan_rows((1, 1, 100, 40), np.dtype("int16"), None, windows).rows
    48
    >>> plan_rows((1, 1, 100, 40), np.dtype("int16"), (1, 1, 32, 32), windows).rows
    72
    """
    dim = 2 + windows.order[0]
    edges = tuple(_edges(n, lengths) for n, lengths in zip(shape, chunks or (1,) * len(shape)))
    size = shape[dim]
    spans = [inside(slice(start, stop), size, windows.least_size[dim - 2]) for start, stop in windows.spans[dim - 2]]
    rows = max(_next_edge(edges[dim], span.stop, size) - span.start for span in spans)
    return RowsPlan(tuple(shape), dtype, dim, edges, rows)


def reads(region: Box, edges: Sequence[Sequence[int]], most: int) -> Iterator[Box]:
    """Parts of a region of at most so many elements that end where storage chunks do; or larger, if chunks are.

    >>> [part for part in reads((slice(0, 1), slice(3, 8)), ((0, 1), (0, 4, 8)), 4)]
    [(slice(0, 1, None), slice(3, 4, None)), (slice(0, 1, None), slice(4, 8, None))]
    """
    if voxels(region) > most:
        for d, (part, cuts) in enumerate(zip(region, edges)):
            within = cuts[bisect_left(cuts, part.start + 1) : bisect_left(cuts, part.stop)]
            if within:
                middle = within[len(within) // 2]
                yield from reads((*region[:d], slice(part.start, middle), *region[d + 1 :]), edges, most)
                yield from reads((*region[:d], slice(middle, part.stop), *region[d + 1 :]), edges, most)
                return
    yield region


class KeptRows:
    """Reads boxes of an array, from rows that are kept until boxes have passed them.

    Args:
        array: ``(B, C, *spatial)``, anything with slicing.
        plan: which rows are kept.
        scratch_dir: the folder of the scratch file, if there must be one.

    Raises:
        OSError: when the scratch file does not fit.
    """

    def __init__(self, array: Array, plan: RowsPlan, scratch_dir: str | os.PathLike[str] | None = None) -> None:
        self.array = array
        self.plan = plan
        self._map = None if plan.in_memory else scratch_map(plan.nbytes, scratch_dir)
        if self._map is None:
            self.memory = np.empty(plan.kept_shape, plan.dtype)
        else:
            self.memory = np.frombuffer(self._map, plan.dtype).reshape(plan.kept_shape)
        self._image = -1
        self._start = self._stop = 0  # of the rows that are kept

    def read(self, image: int, box: Box) -> np.ndarray:
        """A copy of a box of an image, ``(C, *box)``."""
        dim, size = self.plan.dim, self.plan.shape[self.plan.dim]
        wanted = box[dim - 2]
        if image != self._image or wanted.start < self._start or wanted.start > self._stop:
            self._image, self._stop = image, wanted.start
        self._start = wanted.start
        if wanted.stop > self._stop:
            self._read_rows(_next_edge(self.plan.edges[dim], wanted.stop, size))
        before, behind = (slice(None), *box[: dim - 2]), box[dim - 1 :]
        parts = [self.memory[(*before, rows, *behind)] for rows, _ in self._places(wanted)]
        copy = np.concatenate(parts, axis=dim - 1)
        self._release()
        return copy

    def _read_rows(self, stop: int) -> None:
        """Read the rows behind those that are kept, up to ``stop``."""
        plan = self.plan
        whole = tuple(slice(0, size) for size in plan.shape)
        image = slice(self._image, self._image + 1)
        region = (image, *whole[1 : plan.dim], slice(self._stop, stop), *whole[plan.dim + 1 :])
        for part in reads(region, plan.edges, READ_BYTES // plan.dtype.itemsize):
            data = read_array(self.array, part, plan.dtype)
            for rows, in_part in self._places(part[plan.dim]):
                target = (*part[1 : plan.dim], rows, *part[plan.dim + 1 :])
                source = (*(slice(None),) * (plan.dim - 1), in_part)
                self.memory[target] = data[0][source]
            self._release()
        self._stop = stop

    def _places(self, rows: slice) -> Iterator[tuple[slice, slice]]:
        """Where rows are kept, in one or two runs, and the same rows counted from the first."""
        start = rows.start
        while start < rows.stop:
            place = start % self.plan.rows
            count = min(rows.stop - start, self.plan.rows - place)
            yield slice(place, place + count), slice(start - rows.start, start - rows.start + count)
            start += count

    def _release(self) -> None:
        """Let go of pages of the scratch file, which would count as memory of the process; the file keeps them."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def read_array(array: Array, box: Box, dtype: np.dtype) -> np.ndarray:
    """A box of an array, with a slice for every dimension.

    Raises:
        ValueError: when the array gives something of another shape.
        TypeError: when it gives another dtype than it says it has.
    """
    data = read_stored(array, box)
    expected = sizes(box)
    asked = box_text(box)
    if data.shape != expected:
        raise ValueError(f"{asked} of {type(array).__name__} gave shape {data.shape} instead of {expected}")
    if data.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        raise TypeError(f"{asked} of {type(array).__name__} gave {data.dtype} although its dtype is {dtype}")
    return data


def _edges(size: int, lengths: int | Sequence[int]) -> Sequence[int]:
    """Where storage chunks end along one dimension, from the length of one, or the lengths of all."""
    if isinstance(lengths, Sequence):
        return tuple(itertools.accumulate(lengths, initial=0))
    return range(0, size + int(lengths), int(lengths))


def _next_edge(edges: Sequence[int], stop: int, size: int) -> int:
    return min(edges[bisect_left(edges, stop)], size)
