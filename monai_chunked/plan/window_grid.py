"""Which windows the network sees, in which order and batches, and which of them are known to be skipped."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeVar

import numpy as np
from monai.utils import ensure_tuple_rep

from monai_chunked.plan.borders import BORDERS, Span
from monai_chunked.plan.boxes import Box

__all__ = ["Skipped", "Window", "WindowGrid", "batches_without", "inside", "padding", "window_grid"]


Side = TypeVar("Side")


class Window(NamedTuple):
    """One ``roi_size`` box of one image, or less where windows are cut.

    Attributes:
        image: index in the input batch.
        position: in the window grid, one integer for each spatial dimension.
        box: the voxels that the network sees, in the (padded) image.
    """

    image: int
    position: tuple[int, ...]
    box: Box


@dataclass(frozen=True)
class WindowGrid:
    """The windows over one image, in MONAI's order.

    Attributes:
        image_size: spatial size of the image in voxels, padded to at least ``roi_size``.
        roi_size: spatial size of a window that is not cut, in voxels.
        spans: for each dimension and window index, the voxels ``(start, stop)``; both ascending.
        order: the dimensions from the one along which windows advance last to the one along which they advance first.
        steps_per_buffer: how many steps along ``order[0]`` a batch of windows must not run across; 0: no limit.
        least_size: the size that smaller images are padded to: ``roi_size``, unless windows are cut.
        nearest_only: whether of a prediction only those voxels count that are nearer to the centre of its window than
            to that of any other window over them.
    """

    image_size: tuple[int, ...]
    roi_size: tuple[int, ...]
    spans: tuple[tuple[Span, ...], ...]
    order: tuple[int, ...]
    steps_per_buffer: int
    least_size: tuple[int, ...]
    nearest_only: bool

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """For each dimension, where windows start; ascending."""
        return tuple(tuple(start for start, _ in spans) for spans in self.spans)

    @cached_property
    def lengths(self) -> tuple[tuple[int, ...], ...]:
        """For each dimension, the sizes of windows."""
        return tuple(tuple(stop - start for start, stop in spans) for spans in self.spans)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of windows along each dimension."""
        return tuple(map(len, self.spans))

    def __len__(self) -> int:
        return prod(self.shape)

    def positions(self, numbers: range | None = None) -> Iterator[tuple[int, ...]]:
        """Positions of the windows of one image in scan order, of all or of a range of them."""
        positions = self.in_scan_order([range(size) for size in self.shape])
        return positions if numbers is None else itertools.islice(positions, numbers.start, numbers.stop)

    def in_scan_order(self, sides: Sequence[Sequence[Side]]) -> Iterator[tuple[Side, ...]]:
        """All combinations of a side for each dimension, in the order of windows, each in the order of dimensions."""
        combined = itertools.product(*[sides[d] for d in self.order])
        if list(self.order) == sorted(self.order):
            return combined
        inverse = np.argsort(self.order).tolist()
        return (tuple([combination[k] for k in inverse]) for combination in combined)

    def number(self, position: Sequence[int]) -> int:
        """How many windows of an image come before the one at a position."""
        number = 0
        for d in self.order:
            number = number * self.shape[d] + position[d]
        return number

    def position(self, number: int) -> tuple[int, ...]:
        """The position of the window with this number in its image."""
        position = [0] * len(self.order)
        for d in reversed(self.order):
            number, position[d] = divmod(number, self.shape[d])
        return tuple(position)

    def by_image(self, numbers: range) -> Iterator[tuple[int, range]]:
        """A range of windows over all images as a range of the windows of each image."""
        for image in range(numbers.start // len(self), -(-numbers.stop // len(self))):
            first = image * len(self)
            yield image, range(max(numbers.start - first, 0), min(numbers.stop - first, len(self)))

    def batches(self, images: int, sw_batch_size: int) -> Iterator[list[Window]]:
        """Windows as the network gets them, if none is skipped.

        As in MONAI a batch runs over from one image to the next, except when buffered, where it ends with the buffer.
        Windows of one batch are of one size.
        """
        for run in self.runs(images):
            while batch := list(itertools.islice(run, sw_batch_size)):
                yield batch

    def runs(self, images: int, numbers: range | None = None) -> Iterator[Iterator[Window]]:
        """Windows in scan order, in the runs that no batch runs across. Take each before the next one.

        Args:
            images: number of images in the input batch.
            numbers: the windows, counted over all images; ``None``: all.
        """
        sides = [[slice(*span) for span in spans] for spans in self.spans]
        windows = (
            Window(image, position, box)
            for image in range(images)
            for position, box in zip(self.positions(), self.in_scan_order(sides))
        )
        lengths = self.run_lengths(images)
        if numbers is None:
            return (itertools.islice(windows, run) for run in lengths.tolist())
        ends = np.append(0, np.cumsum(lengths)).clip(numbers.start, numbers.stop)
        chosen = itertools.islice(windows, numbers.start, numbers.stop)
        return (itertools.islice(chosen, run) for run in np.diff(ends).tolist() if run)

    def run_lengths(self, images: int) -> np.ndarray:
        """How many windows follow each other that may be in one batch: of one size, and of one buffer of one image."""
        kind = np.arange(images) if self.steps_per_buffer else np.zeros(images, np.int64)
        for d in self.order:
            kinds = np.unique(self.lengths[d], return_inverse=True)[1]
            if d == self.order[0] and self.steps_per_buffer:
                kinds = kinds + len(kinds) * (np.arange(len(kinds)) // self.steps_per_buffer)
            kind = np.add.outer(kind * (int(kinds.max()) + 1), kinds).ravel()
        borders = np.flatnonzero(np.diff(kind)) + 1
        return np.diff([0, *borders.tolist(), len(kind)])


def padding(image_size: Sequence[int], roi_size: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels added before and after each dimension so that a window fits.

    >>> padding((10, 64), (32, 32))
    [(11, 11), (0, 0)]
    """
    missing = [max(r - i, 0) for i, r in zip(image_size, roi_size)]
    return [(m // 2, m - m // 2) for m in missing]


def inside(window: slice, size: int, least: int) -> slice:
    """Along one dimension, the voxels of an image in a window over that image padded to a least size.

    >>> inside(slice(0, 32), 10, 32), inside(slice(5, 37), 64, 32)
    (slice(0, 10, None), slice(5, 37, None))
    """
    before = padding((size,), (least,))[0][0]
    return slice(max(window.start - before, 0), min(window.stop - before, size))


def window_grid(
    image_size: Sequence[int],
    roi_size: Sequence[int],
    overlap: Sequence[float],
    *,
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
    border: Sequence[str] | str = "edge",
    min_size: Sequence[int] | int | None = None,
    nearest_only: bool = False,
) -> WindowGrid:
    """Lay windows over an image that is padded where it is smaller than a window.

    Args:
        image_size: spatial size of the image in voxels, before padding.
        roi_size: spatial size of a window in voxels.
        overlap: overlap of neighbouring windows for each dimension, in [0, 1).
        buffer_steps: as in MONAI: if positive, windows advance along ``buffer_dim`` last, and batches end every
            ``buffer_steps`` steps.
        buffer_dim: a spatial dimension.
        border: what becomes of windows that would reach over the border, one of ``BORDERS`` or one for each dimension.
        min_size: where windows are cut, the least size of one, for each dimension or all; 1 by default.
        nearest_only: whether of a prediction only those voxels count that are nearest to the centre of its window.

    >>> window_grid((100, 40), (48, 48), (0.5, 0.5)).starts
    ((0, 24, 48, 52), (0,))
    """
    dims = len(image_size)
    borders, roi = ensure_tuple_rep(border, dims), tuple(int(r) for r in roi_size)
    cut = ensure_tuple_rep(1 if min_size is None else min_size, dims)
    least = tuple(int(c) if b == "adaptive" else r for b, c, r in zip(borders, cut, roi))
    size = tuple(max(int(i), c) for i, c in zip(image_size, least))
    spans = tuple(tuple(BORDERS[name](n, r, o, c)) for name, n, r, o, c in zip(borders, size, roi, overlap, least))
    steps = max(int(buffer_steps or 0), 0)
    slowest = buffer_dim % dims if steps else 0
    order = (slowest, *(d for d in range(dims) if d != slowest))
    return WindowGrid(size, tuple(map(min, roi, size)), spans, order, steps, least, nearest_only)


@dataclass(frozen=True)
class Skipped:
    """The windows that are skipped, of every image.

    Attributes:
        each: for each image, or for all of them alike, which windows of the grid: bool, ``(images or 1, *grid)``.
    """

    each: np.ndarray

    def window(self, image: int, position: tuple[int, ...]) -> bool:
        """Whether a window is skipped."""
        return bool(self.each[(min(image, len(self.each) - 1), *position)])

    def count(self, images: int) -> int:
        """How many windows of so many images are skipped."""
        return int(self.each.sum()) * (images // len(self.each))


def batches_without(
    run: Iterable[Window], skipped: Skipped | None, sw_batch_size: int
) -> Iterator[tuple[list[Window], list[Window]]]:
    """Windows, and those of them that the network gets as one batch: windows that are predicted fill the batches.

    Args:
        run: windows in scan order that no batch runs across.
        skipped: those that are skipped.
        sw_batch_size: how many windows the network gets at a time.
    """
    windows: list[Window] = []
    batch: list[Window] = []
    for window in run:
        windows.append(window)
        if skipped is None or not skipped.window(window.image, window.position):
            batch.append(window)
        if len(batch) == sw_batch_size:
            yield windows, batch
            windows, batch = [], []
    if windows:
        yield windows, batch
