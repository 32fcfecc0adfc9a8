"""
The voxels of a part of a resampled grid, each to the last bit what PyTorch makes of the whole volume.

Interpolation is separable, so a part is made by a small matrix product along each dimension, in float64. That is fast,
but it adds up in another order than PyTorch. The difference is bounded, and matters only where the bound leaves open what
comes out: to which float32 number a score is rounded, or which class is the greatest. Such voxels, one in millions, are
computed once more from their corners, as PyTorch does it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from math import prod

import numpy as np
import torch

from monai_chunked.chunks.corners import at_corners
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.resampling import Axis, Part, Resampling

__all__ = ["Piece", "pieces"]


ERROR = {np.dtype(np.float64): 2.0**-46, np.dtype(np.float32): 2.0**-18}
"""The most that two ways to add up eight products differ, relative to the greatest value: many roundings."""


ROUNDING = 2.0**-22
"""Two float64 numbers that differ by more than this part of their size differ as float32 numbers too."""


SIDE = 32
"""The most voxels along a dimension that are read for a piece, so that what is made of them stays in cache."""


AT_ONCE = 2**20
"""The most voxels that are made of their corners at a time."""


class Piece:
    """A part of a resampled grid that is made at a time.

    Args:
        resampling: from which voxels to which.
        made: the voxels that are made, for each dimension that is read.
        read: the voxels that they may need.

    Attributes:
        size: of what is made, in the order of dimensions that are read.
    """

    def __init__(self, resampling: Resampling, made: Box, read: Box) -> None:
        self.resampling = resampling
        self.made = made
        self.read = read
        self.size = tuple(side.stop - side.start for side in made)

    def scores(self, values: torch.Tensor) -> torch.Tensor:
        """All channels.

        Args:
            values: of the voxels that are read, ``(C, *read)``.

        Returns:
            ``(C, *made)``, float32 where voxels are interpolated, else of the same dtype.
        """
        if not values[0].numel():
            return values.new_zeros((len(values), *self.size))
        if self.resampling.kind == "copy":
            return self._copies(values)
        result = torch.empty((len(values), *self.size), dtype=torch.float32, device=values.device)
        for channel, made in zip(values, result):
            if self._precision.itemsize == 8 and self.resampling.oblique is None:
                nearly = self._nearly(channel)
                # where all values have one sign the error is a part of the sum itself, which may be tiny
                size = nearly.abs() if channel.min() >= 0 else channel.abs().max()
                low, high = (nearly - size * self._error).float(), (nearly + size * self._error).float()
                made.copy_(low)
                open_ones = (low != high).nonzero()  # NaN too
            else:
                open_ones = torch.ones(self.size, dtype=torch.bool).nonzero()
            for some in open_ones.split(AT_ONCE):
                made[some.unbind(1)] = self._exact(channel[None], some)[0]
        return result

    def labels(self, values: torch.Tensor) -> torch.Tensor:
        """The class with the greatest score, as ``torch.argmax`` of :py:meth:`scores` says, int16.

        Interpolation is a mean with weights. So a class whose score is, at all corners, less than the mean of some other
        classes is nowhere the greatest, and is not looked at. Away from the borders of organs one class is left.

        Args:
            values: of the voxels that are read, ``(C, *read)``.

        Returns:
            ``(1, *made)``.
        """
        made = torch.zeros(self.size, dtype=torch.int16, device=values.device)
        if len(values) == 1 or not values[0].numel():
            return made[None]
        if self.resampling.kind == "copy":
            return self._copies(values).argmax(0, keepdim=True).to(torch.int16)
        largest = float(values.abs().max())
        if not largest < np.inf:  # or it is NaN
            return self.scores(values).argmax(0, keepdim=True).to(torch.int16)
        classes = _candidates(values, ROUNDING * largest)
        made.fill_(classes[0])
        if len(classes) == 1:
            return self._without_nothing(made)[None]
        chosen = values[classes]
        first = second = self._nearly(chosen[0])
        second = torch.full_like(first, -np.inf)
        for k, channel in enumerate(chosen[1:], 1):
            score = self._nearly(channel)
            made.masked_fill_(score > first, classes[k])
            second = torch.maximum(second, torch.minimum(first, score))
            first = torch.maximum(first, score)
        unsure = first - second <= (ROUNDING + 2 * self._error) * largest
        made = self._without_nothing(made)
        if self._nothing is not None:
            unsure &= ~self._nothing.to(unsure.device)
        numbers = torch.as_tensor(classes, dtype=made.dtype, device=made.device)
        for some in unsure.nonzero().split(max(1, AT_ONCE // len(classes))):
            made[some.unbind(1)] = numbers[self._exact(chosen, some).argmax(0)]
        return made[None]

    def at_least(self, values: torch.Tensor, threshold: float) -> torch.Tensor:
        """Whether scores reach a threshold, as :py:meth:`scores` ``>= threshold`` says, bool.

        Args:
            values: of the voxels that are read, ``(C, *read)``.
            threshold: one number.

        Returns:
            ``(C, *made)``.
        """
        if self.resampling.kind == "copy" or not values[0].numel():
            return self.scores(values) >= threshold
        result = torch.empty((len(values), *self.size), dtype=torch.bool, device=values.device)
        for channel, made in zip(values, result):
            least, most = float(channel.min()), float(channel.max())
            slack = (ROUNDING + self._error) * max(abs(least), abs(most), abs(threshold))
            # what is made of nothing is 0, and not a mean of what is there
            if self._outside is False and (most < threshold - slack or least > threshold + slack):
                made.fill_(least > threshold)
                continue
            nearly = self._nearly(channel)
            torch.ge(nearly, threshold, out=made)
            unsure = ~((nearly - threshold).abs() > slack)
            for some in unsure.nonzero().split(AT_ONCE):
                made[some.unbind(1)] = self._exact(channel[None], some)[0] >= threshold
        return result

    @cached_property
    def _axes(self) -> list[Axis]:
        """The axes of this piece alone; voxels are counted from the first one that is read."""
        return [
            axis.part(made, read) for axis, made, read in zip(self.resampling.axes, self.made, self.read)
        ]

    @property
    def _precision(self) -> np.dtype:
        """That PyTorch computes in."""
        single = self.resampling.kind in ("nested", "mean")
        return np.dtype(np.float32) if single else self.resampling.axes[0].low_weight.dtype

    @property
    def _error(self) -> float:
        """Of :py:meth:`_nearly`, relative to the greatest value."""
        oblique = self.resampling.oblique
        return ERROR[self._precision] + (0 if oblique is None else 8 * oblique.shift)

    @cached_property
    def _outside(self) -> bool:
        """Whether anything is made of zeros that are not there."""
        return any(bool((axis.low < 0).any() or ((axis.high < 0) & (axis.high_weight != 0)).any()) for axis in self._axes)

    @cached_property
    def _nothing(self) -> torch.Tensor | None:
        """The voxels that are made of nothing but zeros that are not there; ``None``: there is no such voxel."""
        each = [(axis.first < 0) for axis in self._axes]
        if not any(nothing.any() for nothing in each):
            return None
        found = torch.zeros(self.size, dtype=torch.bool)
        for d, nothing in enumerate(each):
            found |= torch.from_numpy(nothing).view([-1 if k == d else 1 for k in range(len(each))])
        return found

    def _without_nothing(self, labels: torch.Tensor) -> torch.Tensor:
        """What is made of nothing has the same score, 0, in all classes: the first one is the greatest."""
        return labels if self._nothing is None else labels.masked_fill(self._nothing.to(labels.device), 0)

    @cached_property
    def _matrices(self) -> list[torch.Tensor]:
        """For each dimension what makes its voxels, ``(made, read)``, float64."""
        return [_matrix(axis) for axis in self._axes]

    def _nearly(self, channel: torch.Tensor) -> torch.Tensor:
        """One channel, ``(*read)`` to ``(*made)`` in float64, up to the error."""
        made = channel.to(torch.float64)
        # the dimension that grows least comes first
        for d in sorted(range(made.dim()), key=lambda d: self.size[d] / channel.shape[d]):
            matrix = self._matrices[d].to(made.device)
            before, after = prod(made.shape[:d]), prod(made.shape[d + 1 :])
            shape = (*made.shape[:d], len(matrix), *made.shape[d + 1 :])
            made = made @ matrix.T if after == 1 else matrix @ made.reshape(before, -1, after)
            made = made.reshape(shape)
        return made

    def _copies(self, read: torch.Tensor) -> torch.Tensor:
        values = read
        for d, axis in enumerate(self._axes):
            index = torch.from_numpy(np.maximum(axis.low, 0)).to(values.device)
            values = values.index_select(d + 1, index)
        if self._outside:
            for d, axis in enumerate(self._axes):
                inside = torch.from_numpy(axis.low >= 0).to(values.device)
                shape = [-1 if k == d + 1 else 1 for k in range(values.dim())]
                values = torch.where(inside.view(shape), values, torch.zeros((), dtype=values.dtype, device=values.device))
        if self.resampling.oblique is not None:
            unsure = np.zeros(self.size, bool)
            for d, axis in enumerate(self._axes):
                unsure |= (axis.first != axis.last).reshape([-1 if k == d else 1 for k in range(len(self.size))])
            some = torch.from_numpy(np.argwhere(unsure))
            if len(some):
                values[(slice(None), *some.unbind(1))] = self._exact(read, some)
        return values

    def _exact(self, values: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        """Some voxels, as PyTorch makes them: ``(C, *read)`` to ``(C, voxels)``.

        Args:
            values: of the voxels that are read.
            some: the voxels that are made, ``(voxels, dims)``.
        """
        return at_corners(self.resampling, self.made, self.read, self._axes, values, some)


def pieces(resampling: Resampling, parts: Sequence[Part], starts: Sequence[int]) -> list[Piece]:
    """What a chunk makes, a piece at a time.

    Args:
        resampling: from which voxels to which.
        parts: what the chunk makes along each dimension.
        starts: where the chunk begins.
    """
    sides = [_runs(axis, part.made, start) for axis, part, start in zip(resampling.axes, parts, starts)]
    return [Piece(resampling, *zip(*each)) for each in itertools.product(*sides)]  # type: ignore[arg-type]


def _runs(axis: Axis, made: slice, start: int) -> list[tuple[slice, slice]]:
    """Voxels beside each other that are made along a dimension, and those that are read for them."""
    first, last = axis.first[made], axis.last[made]
    known = last >= 0
    nearest = np.maximum.accumulate(np.where(known, np.arange(len(last)), -1))
    if not known.any():
        return [(made, slice(start, start))]
    nearest[nearest < 0] = int(np.flatnonzero(known)[0])
    run = (last[nearest] - start) // SIDE
    borders = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(run)]
    result = []
    for low, high in itertools.pairwise(borders):
        here = known[low:high]
        read = slice(start, start)
        if here.any():
            read = slice(int(first[low:high][here].min()), int(last[low:high].max()) + 1)
        result.append((slice(made.start + low, made.start + high), read))
    return result


def _matrix(axis: Axis) -> torch.Tensor:
    matrix = np.zeros((len(axis), axis.size))
    for index, weight in ((axis.low, axis.low_weight), (axis.high, axis.high_weight)):
        at = np.flatnonzero((index >= 0) & (weight != 0))
        matrix[at, index[at]] += weight[at]
    return torch.from_numpy(matrix)


def _candidates(values: torch.Tensor, slack: float) -> list[int]:
    """The classes that may be the greatest of a mean of voxels.

    Args:
        values: ``(C, *read)``, finite.
        slack: by how much scores must differ at the corners so that the means do, whatever rounding does.
    """
    greatest = values.amax(0)
    tied = greatest == values.amin(0)  # all classes are the same: the first one counts
    present = ((values == greatest) & ~tied).flatten(1).any(1)
    present[0] |= tied.any()
    mean = values[present].mean(0)
    above = (values - mean).flatten(1).amax(1)
    kept = present | (above >= -slack)
    if int(present.sum()) == 1:
        # it is not less than any other class at any corner. Sums of products keep that, and of equal ones the first
        # counts, so that only classes before it matter
        kept[int(present.nonzero()) + 1 :] = False
    return [int(k) for k in kept.nonzero()]
