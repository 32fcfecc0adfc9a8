"""
Chunks of any cuts, collected until the regular storage chunks of a file format are whole. Knows no format and no file.

Memory is what this is about: a storage chunk that lies across the border of two layers of chunks is held for a whole
layer. So sizes are chosen by the cuts, and what is held has a limit, above which storage chunks are written in parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, gcd, prod

import numpy as np

from monai_chunked.plan.boxes import Box, Region, intersection, voxels, within

__all__ = ["Collector", "channels_together", "suitable_size"]


TARGET_BYTES = 2**21
"""Bytes of a storage chunk before compression: it is read in a few milliseconds, and files are few enough."""


HELD_BYTES = 2**29
"""The most bytes of storage chunks that are held until they are whole."""


def suitable_size(cuts: Sequence[Sequence[int]], channels: int, itemsize: int) -> tuple[int, ...]:
    """Spatial size of storage chunks: of one channel near :py:data:`TARGET_BYTES`, and little to hold.

    In each dimension the cuts are multiples of it, if that does not make it small; otherwise the storage chunks over a
    cut are small enough to be held, for as long as chunks arrive in raster order.

    Args:
        cuts: of the chunks for each spatial dimension, ascending from 0 to the size.
        channels: of the result.
        itemsize: bytes of a value.

    >>> suitable_size([(0, 64, 128, 192, 256), (0, 64, 128, 192, 256), (0, 300)], 1, 4)
    (64, 64, 100)
    >>> suitable_size([(0, 48, 96, 144, 160, 192, 240, 256)] * 2 + [(0, 512)], 105, 4)
    (16, 16, 512)
    >>> suitable_size([(0, 72, 96, 144, 160, 168, 240, 256)] * 2 + [(0, 72, 96, 144, 168, 256)], 105, 4)
    (8, 31, 24)
    """
    dims = len(cuts)
    size: list[int] = []
    voxels, limit = TARGET_BYTES // itemsize, HELD_BYTES
    for d, along in enumerate(cuts):
        most = max(1, round(voxels ** (1 / (dims - d))))
        # over a cut lies as much as chunks in the dimensions before, and the image in those behind
        before = [max(b - a for a, b in itertools.pairwise(borders)) + n for borders, n in zip(cuts, size)]
        layer = channels * itemsize * prod(before) * prod(borders[-1] for borders in cuts[d + 1 :])
        size.append(_size_along(along, most, limit // 2 // layer))
        if any(cut % size[-1] for cut in along[:-1]):
            limit //= 2  # the other half is for the dimensions behind
        voxels = max(1, voxels // size[-1])
    return tuple(size)


def _size_along(cuts: Sequence[int], most: int, held: int) -> int:
    """The size in one dimension, near ``most``; storage chunks over a cut may be ``held`` voxels long."""
    *inner, size = cuts[1:]
    if not inner:
        return ceil(size / ceil(size / most))
    aligned = gcd(*inner)
    if aligned >= most // 8:  # nothing to hold is worth more than the best size
        return max(n for n in range(1, most + most // 2) if aligned % n == 0)
    longest = min(size, most, held)
    return longest if longest >= 2 * aligned else aligned


def channels_together(channels: int, chunk_size: Sequence[int], itemsize: int) -> int:
    """How many channels share a storage chunk, so that it is not much smaller than :py:data:`TARGET_BYTES`.

    >>> channels_together(4, (64, 64, 128), 4)
    1
    >>> channels_together(105, (8, 31, 24), 4)
    88
    """
    return min(channels, max(1, TARGET_BYTES // (prod(chunk_size) * itemsize)))


@dataclass
class _Chunk:
    """A chunk that was added, and how many storage chunks with a part of it are held, and so not written."""

    box: Box
    held: int = 0


@dataclass
class _HeldChunk:
    """A storage chunk that is not whole: its values for all channels, and the parts that chunks have brought."""

    values: np.ndarray
    parts: list[tuple[Box, _Chunk]] = field(default_factory=list)


class Collector:
    """Takes chunks as they are finished and returns what can be written.

    Args:
        shape: of the result, ``(C, *spatial)``.
        unit: spatial size of what is written whole: a storage chunk, or a shard of several.
        limit: the most bytes that are held; by default :py:data:`HELD_BYTES`.

    Attributes:
        held_bytes: what is held now.
    """

    def __init__(self, shape: Sequence[int], unit: Sequence[int], limit: int | None = None) -> None:
        self.channels, *self.size = shape
        self.unit = tuple(map(min, unit, self.size))
        self.limit = HELD_BYTES if limit is None else limit
        self.held_bytes = 0
        self._held: dict[tuple[int, ...], _HeldChunk] = {}
        self._missing: dict[tuple[int, ...], int] = {}  # voxels; also of storage chunks that were written in parts
        self._added: list[_Chunk] = []
        self._memory: list[np.ndarray] = []  # to use again: touching new memory takes longer than copying

    def add(self, box: Box, chunk: np.ndarray) -> Iterator[tuple[Region, np.ndarray]]:
        """Regions to write, in which storage chunks are whole unless more would be held than the limit.

        Args:
            box: the voxels of the chunk.
            chunk: ``(C, *chunk)``; not needed any more when all regions are written.
        """
        added = _Chunk(box, held=1)  # until all of the regions below are written, which may fail
        self._added.append(added)
        touched = [range(side.start // unit, ceil(side.stop / unit)) for side, unit in zip(box, self.unit)]
        whole = [self._whole(d, side, along) for d, (side, along) in enumerate(zip(box, touched))]
        if all(whole):
            inside = tuple(slice(ks.start * u, min(ks.stop * u, n)) for ks, u, n in zip(whole, self.unit, self.size))
            yield (slice(0, self.channels), *inside), chunk[within(inside, box)]
        for position in itertools.product(*touched):
            if all(k in along for k, along in zip(position, whole)):
                continue
            self._hold(position, added, chunk)
            if self._missing[position] == 0:
                yield from self._release(position)
        added.held -= 1
        while self.held_bytes > self.limit:
            yield from self._release(next(iter(self._held)))  # the oldest

    def rest(self) -> Iterator[tuple[Region, np.ndarray]]:
        """All that is held. The other parts of these storage chunks were written in an earlier run."""
        for position in list(self._held):
            yield from self._release(position)

    def written(self) -> list[Box]:
        """The chunks of which all is written, each of them once."""
        boxes = [chunk.box for chunk in self._added if not chunk.held]
        self._added = [chunk for chunk in self._added if chunk.held]
        return boxes

    def _whole(self, d: int, part: slice, touched: range) -> range:
        """The storage chunks that lie within a chunk along one dimension, of those that it touches."""
        unit = self.unit[d]
        return range(ceil(part.start / unit), touched.stop if part.stop == self.size[d] else part.stop // unit)

    def _box(self, position: tuple[int, ...]) -> Box:
        return tuple(slice(k * u, min((k + 1) * u, n)) for k, u, n in zip(position, self.unit, self.size))

    def _hold(self, position: tuple[int, ...], chunk: _Chunk, values: np.ndarray) -> None:
        target = self._box(position)
        common = intersection(target, chunk.box)
        if position not in self._held:
            memory = self._memory.pop() if self._memory else np.empty((self.channels, *self.unit), values.dtype)
            self._held[position] = _HeldChunk(memory)
            self.held_bytes += memory.nbytes
        held = self._held[position]
        held.values[within(common, target)] = values[within(common, chunk.box)]
        held.parts.append((common, chunk))
        chunk.held += 1
        self._missing[position] = self._missing.get(position, voxels(target)) - voxels(common)

    def _release(self, position: tuple[int, ...]) -> Iterator[tuple[Region, np.ndarray]]:
        """What is held of a storage chunk: its whole if all parts are there, otherwise the parts."""
        held = self._held.pop(position)
        target = self._box(position)
        boxes = [box for box, _ in held.parts]
        if sum(map(voxels, boxes)) == voxels(target):
            boxes = [target]
        for box in boxes:
            yield (slice(0, self.channels), *box), held.values[within(box, target)]
        for _, chunk in held.parts:
            chunk.held -= 1
        self.held_bytes -= held.values.nbytes
        self._memory.append(held.values)
        if not self._held:
            self._memory.clear()  # the next image of the batch has its own
