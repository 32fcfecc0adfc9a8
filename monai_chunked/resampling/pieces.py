"""
The voxels of a part of a resampled grid, each to the last bit what PyTorch makes of the whole volume.

Interpolation is separable, so a part is made by a small matrix product along each dimension. That is fast, but it adds
up in another order than PyTorch. The difference is bounded, and matters only where the bound leaves open what comes
out: to which float32 number a score is rounded, or which class is the greatest. Such voxels are computed once more from
their corners, as PyTorch does it. They are few, unless weights are simple fractions; then all voxels are computed so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch

from monai_chunked.plan.boxes import Box
from monai_chunked.resampling.axes import Axis, AxisPart, Resampling
from monai_chunked.resampling.candidates import candidates
from monai_chunked.resampling.corners import at_corners
from monai_chunked.resampling.sides import Side, error_of, nearly, precision_of, sides_of
from monai_chunked.resampling.whole_pieces import can_be_whole, make_whole

__all__ = ["Piece", "pieces"]


ROUNDING = 2.0**-22
"""Two float64 numbers that differ by more than this part of their size differ as float32 numbers too."""


SMALLEST = 2.0**-149
"""How far apart float32 numbers next to 0 lie."""


AT_ONCE = 2**20
"""The most voxels that are made of their corners at a time."""


MANY = 1 / 12
"""A voxel that is made of its corners alone takes about twelve times as long as one of all that are made at once."""


class Piece:
    """A part of a resampled grid that is made at a time.

    On a CPU all is done by NumPy in the thread that asks, on a device by PyTorch: the functions that are called have
    the same names in both (``library``). NumPy is faster on a CPU: so few voxels are not worth sharing out to threads.

    Args:
        resampling: from which voxels to which.
        sides: what is made along each dimension that is read.

    Attributes:
        made: the voxels that are made, for each dimension that is read.
        read: the voxels that they may need.
        size: of what is made, in the order of dimensions that are read.
    """

    def __init__(self, resampling: Resampling, sides: Sequence[Side]) -> None:
        self.resampling = resampling
        self.sides = sides
        self.made: Box = tuple(side.made for side in sides)
        self.read: Box = tuple(side.read for side in sides)
        self.size = tuple(side.made.stop - side.made.start for side in sides)

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
        bounded = precision_of(self.resampling).itemsize == 8 and self.resampling.oblique is None
        unsure = torch.ones(result.shape, dtype=torch.bool, device=values.device)
        for number, channel in enumerate(values if bounded else ()):
            unsure[number] = self._rounded(channel, result[number])
            if _are_many(unsure[number]):  # as with weights of nearly a half; then they are in the other channels too
                break
        self._settle(values, unsure, result)
        return result

    def labels(self, values: torch.Tensor) -> torch.Tensor:
        """The class with the greatest score, as ``torch.argmax`` of :py:meth:`scores` says, int32.

        Interpolation is a mean with weights. So a class whose score is, at all corners, less than the mean of some
        other classes is nowhere the greatest, and is not looked at. Away from the borders of organs one class is left.

        Args:
            values: of the voxels that are read, ``(C, *read)``.

        Returns:
            ``(1, *made)``.
        """
        if len(values) == 1 or not values[0].numel():
            return torch.zeros((1, *self.size), dtype=torch.int32, device=values.device)
        if self.resampling.kind == "copy":
            return self._copies(values).argmax(0, keepdim=True).to(torch.int32)
        library, arrays = _arrays(values)
        largest = max(float(arrays.max()), -float(arrays.min()))
        # of what may be made of nothing, so that all scores are 0, axes say too little where coordinates are not exact
        doubtful = self.resampling.oblique is not None and self._outside
        if doubtful or not largest < np.inf:  # or it is NaN
            return self.scores(values).argmax(0, keepdim=True).to(torch.int32)
        classes = candidates(library, arrays, ROUNDING * largest)
        if len(classes) == 1:
            made = torch.full(self.size, classes[0], dtype=torch.int32, device=values.device)
            return self._without_nothing(made)[None]
        greatest, margin = self._greatest(library, arrays, classes)
        unsure = torch.as_tensor(margin <= (ROUNDING + 2 * error_of(self.resampling, np.float32)) * largest)
        made = self._without_nothing(torch.as_tensor(greatest))
        if self._nothing is not None:
            unsure &= ~self._nothing.to(unsure.device)
        numbers = torch.as_tensor(classes, dtype=made.dtype, device=made.device)
        for places in _places(unsure, max(1, AT_ONCE // len(classes))):
            made[places.unbind(1)] = numbers[self.exact(values[classes], places).argmax(0)]
        return made[None]

    def at_least(self, values: torch.Tensor, threshold: float) -> torch.Tensor:
        """Whether scores reach a threshold, as :py:meth:`scores` ``>= threshold`` says, bool.

        Args:
            values: of the voxels that are read, ``(C, *read)``.
            threshold: one number.

        Returns:
            ``(C, *made)``.
        """
        return self.scores_within(values, threshold, threshold) >= threshold

    def scores_within(self, values: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """As :py:meth:`scores` where these lie between two numbers; elsewhere any others on the same side of them.

        Args:
            values: of the voxels that are read, ``(C, *read)``.
            low, high: numbers.

        Returns:
            ``(C, *made)``.
        """
        if self.resampling.kind == "copy" or not values[0].numel():
            return self.scores(values)
        result = torch.empty((len(values), *self.size), dtype=torch.float32, device=values.device)
        unsure = torch.zeros(result.shape, dtype=torch.bool, device=values.device)
        library, arrays = _arrays(values)
        precision = library.float32 if library is np else library.float64  # a device may round float32 as it likes
        for array, made, doubted in zip(arrays, result, unsure):
            least, most = float(array.min()), float(array.max())
            largest = max(abs(least), abs(most), abs(low), abs(high))
            slack = (ROUNDING + error_of(self.resampling, np.float32)) * largest + SMALLEST
            # a mean lies between the least and the greatest; what is partly made of nothing need not
            if not self._outside and (most < low - slack or least > high + slack):
                made.fill_(least)
                continue
            near = nearly(self.sides, array, precision)
            made.copy_(torch.as_tensor(near))
            doubted.copy_(torch.as_tensor(~((near < low - slack) | (near > high + slack))))  # NaN too
        self._settle(values, unsure, result)
        return result

    def _settle(self, values: torch.Tensor, unsure: torch.Tensor, result: torch.Tensor) -> None:
        """Make the unsure voxels exactly, and all voxels from the first to the last channel that has many of them."""
        whole = can_be_whole(self.resampling)
        many = [number for number, channel in enumerate(unsure) if whole and _are_many(channel)]
        if many:
            channels = slice(many[0], many[-1] + 1)
            make_whole(self.resampling, self._axes, values[channels], result[channels])
            unsure[channels] = False
        for places in _places(unsure, AT_ONCE):
            result[places.unbind(1)] = self.exact(values, places[:, 1:], places[:, 0])

    def _rounded(self, channel: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """One channel in float32, and the voxels whose rounding the error leaves open."""
        library, array = _arrays(channel)
        near = nearly(self.sides, array, library.float64)
        # where all values have one sign the error is a part of the sum itself, which may be tiny
        error = error_of(self.resampling, np.float64) * (near if float(array.min()) >= 0 else library.abs(array).max())
        with np.errstate(invalid="ignore"):
            low, high = _single(near - error), _single(near + error)
        made.copy_(torch.as_tensor(low))
        return torch.as_tensor(low != high)  # NaN too

    def _greatest(self, library: ModuleType, arrays: Any, classes: Sequence[int]) -> tuple[Any, Any]:
        """Of some classes the one with the greatest score, up to the error, and by how much it is greater."""
        precision = library.float32 if library is np else library.float64  # a device may round float32 as it likes
        first, second = nearly(self.sides, arrays[classes[0]], precision), None
        greatest = library.full_like(first, classes[0], dtype=library.int32)
        for label in classes[1:]:
            score = nearly(self.sides, arrays[label], precision)
            greatest = library.where(score > first, label, greatest)
            less = library.minimum(first, score)
            second = less if second is None else library.maximum(second, less)
            first = library.maximum(first, score)
        return greatest, first - second

    @property
    def _axes(self) -> list[Axis]:
        return [side.axis for side in self.sides]

    @property
    def _outside(self) -> bool:
        """Whether anything is made of zeros that are not there."""
        return any(side.outside for side in self.sides)

    @cached_property
    def _nothing(self) -> torch.Tensor | None:
        """The voxels that are made of nothing but zeros that are not there; ``None``: there is no such voxel."""
        if not self._outside:
            return None
        sides = [side.nothing for side in self.sides]
        if not any(along.any() for along in sides):
            return None
        nothing = torch.zeros(self.size, dtype=torch.bool)
        for d, along in enumerate(sides):
            nothing |= torch.from_numpy(along).view([-1 if k == d else 1 for k in range(len(sides))])
        return nothing

    def _without_nothing(self, labels: torch.Tensor) -> torch.Tensor:
        """What is made of nothing has the same score, 0, in all classes: the first one is the greatest."""
        return labels if self._nothing is None else labels.masked_fill(self._nothing.to(labels.device), 0)

    def _copies(self, read: torch.Tensor) -> torch.Tensor:
        values = read
        for d, axis in enumerate(self._axes):
            index = torch.from_numpy(np.maximum(axis.low, 0)).to(values.device)
            values = values.index_select(d + 1, index)
        if self._outside:
            for d, axis in enumerate(self._axes):
                inside = torch.from_numpy(axis.low >= 0).to(values.device)
                shape = [-1 if k == d + 1 else 1 for k in range(values.dim())]
                values = torch.where(inside.view(shape), values, values.new_zeros(()))
        if self.resampling.oblique is not None:
            unsure = np.zeros(self.size, bool)
            for d, axis in enumerate(self._axes):
                doubt = (axis.first != axis.last) | (axis.low != axis.high)
                unsure |= doubt.reshape([-1 if k == d else 1 for k in range(len(self.size))])
            places = torch.from_numpy(np.argwhere(unsure))
            if len(places):
                for channel, made in zip(self.exact(read, places), values):
                    made[places.unbind(1)] = channel
        return values

    def exact(self, values: torch.Tensor, voxels: torch.Tensor, channels: torch.Tensor | None = None) -> torch.Tensor:
        """Single voxels, as PyTorch makes them.

        Args:
            values: of the voxels that are read, ``(C, *read)``.
            voxels: that are made, ``(voxels, dims)``.
            channels: of each of them, ``(voxels,)``; ``None``: all.

        Returns:
            ``(voxels,)``, or ``(C, voxels)``.
        """
        where = slice(None) if channels is None else channels.to(values.device)
        return at_corners(
            self.resampling, self.made, self.read, axes=self._axes, values=values, voxels=voxels, channels=where
        )


def pieces(resampling: Resampling, parts: Sequence[AxisPart], starts: Sequence[int]) -> list[Piece]:
    """What a chunk makes, a piece at a time.

    Args:
        resampling: from which voxels to which.
        parts: what the chunk makes along each dimension.
        starts: where the chunk begins.
    """
    sides = [sides_of(axis, part.made, start) for axis, part, start in zip(resampling.axes, parts, starts)]
    return [Piece(resampling, combined) for combined in itertools.product(*sides)]


def _are_many(mask: torch.Tensor) -> bool:
    """Whether it takes longer to make the voxels of a mask one by one than to make all."""
    return int(mask.count_nonzero()) > MANY * mask.numel()


def _places(mask: torch.Tensor, most: int) -> Sequence[torch.Tensor]:
    """Where a mask is true, ``(voxels, dims)``, so many voxels at a time."""
    return mask.nonzero().split(most) if mask.any() else ()


def _arrays(values: torch.Tensor) -> tuple[ModuleType, Any]:
    """The library that computes, and the same voxels in it."""
    return (np, values.numpy()) if values.device.type == "cpu" else (torch, values)


def _single(values: Any) -> Any:
    return values.astype(np.float32) if isinstance(values, np.ndarray) else values.float()
