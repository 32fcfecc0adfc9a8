"""Which windows are known to be skipped before the first one is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from monai_chunked.plan.window_grid import Window

__all__ = ["Skipped", "batches_without"]


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
