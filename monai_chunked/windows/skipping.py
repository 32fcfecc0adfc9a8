"""Which windows are skipped: by a mask, before anything is read, or by what is in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from monai_chunked.inputs.source import Source
from monai_chunked.plan.window_grid import Skipped, WindowGrid, inside

__all__ = ["AtMost", "Skip", "outside_mask"]

Skip = Callable[[torch.Tensor], Any]
"""From what the network would get of a window, ``(C, *roi_size)``, to whether it is skipped."""


class AtMost:
    """Skips windows without a voxel above a number. A window with NaN is not skipped.

    Args:
        number: the most that voxels may have.
    """

    def __init__(self, number: float) -> None:
        self.number = number

    def __call__(self, window: torch.Tensor) -> bool:
        return bool((window <= self.number).all())


def outside_mask(mask: Source, windows: WindowGrid, scratch_dir: str | os.PathLike[str] | None) -> Skipped:
    """The windows without a voxel of a mask.

    Args:
        mask: ``(B or 1, C, *spatial)``, of which a window at a time is read.
        windows: the windows over an image.
        scratch_dir: the folder for rows of the mask that are kept and do not fit in memory.
    """
    read, size = mask.reader(windows, scratch_dir), mask.shape[2:]
    skipped = np.empty((mask.shape[0], *windows.shape), bool)
    for run in windows.runs(mask.shape[0]):
        for window in run:
            box = tuple(map(inside, window.box, size, windows.least_size))
            skipped[(window.image, *window.position)] = not bool(read(window.image, box).any())
    return Skipped(skipped)


def is_skipped(skip: Skip, window: torch.Tensor) -> bool:
    """What the user's callable says of a window.

    Raises:
        TypeError: when that is no bool.
    """
    answer = skip(window)
    if isinstance(answer, (torch.Tensor, np.ndarray)) and answer.ndim == 0:
        answer = answer.item()
    if not isinstance(answer, (bool, np.bool_)):
        what = f"shape {tuple(answer.shape)}" if hasattr(answer, "shape") else repr(answer)
        raise TypeError(
            f"skip={skip!r} must return a bool for a window, True: the network need not see it; got {what} of type "
            f"{type(answer).__name__}"
        )
    return bool(answer)
