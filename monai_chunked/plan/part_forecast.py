"""
What each part of a volume takes, before any of them runs. Integers only.

There are two ways to share a volume. Parts that hand on predict every window once: what a part has added to a chunk
that a later one finishes is sent to the next one that adds to it, which keeps its own products for that chunk until
then. Independent parts send nothing: each predicts all windows over its chunks, and those of a batch with them, so that
windows over chunks of two parts are predicted twice.

All is counted for many chunks at a time, dimension by dimension, within the layers of windows that a part is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, NamedTuple

import numpy as np

from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.plan.parts import Parts
from monai_chunked.plan.work import Work

__all__ = ["PartForecast", "PartsForecast", "forecast_parts"]


NEVER = np.iinfo(np.int64).max
"""The number of a window that there is not."""


@dataclass(frozen=True)
class PartForecast:
    """What one part takes.

    Attributes:
        numbers: of its windows, in scan order over all images.
        windows: how many windows the network gets of it.
        batches: in how many batches.
        open_bytes: the most that the chunks take that it opens, on all levels.
        kept_bytes: of the products that it keeps for chunks that earlier parts have begun, until their sums are there.
        sent_bytes: of the sums of chunks that it hands on.
        twice: how many of these windows a part before it predicts, too.
    """

    numbers: range
    windows: int
    batches: int
    open_bytes: int
    kept_bytes: int = 0
    sent_bytes: int = 0
    twice: int = 0


@dataclass(frozen=True)
class PartsForecast:
    """What a volume takes where several workers share it.

    Attributes:
        workers: how many there are.
        windows: how many the network gets in one process.
        handing_on: each part, where chunks between parts are handed on.
        independent: each part, where nothing is sent.
    """

    workers: int
    windows: int
    handing_on: tuple[PartForecast, ...]
    independent: tuple[PartForecast, ...]

    def efficiency(self, parts: Sequence[PartForecast]) -> float:
        """The time of one worker over that of all of them, times their number, if only windows take time."""
        return self.windows / max(1, self.workers * max(part.windows for part in parts))


def forecast_parts(
    parts: Parts, work: Work, voxel_bytes: Sequence[int], workers: int, background_adds: Sequence[bool]
) -> PartsForecast:
    """What each part takes, in both ways.

    Args:
        parts: the parts.
        work: what the network has to do in one process.
        voxel_bytes: what one voxel of an open chunk takes, for each head.
        workers: how many share the volume.
        background_adds: for each head, whether skipped windows add anything.
    """
    images = [_Image(parts, image, voxel_bytes, background_adds) for image in range(parts.images)]
    handing_on, independent = [], []
    known = np.zeros(len(work.ends), bool)
    for numbers in parts.ranges:
        pieces = list(_pieces(images, numbers))
        batches = work.predicted[_batches(work, numbers)]
        held = [image.handed(base, start, stop) for image, base, start, stop in pieces]
        opened = [span for each in held for span in each.spans]
        kept, sent = sum(each.kept for each in held), sum(each.sent for each in held)
        done = int(batches.sum()), int((batches > 0).sum())
        handing_on.append(PartForecast(numbers, *done, _peak(opened, len(voxel_bytes)), kept, sent))

        alone = [image.alone(base, start, stop) for image, base, start, stop in pieces]
        needed = np.unique(np.searchsorted(work.ends, np.concatenate([each.needed for each in alone]), side="right"))
        twice = int(work.predicted[needed[known[needed]]].sum())
        known[needed] = True
        done = int(work.predicted[needed].sum()), len(needed)
        opened = [span for each in alone for span in each.spans]
        independent.append(PartForecast(numbers, *done, _peak(opened, len(voxel_bytes)), twice=twice))
    return PartsForecast(workers, int(work.predicted.sum()), tuple(handing_on), tuple(independent))


def _batches(work: Work, numbers: range) -> slice:
    """Those of a part, which ends where batches end."""
    return slice(*np.searchsorted(work.ends, [numbers.start, numbers.stop - 1], side="right") + np.array([0, 1]))


class _Span(NamedTuple):
    """Chunks of a head that are open from one window to another, both included, and what they take."""

    head: int
    first: np.ndarray
    last: np.ndarray
    sizes: np.ndarray


class _Handed(NamedTuple):
    """What a part does in one image where it hands on: open chunks, bytes of kept products, bytes of sums sent."""

    spans: list[_Span]
    kept: int
    sent: int


class _Alone(NamedTuple):
    """What it does there by itself: open chunks, and the numbers of the windows that it needs."""

    spans: list[_Span]
    needed: np.ndarray


def _pieces(images: Sequence[_Image], numbers: range) -> Iterator[tuple[_Image, int, int, int]]:
    """The images that a part has windows of, the number of the first window there, and those of the part there."""
    count = len(images[0].seen)
    for index in range(numbers.start // count, (numbers.stop - 1) // count + 1):
        base = index * count
        yield images[index], base, max(numbers.start - base, 0), min(numbers.stop - base, count)


class _Image:
    """One image of a batch.

    Args:
        parts: the parts.
        image: which one.
        voxel_bytes: what one voxel of an open chunk takes, for each head.
        background_adds: for each head, whether skipped windows add anything.

    Attributes:
        seen: for each window in scan order, whether the network may get it.
    """

    def __init__(self, parts: Parts, image: int, voxel_bytes: Sequence[int], background_adds: Sequence[bool]) -> None:
        windows = parts.grids[0].windows
        self.seen = np.ones(len(windows), bool)
        if parts.skipped is not None:
            skipped = parts.skipped.each[min(image, len(parts.skipped.each) - 1)]
            self.seen = ~skipped.transpose(windows.order).ravel()
        self.adds = [np.ones_like(self.seen) if adds else self.seen for adds in background_adds]
        self.heads = [_Head(grid, size, self.seen) for grid, size in zip(parts.grids, voxel_bytes)]

    def handed(self, base: int, start: int, stop: int) -> _Handed:
        """What windows of this image, from one to before another, do where chunks are handed on."""
        spans, kept, sent = [], 0, 0
        for number, head in enumerate(self.heads):
            layers = head.layers(start, stop)
            numbers = layers.numbers()
            inside = (numbers >= start) & (numbers < stop)
            first = layers.of_chunks(np.where(inside, numbers, NEVER), np.minimum)
            opens, last, sizes = layers.opens(), layers.last(), layers.sizes()
            here = (first < NEVER) & (opens < stop)
            inherited, later = here & (opens < start), here & (last >= stop)
            sent += int(sizes[later].sum())
            if inherited.any():
                added = inside & layers.cut(self.adds[number])
                kept += int(layers.products(added)[inherited].sum()) * head.voxel_bytes
            opened = here & ~inherited  # of the others there are products, until all windows are in
            until = np.minimum(last, stop - 1)[opened]
            spans.append(_Span(number, base + opens[opened], base + until, sizes[opened]))
        return _Handed(spans, kept, sent)

    def alone(self, base: int, start: int, stop: int) -> _Alone:
        """What is done for the chunks that end with windows of this image, from one to before another."""
        spans, needed = [], np.zeros_like(self.seen)
        for number, head in enumerate(self.heads):
            layers = head.layers(start, stop)
            opens, last, sizes = layers.opens(), layers.last(), layers.sizes()
            own = (last >= start) & (last < stop)
            opened = own & (opens < NEVER)
            spans.append(_Span(number, base + opens[opened], base + last[opened], sizes[opened]))
            wider = layers.wider()
            wider.cut(needed)[...] |= wider.of_windows(own, layers.chunks)
        return _Alone(spans, base + np.flatnonzero(needed & self.seen))


class _Head:
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
        """For each chunk the first window that is not skipped; ``None``: none is, so that it follows from the grid."""
        if self._seen is None:
            return None
        numbers = np.where(self._seen, np.arange(len(self._seen)), NEVER).reshape(self.shape)
        return _reduced(numbers, self.around, np.minimum, NEVER)

    def layers(self, start: int, stop: int) -> _Layers:
        """The layers of windows in which those from one to before another are."""
        return _Layers(self, range(start // self.row, (stop - 1) // self.row + 1))


class _Layers:
    """Some layers of windows along the slowest dimension, and the chunks that they touch.

    Args:
        head: of which.
        windows: indices of the layers along the slowest dimension.
    """

    def __init__(self, head: _Head, windows: range) -> None:
        self.head = head
        self.windows = windows
        self.chunks = range(head.touched[0][windows[0]].start, head.touched[0][windows[-1]].stop)
        slowest = head.around[0][self.chunks.start : self.chunks.stop]
        self._around = [slowest, *head.around[1:]]

    def wider(self) -> _Layers:
        """These, and those before them that touch the same chunks."""
        return _Layers(self.head, range(self._around[0][0].start, self.windows.stop))

    def cut(self, each: np.ndarray) -> np.ndarray:
        """Of something for each window of the image, a view of what is in these layers."""
        row = self.head.row
        return each[self.windows.start * row : self.windows.stop * row].reshape(-1, *self.head.shape[1:])

    def numbers(self) -> np.ndarray:
        """Of the windows."""
        row = self.head.row
        return np.arange(self.windows.start * row, self.windows.stop * row).reshape(-1, *self.head.shape[1:])

    def opens(self) -> np.ndarray:
        """For each chunk the number of the first window that is not skipped."""
        known = self.head.opens
        return self._corner(0) if known is None else known[self.chunks.start : self.chunks.stop]

    def last(self) -> np.ndarray:
        """For each chunk the number of its last window."""
        return self._corner(-1)

    def sizes(self) -> np.ndarray:
        """For each chunk its bytes."""
        each = [self.head.sizes[0][self.chunks.start : self.chunks.stop], *self.head.sizes[1:]]
        sizes: np.ndarray = reduce(np.multiply.outer, each) * self.head.voxel_bytes
        return sizes

    def of_chunks(self, each: np.ndarray, what: np.ufunc) -> np.ndarray:
        """For each chunk what comes of a number of each window here that touches it."""
        inside = [range(max(a.start, self.windows.start), min(a.stop, self.windows.stop)) for a in self._around[0]]
        moved = [range(a.start - self.windows.start, a.stop - self.windows.start) for a in inside]
        return _reduced(each, [moved, *self._around[1:]], what, NEVER)

    def of_windows(self, each: np.ndarray, chunks: range) -> np.ndarray:
        """For each window whether it touches one of some chunks, of which some layers are given."""
        touched = [self.head.touched[0][w] for w in self.windows]
        inside = [range(max(a.start, chunks.start), min(a.stop, chunks.stop)) for a in touched]
        moved = [range(a.start - chunks.start, max(a.stop, a.start) - chunks.start) for a in inside]
        return _reduced(each, [moved, *self.head.touched[1:]], np.logical_or, False)

    def products(self, each: np.ndarray) -> np.ndarray:
        """For each chunk, how many voxels the windows for which this is true add to it in all."""
        shared = self.head.shared
        here = shared[0][self.windows.start : self.windows.stop, self.chunks.start : self.chunks.stop]
        voxels = each.astype(np.float64)  # exact, and PyTorch's manner of products of integers is slow
        for side in (here, *shared[1:]):
            voxels = np.tensordot(voxels, side, axes=(0, 0))
        return voxels.round().astype(np.int64)

    def _corner(self, which: int) -> np.ndarray:
        number = np.zeros((), np.int64)
        for around, size in zip(self._around, self.head.shape):
            number = np.add.outer(number * size, np.array([each[which] for each in around], np.int64))
        return number


def _shared(grid: ChunkGrid, dim: int) -> np.ndarray:
    """Along one dimension, how many voxels a window and a chunk have in common: ``(windows, chunks)``."""
    kept, cuts = np.array(grid.kept[dim]), np.array(grid.cuts[dim])
    low = np.maximum.outer(kept[:, 0], cuts[:-1])
    return np.maximum(np.minimum.outer(kept[:, 1], cuts[1:]) - low, 0).astype(np.float64)


def _reduced(each: np.ndarray, around: Sequence[Sequence[range]], what: np.ufunc, nothing: Any) -> np.ndarray:
    """What comes of the values in a box, for the product of some ranges in each dimension."""
    for ranges in around:
        parts = [what.reduce(each[one.start : one.stop], axis=0, initial=nothing) for one in ranges]
        each = np.stack(parts, axis=-1)
    return each


def _peak(spans: Sequence[_Span], heads: int) -> int:
    """The most bytes that are open at a time; windows are added to one head after the other."""
    spans = [span for span in spans if len(span.first)]
    if not spans:
        return 0
    start = min(int(span.first.min()) for span in spans)
    length = max(int(span.last.max()) for span in spans) + 2 - start
    opened, closed = np.zeros((heads, length), np.int64), np.zeros((heads, length), np.int64)
    for head, first, last, sizes in spans:
        np.add.at(opened[head], first - start, sizes)
        np.add.at(closed[head], last - start, sizes)
    after = np.cumsum(opened - closed, axis=1)
    during = after + closed
    before = after + closed - opened
    return max(int((after[:k].sum(0) + during[k] + before[k + 1 :].sum(0)).max()) for k in range(heads))
