"""Which windows the network sees, in which order and batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import NamedTuple, TypeVar

import numpy as np
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from monai_chunked.plan.boxes import Box

__all__ = ["Window", "WindowGrid", "padding", "window_grid"]


Side = TypeVar("Side")


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
        return self.in_scan_order([range(size) for size in self.shape])

    def in_scan_order(self, each: Sequence[Sequence[Side]]) -> Iterator[tuple[Side, ...]]:
        """All that can be made of one thing for each dimension, as windows are; each of them in order of dimensions."""
        combined = itertools.product(*[each[d] for d in self.order])
        if list(self.order) == sorted(self.order):
            return combined
        inverse = np.argsort(self.order).tolist()
        return (tuple([one[k] for k in inverse]) for one in combined)

    def batch_count(self, images: int, sw_batch_size: int) -> int:
        """Number of batches."""
        if not self.steps_per_buffer:
            return ceil(images * len(self) / sw_batch_size)
        steps = self.shape[self.order[0]]
        layer = len(self) // steps
        lengths = (min(self.steps_per_buffer, steps - k) for k in range(0, steps, self.steps_per_buffer))
        return images * sum(ceil(layer * length / sw_batch_size) for length in lengths)

    def batches(self, images: int, sw_batch_size: int) -> Iterator[list[Window]]:
        """Windows as the network gets them, if none is skipped.

        As in MONAI a batch runs over from one image to the next, except when buffered, where it ends with the buffer.
        """
        for run in self.runs(images):
            while batch := list(itertools.islice(run, sw_batch_size)):
                yield batch

    def runs(self, images: int) -> Iterator[Iterator[Window]]:
        """All windows in scan order, in the runs that no batch runs across. Take each before the next one."""
        sides = [[slice(s, s + roi) for s in starts] for starts, roi in zip(self.starts, self.roi_size)]
        windows = (
            Window(image, position, box)
            for image in range(images)
            for position, box in zip(self.positions(), self.in_scan_order(sides))
        )
        slowest = self.order[0]
        runs = itertools.groupby(
            windows,
            lambda w: (w.image, w.position[slowest] // self.steps_per_buffer) if self.steps_per_buffer else None,
        )
        return (run for _, run in runs)


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
