"""
Chunks of any cuts, collected until the regular storage chunks of a file format are whole. Knows no format and no file.

Memory is what this is about: a storage chunk that lies across the border of two layers of chunks is held for a whole
layer. So sizes are chosen by the cuts, and what is held has a limit, above which storage chunks are written in parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, prod

import numpy as np

from monai_chunked.plan import Box

__all__ = ["Collector", "Region", "channels_per_shard", "storage_chunk_size"]

TARGET_BYTES = 2**21
"""Of a storage chunk before compression: a few milliseconds to read, and few enough files."""

HELD_BYTES = 2**28
"""The most that is held of storage chunks that are not whole."""

ASSEMBLED_BYTES = 2**24
"""The most that is put together at once."""

MOST_FILES = 10_000
"""Of an image. Above it several channels share a shard."""

SHARD_BYTES = 2**23
"""The most of a shard of several channels; it is put together in memory."""

Region = tuple[slice, ...]
"""One slice for the channels and one for each spatial dimension."""


def storage_chunk_size(cuts: Sequence[Sequence[int]], channels: int, itemsize: int) -> tuple[int, ...]:
    """Spatial size of storage chunks of one channel: near :py:data:`TARGET_BYTES`, and little to hold.

    In each dimension the cuts are multiples of it, if that does not make it small; otherwise what storage chunks reach
    over a cut is small enough to be held for as long as chunks arrive in raster order.

    Args:
        cuts: of the chunks for each spatial dimension, ascending from 0 to the size.
        channels: of the result.
        itemsize: bytes of a value.

    >>> storage_chunk_size([(0, 64, 128, 192, 256), (0, 64, 128, 192, 256), (0, 300)], 1, 4)
    (64, 64, 100)
    >>> storage_chunk_size([(0, 48, 96, 144, 160, 192, 240, 256)] * 2 + [(0, 512)], 105, 4)
    (16, 16, 512)
    """
    dims, size = len(cuts), []
    voxels = TARGET_BYTES // itemsize
    sizes = [each[-1] for each in cuts]
    longest = [max(b - a for a, b in itertools.pairwise(each)) for each in cuts]
    for d, inner in enumerate(each[1:-1] for each in cuts):
        most = max(1, round(voxels ** (1 / (dims - d))))
        thinnest = channels * itemsize * prod(longest[:d]) * prod(sizes[d + 1 :])
        size.append(_size_along(inner, sizes[d], most, HELD_BYTES // (2 * dims * thinnest)))
        voxels = max(1, voxels // size[-1])
    return tuple(size)


def _size_along(inner: Sequence[int], size: int, most: int, held: int) -> int:
    """In one dimension; ``held`` voxels at most may reach over a cut."""
    if not inner:
        return ceil(size / ceil(size / most))
    for candidate in range(min(size, most + most // 2), most // 3, -1):
        if not any(cut % candidate for cut in inner):
            return candidate
    return next(n for n in range(min(size, most), 0, -1) if max(cut % n for cut in inner) <= held)


def channels_per_shard(shape: Sequence[int], chunk_size: Sequence[int], itemsize: int) -> int:
    """How many storage chunks of one channel share a file, so that there are not too many files.

    >>> channels_per_shard((4, 256, 256, 256), (64, 64, 128), 4)
    1
    >>> channels_per_shard((105, 256, 256, 512), (16, 16, 512), 4)
    3
    """
    files = shape[0] * prod(ceil(n / c) for n, c in zip(shape[1:], chunk_size))
    most = max(1, SHARD_BYTES // (prod(chunk_size) * itemsize))
    return min(ceil(files / MOST_FILES), most, shape[0])


@dataclass
class _Chunk:
    """A chunk that was added, and how many of its parts are held."""

    box: Box
    held: int = 0


@dataclass
class _Held:
    """A storage chunk that is not whole."""

    missing: int
    parts: list[tuple[Box, np.ndarray, _Chunk]] = field(default_factory=list)
    split: bool = False


class Collector:
    """Takes chunks as they are finished and returns what can be written.

    Args:
        shape: of the result, ``(C, *spatial)``.
        unit: size of what is written at once, ``(C, *spatial)``: a storage chunk, or a shard of several.
        itemsize: bytes of a value.
        limit: bytes that are held at most.

    Attributes:
        held_bytes: of the parts that are held now.
    """

    def __init__(self, shape: Sequence[int], unit: Sequence[int], itemsize: int, limit: int | None = None) -> None:
        self.channels, *self.size = shape
        self.unit = tuple(unit[1:])
        self.limit = HELD_BYTES if limit is None else limit
        self.held_bytes = 0
        per_channel = unit[0] * prod(self.unit) * itemsize
        self._channels_at_once = unit[0] * max(1, ASSEMBLED_BYTES // per_channel)
        self._held: dict[tuple[int, ...], _Held] = {}
        self._added: list[_Chunk] = []

    def add(self, box: Box, chunk: np.ndarray) -> Iterator[tuple[Region, np.ndarray]]:
        """Regions to write, in which storage chunks are whole unless more would be held than the limit.

        Args:
            box: the voxels of the chunk.
            chunk: ``(C, *chunk)``; not needed any more when all regions are written.
        """
        added = _Chunk(box)
        self._added.append(added)
        touched = [range(s.start // u, ceil(s.stop / u)) for s, u in zip(box, self.unit)]
        whole = [self._whole(d, s, ks) for d, (s, ks) in enumerate(zip(box, touched))]
        if all(whole):
            inside = tuple(slice(ks.start * u, min(ks.stop * u, n)) for ks, u, n in zip(whole, self.unit, self.size))
            yield (slice(0, self.channels), *inside), chunk[_within(inside, box)]
        for position in itertools.product(*touched):
            if not all(k in ks for k, ks in zip(position, whole)):
                self._hold(position, added, chunk)
                if not self._held[position].missing:
                    yield from self._take(position)
        while self.held_bytes > self.limit:
            oldest = next(position for position, held in self._held.items() if held.parts)
            yield from self._take(oldest)

    def rest(self) -> Iterator[tuple[Region, np.ndarray]]:
        """All that is held: storage chunks of which the other parts were written in an earlier run."""
        for position in list(self._held):
            yield from self._take(position)

    def written(self) -> list[Box]:
        """The chunks of which nothing is held, each of them once; all regions so far must have been written."""
        done = [chunk.box for chunk in self._added if not chunk.held]
        self._added = [chunk for chunk in self._added if chunk.held]
        return done

    def _whole(self, d: int, part: slice, touched: range) -> range:
        """Of the storage chunks that a chunk touches along one dimension, those that lie within it."""
        unit = self.unit[d]
        last = touched.stop if part.stop == self.size[d] else part.stop // unit
        return range(ceil(part.start / unit), last)

    def _box(self, position: tuple[int, ...]) -> Box:
        return tuple(slice(k * u, min((k + 1) * u, n)) for k, u, n in zip(position, self.unit, self.size))

    def _hold(self, position: tuple[int, ...], chunk: _Chunk, values: np.ndarray) -> None:
        target = self._box(position)
        common = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(target, chunk.box))
        part = values[_within(common, chunk.box)].copy()
        held = self._held.setdefault(position, _Held(_voxels(target)))
        held.parts.append((common, part, chunk))
        held.missing -= _voxels(common)
        chunk.held += 1
        self.held_bytes += part.nbytes

    def _take(self, position: tuple[int, ...]) -> Iterator[tuple[Region, np.ndarray]]:
        """Let go of what is held of a storage chunk: whole, or in parts if that is all there is."""
        held = self._held[position]
        parts, held.parts = held.parts, []
        if not held.missing:
            del self._held[position]
        if held.missing or held.split:
            held.split = True
            for box, part, _ in parts:
                yield (slice(0, self.channels), *box), part
        else:
            target = self._box(position)
            for first in range(0, self.channels, self._channels_at_once):
                channels = slice(first, min(first + self._channels_at_once, self.channels))
                shape = (channels.stop - first, *(s.stop - s.start for s in target))
                values = np.empty(shape, parts[0][1].dtype)
                for box, part, _ in parts:
                    values[_within(box, target)] = part[channels]
                yield (channels, *target), values
        for _, part, chunk in parts:
            chunk.held -= 1
            self.held_bytes -= part.nbytes


def _within(box: Box, outer: Box) -> Region:
    """A box counted from the start of another, for all channels."""
    return (slice(None), *(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer)))


def _voxels(box: Box) -> int:
    return prod(s.stop - s.start for s in box)
