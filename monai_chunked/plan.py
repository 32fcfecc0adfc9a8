"""
Geometry: which windows the network sees, in which order and batches, how the output is cut into chunks, and when each
chunk opens and finishes. Integers only; no tensor and no file is touched here.

Everything is separable. Windows form a grid (the product of one list of starts for each dimension) and so do chunks
(the product of one list of cuts for each dimension); a window touches a chunk if it does so in every dimension; and
since windows are visited in lexicographic order of their grid indices, the last window to touch a chunk is the one
with the last index in every dimension. So nothing here ever looks at all pairs of windows and chunks: a million
windows cost a few short lists.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import NamedTuple

import numpy as np
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

__all__ = ["Box", "ChunkGrid", "Corner", "Piece", "Window", "WindowGrid", "chunk_grids", "padding", "window_grid"]

MAX_CUTS_PER_WINDOW = 8
"""Upper limit of the automatic cuts that a window meets along one dimension."""

Box = tuple[slice, ...]
"""One slice for each spatial dimension."""


Corner = tuple[int, ...]
"""Where a chunk begins: the number of the image, then one voxel index for each spatial dimension."""


class Window(NamedTuple):
    """One ``roi_size`` box of one image.

    Attributes:
        image: index in the input batch.
        position: in the window grid, one integer for each spatial dimension.
        box: the voxels that the network sees, in the (padded) image.
    """

    image: int
    position: tuple[int, ...]
    box: Box


class Piece(NamedTuple):
    """What one window and one chunk have in common.

    Attributes:
        chunk: position of the chunk in the chunk grid.
        in_window: the common voxels, counted from the start of the window's prediction.
        in_chunk: the same voxels, counted from the start of the chunk.
    """

    chunk: tuple[int, ...]
    in_window: Box
    in_chunk: Box


@dataclass(frozen=True)
class WindowGrid:
    """The windows over one image, in MONAI's order.

    Attributes:
        image_size: spatial size of the image in voxels, padded to at least ``roi_size``.
        roi_size: spatial size of a window in voxels.
        starts: for each dimension, where windows start; ascending.
        order: the dimensions from the one along which windows advance last to the one along which they advance first.
        steps_per_buffer: how many steps along ``order[0]`` a batch of windows must not run across; 0: no limit.
    """

    image_size: tuple[int, ...]
    roi_size: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    steps_per_buffer: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of windows along each dimension."""
        return tuple(map(len, self.starts))

    def __len__(self) -> int:
        return prod(self.shape)

    def positions(self) -> Iterator[tuple[int, ...]]:
        """Positions of all windows of one image in scan order."""
        inverse = np.argsort(self.order).tolist()
        for index in itertools.product(*(range(self.shape[d]) for d in self.order)):
            yield tuple(index[k] for k in inverse)

    def batch_count(self, images: int, sw_batch_size: int) -> int:
        """Number of batches."""
        if not self.steps_per_buffer:
            return ceil(images * len(self) / sw_batch_size)
        steps = self.shape[self.order[0]]
        layer = len(self) // steps
        lengths = (min(self.steps_per_buffer, steps - k) for k in range(0, steps, self.steps_per_buffer))
        return images * sum(ceil(layer * length / sw_batch_size) for length in lengths)

    def batches(self, images: int, sw_batch_size: int) -> Iterator[list[Window]]:
        """Windows as the network gets them.

        As in MONAI a batch runs over from one image to the next, except when buffered, where it ends with the buffer.
        """
        windows = (
            Window(
                image, position, tuple(slice(s[i], s[i] + r) for s, i, r in zip(self.starts, position, self.roi_size))
            )
            for image in range(images)
            for position in self.positions()
        )
        slowest = self.order[0]
        runs = itertools.groupby(
            windows,
            lambda w: (w.image, w.position[slowest] // self.steps_per_buffer) if self.steps_per_buffer else None,
        )
        for _, run in runs:
            while batch := list(itertools.islice(run, sw_batch_size)):
                yield batch


def padding(image_size: Sequence[int], roi_size: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels added before and after each dimension so that a window fits.

    >>> padding((10, 64), (32, 32))
    [(11, 11), (0, 0)]
    """
    missing = [max(r - i, 0) for i, r in zip(image_size, roi_size)]
    return [(m // 2, m - m // 2) for m in missing]


def window_grid(
    image_size: Sequence[int],
    roi_size: Sequence[int],
    overlap: Sequence[float],
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
) -> WindowGrid:
    """Lay windows over an image that is padded where it is smaller than a window.

    Args:
        image_size: spatial size of the image in voxels, before padding.
        roi_size: spatial size of a window in voxels.
        overlap: overlap of neighbouring windows for each dimension, in [0, 1).
        buffer_steps: as in MONAI: if positive, windows advance along ``buffer_dim`` last, and batches end every
            ``buffer_steps`` steps.
        buffer_dim: a spatial dimension.

    >>> window_grid((100, 40), (48, 48), (0.5, 0.5)).starts
    ((0, 24, 48, 52), (0,))
    """
    roi = tuple(int(r) for r in roi_size)
    size = tuple(max(int(i), r) for i, r in zip(image_size, roi))
    dims = len(size)
    interval = _get_scan_interval(size, roi, dims, overlap)
    starts = tuple(
        tuple(int(window.start) for (window,) in dense_patch_slices((i,), (r,), (step,)))
        for i, r, step in zip(size, roi, interval)
    )
    if not buffer_steps or buffer_steps < 0:
        return WindowGrid(size, roi, starts, tuple(range(dims)))
    slowest = buffer_dim % dims
    order = (slowest, *(d for d in range(dims) if d != slowest))
    return WindowGrid(size, roi, starts, order, int(buffer_steps))


@dataclass(frozen=True)
class ChunkGrid:
    """The chunks of one output of the network over one image, and which windows touch them.

    Attributes:
        windows: the windows.
        spans: for each dimension and window index, the output voxels ``(start, stop)`` that the window predicts; they
            may reach over the output where the image was padded.
        cuts: for each dimension, the borders of chunks from 0 to the size of the output; ascending.
    """

    windows: WindowGrid
    spans: tuple[tuple[tuple[int, int], ...], ...]
    cuts: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size of the output in voxels."""
        return tuple(c[-1] for c in self.cuts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(len(c) - 1 for c in self.cuts)

    def __len__(self) -> int:
        return prod(self.shape)

    def corner(self, chunk: tuple[int, ...]) -> tuple[int, ...]:
        """The first output voxel of a chunk."""
        return tuple(c[k] for c, k in zip(self.cuts, chunk))

    def box(self, chunk: tuple[int, ...]) -> Box:
        """The output voxels of a chunk."""
        return tuple(slice(c[k], c[k + 1]) for c, k in zip(self.cuts, chunk))

    @cached_property
    def _touched(self) -> list[list[range]]:
        """For each dimension and window index, the chunk indices that the window touches."""
        touched = []
        for spans, cuts in zip(self.spans, self.cuts):
            edges = np.asarray(cuts)
            first = np.searchsorted(edges, [max(start, 0) for start, _ in spans], side="right") - 1
            last = np.searchsorted(edges, [min(stop, cuts[-1]) for _, stop in spans], side="left")
            touched.append([range(a, b) for a, b in zip(first.tolist(), last.tolist())])
        return touched

    @cached_property
    def _touching(self) -> list[list[range]]:
        """For each dimension and chunk index, the window indices that touch the chunk."""
        touching = []
        for touched, chunks in zip(self._touched, self.shape):
            first, last = [0] * chunks, [0] * chunks
            for window in reversed(range(len(touched))):
                for chunk in touched[window]:
                    first[chunk] = window
            for window, chunks_here in enumerate(touched):
                for chunk in chunks_here:
                    last[chunk] = window
            touching.append([range(a, b + 1) for a, b in zip(first, last)])
        return touching

    @cached_property
    def _finished(self) -> list[list[list[int]]]:
        """For each dimension and window index, the chunk indices that no later window touches."""
        finished = []
        for touching, windows in zip(self._touching, self.windows.shape):
            by_window: list[list[int]] = [[] for _ in range(windows)]
            for chunk, around in enumerate(touching):
                by_window[around[-1]].append(chunk)
            finished.append(by_window)
        return finished

    @cached_property
    def uncut(self) -> ChunkGrid:
        """The same output as one chunk."""
        return replace(self, cuts=tuple((0, size) for size in self.size))

    def voxels(self, chunk: tuple[int, ...]) -> int:
        """Number of output voxels of a chunk."""
        return prod(c[k + 1] - c[k] for c, k in zip(self.cuts, chunk))

    def touched_by(self, window: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The chunks that a window touches."""
        return itertools.product(*(t[w] for t, w in zip(self._touched, window)))

    def pieces(self, window: tuple[int, ...]) -> Iterator[Piece]:
        """What a window shares with each chunk that it touches."""
        for chunk in self.touched_by(window):
            yield self._piece(window, chunk)

    def windows_of(self, chunk: tuple[int, ...]) -> Iterator[Piece]:
        """What a chunk shares with each window that touches it, in scan order."""
        around = [t[c] for t, c in zip(self._touching, chunk)]
        inverse = np.argsort(self.windows.order).tolist()
        for index in itertools.product(*(around[d] for d in self.windows.order)):
            yield self._piece(tuple(index[k] for k in inverse), chunk)

    @cached_property
    def _surroundings(self) -> list[list[tuple[tuple[int, ...], ...]]]:
        """For each dimension and chunk index, what the chunk shares with each window that touches it."""
        found = []
        for spans, cuts, touching in zip(self.spans, self.cuts, self._touching):
            each = []
            for chunk, around in enumerate(touching):
                start, end = cuts[chunk], cuts[chunk + 1]
                shared = ((max(spans[w][0], start), min(spans[w][1], end), spans[w][0]) for w in around)
                each.append((*((low - start, high - start, low - span) for low, high, span in shared), (end - start,)))
            found.append(each)
        return found

    def surroundings(self, chunk: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Where windows lie over a chunk, seen from it: chunks for which this is the same have the same weights."""
        return tuple(each[k] for each, k in zip(self._surroundings, chunk))

    def finished_by(self, window: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The chunks for which this window is the last one."""
        return itertools.product(*(f[w] for f, w in zip(self._finished, window)))

    def next_window(self, chunk: tuple[int, ...], window: tuple[int, ...]) -> int | None:
        """The number, in scan order, of the window that touches a chunk next after another one has; ``None``: none."""
        number, stride, following = 0, 1, None
        for d in reversed(self.windows.order):
            around = self._touching[d][chunk[d]]
            if following is None and window[d] < around[-1]:
                following = number + (window[d] + 1) * stride
            elif following is None:
                number += around[0] * stride
            else:
                following += window[d] * stride
            stride *= self.windows.shape[d]
        return following

    def _piece(self, window: tuple[int, ...], chunk: tuple[int, ...]) -> Piece:
        in_window, in_chunk = [], []
        for spans, cuts, w, c in zip(self.spans, self.cuts, window, chunk):
            (span, stop), start = spans[w], cuts[c]
            low, high = max(span, start), min(stop, cuts[c + 1])
            in_window.append(slice(low - span, high - span))
            in_chunk.append(slice(low - start, high - start))
        return Piece(chunk, tuple(in_window), tuple(in_chunk))

    @cached_property
    def _events(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of the chunks that each window opens, and of those that it finishes, in scan order."""
        opened, closed = np.ones(1, np.int64), np.ones(1, np.int64)
        for d in self.windows.order:
            sizes = np.diff(self.cuts[d])
            opening, closing = np.zeros(self.windows.shape[d], np.int64), np.zeros(self.windows.shape[d], np.int64)
            np.add.at(opening, [t[0] for t in self._touching[d]], sizes)
            np.add.at(closing, [t[-1] for t in self._touching[d]], sizes)
            opened, closed = np.outer(opened, opening).ravel(), np.outer(closed, closing).ravel()
        return opened, closed

    def open_voxels(self) -> np.ndarray:
        """Voxels of the chunks that are open while each window is added: int64, one number a window, in scan order."""
        opened, closed = self._events
        return np.cumsum(opened) - np.cumsum(closed) + closed

    def kept_voxels(self) -> np.ndarray:
        """Voxels of the chunks that are still open when each window has finished what it finishes."""
        opened, closed = self._events
        return np.cumsum(opened) - np.cumsum(closed)

    def peak_voxels(self) -> int:
        """The most voxels that are open at one time."""
        return int(self.open_voxels().max())

    def piece_count(self) -> int:
        """How often a window touches a chunk."""
        return prod(sum(map(len, touched)) for touched in self._touched)

    def window_voxels(self) -> int:
        """The most voxels of chunks that one window touches."""
        return prod(
            max(cuts[chunks[-1] + 1] - cuts[chunks[0]] for chunks in touched)
            for cuts, touched in zip(self.cuts, self._touched)
        )


def chunk_grids(
    windows: WindowGrid,
    image_size: Sequence[int],
    prediction_size: Sequence[int] | None = None,
    chunk_size: Sequence[int] | None = None,
    limited: bool = False,
) -> list[ChunkGrid]:
    """The ways to cut one output of the network into chunks, from few pieces of each window to many.

    Args:
        windows: the windows.
        image_size: spatial size of the image in voxels, before padding.
        prediction_size: spatial size of the network's output for one window in voxels, ``roi_size`` by default.
        chunk_size: spatial size of a chunk in output voxels; there is one way then. By default chunks end where windows
            start or end, which is where voxels become complete: with no cuts along the dimension in which windows
            advance first, or with cuts there too. Buffered, a chunk is as long as a buffer in the buffer's dimension,
        limited: unless memory is limited, when it may also end where any window does.

    Raises:
        ValueError: when a window does not predict a whole number of output voxels.
    """
    predicted = tuple(prediction_size or windows.roi_size)
    spans, sizes = [], []
    for d, (size, image, roi) in enumerate(zip(predicted, image_size, windows.roi_size)):
        # the rounding of zoomed outputs, of their windows and of what padding added is MONAI's
        zoom = size / float(roi)
        missing = padding((image,), (roi,))[0][0]
        full = int(windows.image_size[d] * zoom)
        crop, stop = 0, full
        if windows.image_size[d] > image:
            scale = full / roi
            crop, stop = round(missing * scale), min(round((missing + image) * scale), full)
        if stop <= crop:
            raise ValueError(f"no output voxel is left of the {image} voxels of spatial dimension {d} at zoom {zoom:g}")
        for start in windows.starts[d]:
            if int((start + roi) * zoom) - int(start * zoom) != size:
                raise ValueError(
                    f"the network maps {roi} voxels of spatial dimension {d} to {size}, and by rounding its window at "
                    f"{start} does not cover {size} output voxels; choose roi_size and overlap so that every window "
                    f"start times {size}/{roi} is an integer (starts: {_shorten(windows.starts[d])})"
                )
        spans.append(tuple((int(s * zoom) - crop, int((s + roi) * zoom) - crop) for s in windows.starts[d]))
        sizes.append(stop - crop)

    if chunk_size is not None:
        regular = tuple(tuple(range(0, size, chunk)) + (size,) for size, chunk in zip(sizes, chunk_size))
        return [ChunkGrid(windows, tuple(spans), regular)]

    fine = [_automatic_cuts(s, size) for s, size in zip(spans, sizes)]
    slowest, fastest = windows.order[0], windows.order[-1]
    coarse = list(fine)
    if windows.steps_per_buffer:
        starts = {start for start, _ in spans[slowest][:: windows.steps_per_buffer]}
        coarse[slowest] = (0, *sorted(start for start in starts if 0 < start < sizes[slowest]), sizes[slowest])
    uncut = list(coarse)
    if slowest != fastest or not windows.steps_per_buffer:
        uncut[fastest] = (0, sizes[fastest])
    ways = [uncut, coarse, fine] if limited else [uncut, coarse]
    return [ChunkGrid(windows, tuple(spans), tuple(cuts)) for cuts in ways]


def _automatic_cuts(spans: tuple[tuple[int, int], ...], size: int) -> tuple[int, ...]:
    """Cuts at every window start and end, where voxels become complete, or at some of them if these are very many."""
    cuts = sorted({cut for span in spans for cut in span if 0 < cut < size})
    inside = [bisect_left(cuts, stop) - bisect_right(cuts, start) for start, stop in spans]
    return (0, *cuts[:: ceil(max(inside) / MAX_CUTS_PER_WINDOW) or 1], size)


def _shorten(values: Sequence[int], most: int = 6) -> str:
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "")
