"""
Single voxels of a resampled grid, made of their corners exactly as PyTorch makes them.

The order of products and sums is that of ``grid_sampler_3d``, of ``upsample_trilinear3d`` and of
``adaptive_avg_pool3d`` in PyTorch's ``aten/src/ATen/native``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from monai_chunked.plan.boxes import Box
from monai_chunked.resampling.axes import Axis, Resampling
from monai_chunked.resampling.oblique import Oblique

__all__ = ["at_corners", "coordinates", "multiply_add"]


MANY = 64
"""Rows that make a product no small one: below 400 multiplications PyTorch has a loop of its own."""


Corner = tuple[torch.Tensor, torch.Tensor]
"""For each voxel a place along a dimension, -1 where there is none, and its weight."""


def at_corners(
    resampling: Resampling,
    made: Box,
    read: Box,
    *,
    axes: Sequence[Axis],
    values: torch.Tensor,
    voxels: torch.Tensor,
    channels: torch.Tensor | slice,
) -> torch.Tensor:
    """Single voxels of a part of a grid.

    Args:
        resampling: from which voxels to which.
        made, read: the part, for each dimension that is read.
        axes: of this part, counted from where it is read.
        values: of the voxels that are read, ``(C, *read)``.
        voxels: which ones, ``(voxels, dims)``, counted from where the part begins.
        channels: one for each voxel, ``(voxels,)``, or a slice of them for all.

    Returns:
        ``(voxels,)`` or ``(C, voxels)``, float32 where voxels are interpolated.
    """
    device = values.device
    at = voxels.cpu().numpy().T
    if resampling.oblique is None:
        corners = [[(index[k], weight[k]) for index, weight in axis.corners] for axis, k in zip(axes, at)]
    else:
        in_grid = [k + side.start for k, side in zip(at, made)]
        places = coordinates(resampling.oblique, in_grid, resampling.frame)
        around = resampling.oblique.corners(places, resampling.frame, resampling.kind == "copy")
        corners = [
            [(np.where(index < 0, -1, index - side.start), weight) for index, weight in pair]
            for pair, side in zip(around, read)
        ]
    tensors = [[(torch.from_numpy(i).to(device), torch.from_numpy(w).to(device)) for i, w in pair] for pair in corners]
    inorder = [tensors[d] for d in resampling.frame]
    reader = _Reader(values, channels, resampling.frame)
    return COMBINE[resampling.kind](reader, inorder)


def coordinates(oblique: Oblique, voxels: Sequence[np.ndarray], frame: Sequence[int]) -> np.ndarray:
    """Normalised coordinates of voxels, ``(voxels, dims)``, by the product that ``affine_grid`` makes of all of them.

    It is rounded once for each addend where a processor can, but not where it is so small that PyTorch loops over it.
    """
    points = oblique.points(voxels, frame)
    count = len(points)
    more = max(0, min(oblique.voxels, MANY) - count)
    rows = torch.from_numpy(np.concatenate([points, np.zeros_like(points, shape=(more, points.shape[1]))]))
    return rows[None].bmm(torch.from_numpy(oblique.theta)[None].transpose(1, 2))[0, :count].numpy()


class _Reader:
    """Reads corners, whose places are in the order of the frame."""

    def __init__(self, values: torch.Tensor, channels: torch.Tensor | slice, frame: Sequence[int]) -> None:
        self.values = values
        self.channels = channels
        self.frame = frame

    def __call__(self, places: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Values, ``(voxels,)`` or ``(C, voxels)``, and for which voxels there are any, ``(voxels,)``."""
        there = torch.stack([place >= 0 for place in places]).all(0)
        index: list[torch.Tensor] = list(places)
        for place, d in zip(places, self.frame):
            index[d] = place.clamp(min=0)
        return self.values[(self.channels, *index)], there


def _product(read: _Reader, corners: Sequence[Sequence[Corner]]) -> torch.Tensor:
    total: torch.Tensor | None = None
    dtype = corners[0][0][1].dtype
    for corner in itertools.product(*corners):
        values, there = read([place for place, _ in corner])
        weight = corner[-1][1]
        for _, along in reversed(corner[:-1]):
            weight = weight * along
        term = torch.where(there, values.to(dtype) * weight, torch.zeros((), dtype=dtype, device=weight.device))
        total = term if total is None else total + term
    assert total is not None
    return total.to(torch.float32)


def _copy(read: _Reader, corners: Sequence[Sequence[Corner]]) -> torch.Tensor:
    values, there = read([low for (low, _), _ in corners])
    return torch.where(there, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _nested(read: _Reader, corners: Sequence[Sequence[Corner]], places: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    if not corners:
        values, there = read(places)
        return torch.where(there, values.float(), torch.zeros((), device=values.device))
    (low, low_weight), (high, high_weight) = corners[0]
    at_low = _nested(read, corners[1:], (*places, low))
    at_high = _nested(read, corners[1:], (*places, high))
    return multiply_add(at_low, low_weight.float(), at_high * high_weight.float())


def multiply_add(value: torch.Tensor, weight: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """``value * weight + more`` in float32, rounded once."""
    product, added = value.double() * weight.double(), more.double()  # the product is exact
    total = product + added
    part = total - product
    lost = (product - (total - part)) + (added - part)
    # rounding to float64 must not hide on which side of the middle between two float32 numbers the sum lies
    even = (total.view(torch.int64) & 1) == 0
    toward = torch.where(lost > 0, torch.inf, -torch.inf).to(total)
    total = torch.where((lost != 0) & even, torch.nextafter(total, toward), total)
    return total.float()


def _mean(read: _Reader, corners: Sequence[Sequence[Corner]]) -> torch.Tensor:
    total = torch.zeros((), device=read.values.device)
    for corner in itertools.product(*corners):
        values, there = read([place for place, _ in corner])
        there = there & torch.stack([weight != 0 for _, weight in corner]).all(0)
        total = torch.where(there, total + values.float(), total)
    for (_, weight), _ in corners:
        total = total / torch.where(weight == 1, 1.0, 2.0).to(total)
    return total


COMBINE = {"product": _product, "copy": _copy, "nested": _nested, "mean": _mean}
"""What makes voxels of their corners, by the kind of a resampling."""
