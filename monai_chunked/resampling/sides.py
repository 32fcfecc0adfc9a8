"""What is made along one dimension of a resampled grid, a few voxels at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from monai_chunked.resampling.axes import Axis, Resampling

__all__ = ["Side", "error_of", "nearly", "precision_of", "sides_of"]


SIDE = 32
"""The most voxels along a dimension that are read for a piece, so that what is made of them stays in cache."""


ERROR = {np.dtype(np.float64): 2.0**-46, np.dtype(np.float32): 2.0**-18}
"""The most that two ways to add up eight products in a dtype differ, relative to the greatest value: many roundings."""


class Side:
    """What is made along one dimension.

    Args:
        axis: the dimension.
        made: the voxels that are made.
        read: the voxels that they may need.

    Attributes:
        axis: of these voxels alone, counted from the first one that is read.
        outside: whether anything is made of zeros that are not there.
    """

    def __init__(self, axis: Axis, made: slice, read: slice) -> None:
        self.made = made
        self.read = read
        self.axis = axis.part(made, read)
        # the weight of a high voxel that is not there is 0, so only the low weight shows whether zeros are part of it
        beyond = (self.axis.low < 0) | ((self.axis.high < 0) & (self.axis.low_weight != 1))
        self.outside = bool(beyond.any())
        self._matrices: dict[type[np.floating], np.ndarray] = {}

    @property
    def nothing(self) -> np.ndarray:
        """Which voxels are made of nothing."""
        low, high = ((index < 0) | (weight == 0) for index, weight in self.axis.corners)
        return np.asarray(low & high)

    def matrix(self, precision: type[np.floating]) -> np.ndarray:
        """What makes the voxels, ``(made, read)``."""
        if precision not in self._matrices:
            matrix = np.zeros((len(self.axis), self.axis.size))
            for index, weight in self.axis.corners:
                at = np.flatnonzero((index >= 0) & (weight != 0))
                matrix[at, index[at]] += weight[at]
            self._matrices[precision] = matrix.astype(precision)
        return self._matrices[precision]


def sides_of(axis: Axis, made: slice, start: int) -> list[Side]:
    """Of what a chunk makes along a dimension, parts that read few voxels each.

    Args:
        axis: the dimension.
        made: the voxels that the chunk makes.
        start: where it begins in what is read.
    """
    return [Side(axis, *run) for run in _runs(axis, made, start)]


def nearly(sides: Sequence[Side], channel: Any, precision: Any) -> Any:
    """One channel of what is made along all dimensions, but for rounding: it adds up in another order than PyTorch.

    Args:
        sides: what is made along each dimension.
        channel: array or tensor of the voxels that are read, ``(*read)``.
        precision: dtype of the computation.

    Returns:
        ``(*made)``.
    """
    made: Any = channel.astype(precision) if isinstance(channel, np.ndarray) else channel.to(precision)
    last = len(sides) - 1
    for d in range(last, -1, -1):
        if isinstance(made, np.ndarray):
            matrix: Any = sides[d].matrix(precision)
        else:
            matrix = torch.from_numpy(sides[d].matrix(np.float64)).to(made.device)
        # stacks of products so small that no library shares them out to threads
        with np.errstate(invalid="ignore"):  # of what is not finite all is made exactly
            made = made @ matrix.T if d == last else (matrix @ made.swapaxes(d, last - 1)).swapaxes(d, last - 1)
    return made


def precision_of(resampling: Resampling) -> np.dtype:
    """The dtype that PyTorch computes in."""
    single = resampling.kind in ("nested", "mean")
    return np.dtype(np.float32) if single else resampling.axes[0].low_weight.dtype


def error_of(resampling: Resampling, precision: type[np.floating]) -> float:
    """The error of :py:func:`nearly` in that precision, relative to the greatest value."""
    rounding = max(ERROR[precision_of(resampling)], ERROR[np.dtype(precision)])
    return rounding + (0 if resampling.oblique is None else 8 * resampling.oblique.shift)


def _runs(axis: Axis, made: slice, start: int) -> list[tuple[slice, slice]]:
    """Voxels beside each other that are made along a dimension, and those that are read for them."""
    first, last = axis.first[made], axis.last[made]
    reading = last >= 0
    nearest = np.maximum.accumulate(np.where(reading, np.arange(len(last)), -1))
    if not reading.any():
        return [(made, slice(start, start))]
    nearest[nearest < 0] = int(np.flatnonzero(reading)[0])
    run = (last[nearest] - start) // SIDE
    borders = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(run)]
    result = []
    for low, high in itertools.pairwise(borders):
        here = reading[low:high]
        read = slice(start, start)
        if here.any():
            read = slice(int(first[low:high][here].min()), int(last[low:high].max()) + 1)
        result.append((slice(made.start + low, made.start + high), read))
    return result
