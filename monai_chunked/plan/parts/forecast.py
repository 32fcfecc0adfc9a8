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
from typing import NamedTuple

import numpy as np

from monai_chunked.plan.parts.layers import NEVER, HeadChunks
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import Work

__all__ = ["PartForecast", "PartsForecast", "forecast_parts"]


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
    parts: Parts, work: Work, *, voxel_bytes: Sequence[int], workers: int, background_adds: Sequence[bool]
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
    seen = np.zeros(len(work.ends), bool)
    for numbers in parts.ranges:
        pieces = list(_pieces(images, numbers))
        batches = work.predicted[_batches(work, numbers)]
        held = [image.handed(base, start, stop) for image, base, start, stop in pieces]
        opened = [span for share in held for span in share.spans]
        kept, sent = sum(share.kept for share in held), sum(share.sent for share in held)
        done = int(batches.sum()), int((batches > 0).sum())
        handing_on.append(PartForecast(numbers, *done, _peak(opened, len(voxel_bytes)), kept, sent))

        alone = [image.alone(base, start, stop) for image, base, start, stop in pieces]
        needed = np.unique(np.searchsorted(work.ends, np.concatenate([share.needed for share in alone]), side="right"))
        twice = int(work.predicted[needed[seen[needed]]].sum())
        seen[needed] = True
        done = int(work.predicted[needed].sum()), len(needed)
        opened = [span for share in alone for span in share.spans]
        independent.append(PartForecast(numbers, *done, _peak(opened, len(voxel_bytes)), twice=twice))
    return PartsForecast(workers, int(work.predicted.sum()), tuple(handing_on), tuple(independent))


def _batches(work: Work, numbers: range) -> slice:
    """The batches of a part; it ends where one of them does."""
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
    """What a part does in one image by itself: open chunks, and the numbers of the windows that it needs."""

    spans: list[_Span]
    needed: np.ndarray


def _pieces(images: Sequence[_Image], numbers: range) -> Iterator[tuple[_Image, int, int, int]]:
    """The images that a part has windows of: the number of their first window, and where in them the part is."""
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
        self.heads = [HeadChunks(grid, size, self.seen) for grid, size in zip(parts.grids, voxel_bytes)]

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
