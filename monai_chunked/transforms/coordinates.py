"""
Where PyTorch's ``grid_sample`` and ``interpolate`` read, along each dimension, to the last bit.

The formulas are those of ``torch.nn.functional.affine_grid``, ``grid_sample`` and ``interpolate``. A volume of
coordinates is not needed: without rotation a coordinate depends on the place in its own dimension alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import numpy as np
import torch
import torch.nn.functional as F

from monai_chunked.resampling.axes import Axis, Kind, Unstreamable
from monai_chunked.resampling.oblique import Oblique, source_places

__all__ = ["grid_sample_axes", "interpolate_axes"]


NEAREST = 1
"""How ``grid_sample`` numbers nearest voxels; 0 is linear."""


MOST = 0.25
"""The most voxels that a rotation may move coordinates by."""


def grid_sample_axes(
    theta: torch.Tensor,
    size: Sequence[int],
    made: Sequence[int],
    mode: int,
    padding_mode: int,
    align_corners: bool,
) -> tuple[list[Axis], Kind, Oblique | None]:
    """What ``grid_sample`` reads with the coordinates of ``affine_grid``.

    Args:
        theta: normalised affine, ``(dims, dims + 1)``, the last dimension first.
        size: spatial size of what is read.
        made: spatial size of what is made.
        mode, padding_mode: as ``grid_sample`` numbers them.
        align_corners: as in ``grid_sample``.

    Raises:
        Unstreamable: when there is a rotation.
    """
    dims = len(size)
    turns = theta[:, :dims].abs()
    turns.fill_diagonal_(0)
    shifts = [float(turns[dims - 1 - d].sum()) * size[d] / 2 for d in range(dims)]
    rounding = [1e-9 + 8 * torch.finfo(theta.dtype).eps * n for n in size]
    if max(shifts) > MOST:
        raise Unstreamable("it turns the volume by an angle")
    base = [_normalised(n, align_corners, theta.dtype) for n in made]
    rows = theta.numpy()
    axes = []
    for d, n in enumerate(size):
        row = rows[dims - 1 - d]
        at = source_places(base[d] * row[dims - 1 - d] + row[dims], n, padding_mode, align_corners)
        slack = shifts[d] + rounding[d] if max(shifts) else 0.0
        axes.append(_nearest(at, n, slack) if mode == NEAREST else _between(at, n, slack))
    oblique = None
    if max(shifts):
        index = tuple(np.arange(n) for n in size)
        beyond = padding_mode, align_corners
        oblique = Oblique(rows, tuple(base), index, prod(made), *beyond, max(shifts) + max(rounding))
    return axes, "copy" if mode == NEAREST else "product", oblique


def interpolate_axes(
    size: Sequence[int], made: Sequence[int], mode: str, *, align_corners: bool, dtype: torch.dtype
) -> tuple[list[Axis], Kind]:
    """What ``interpolate`` reads.

    Raises:
        Unstreamable: when a mean is taken of more than two voxels in a dimension, or not in float32.
    """
    if mode.startswith("nearest"):
        axes = []
        for n, m in zip(size, made):
            # the scale is rounded to float32 but for float64
            line = torch.arange(n, dtype=torch.float64 if dtype == torch.float64 else torch.float32)[None, None]
            index = F.interpolate(line, size=m, mode=mode)[0, 0].to(torch.int64).numpy()
            axes.append(Axis.copy(index, n))
        return axes, "copy"
    if dtype != torch.float32:
        raise Unstreamable(f"it interpolates in {dtype}")
    if mode == "area":
        return [_mean(n, m) for n, m in zip(size, made)], "mean"
    return [_linear(n, m, align_corners) for n, m in zip(size, made)], "nested"


def _normalised(size: int, align_corners: bool, dtype: torch.dtype) -> np.ndarray:
    """Coordinates of the voxels along a dimension, as ``affine_grid`` has them."""
    if size <= 1:
        return torch.zeros(size, dtype=dtype).numpy()
    places = torch.linspace(-1, 1, size, dtype=dtype)
    return (places if align_corners else places * (size - 1) / size).numpy()


def _between(at: np.ndarray, size: int, slack: float) -> Axis:
    low = np.floor(at)
    high = low + 1
    weights = high - at, at - low
    inside = [(place >= 0) & (place < size) for place in (low, high)]
    corners = [np.where(ok, place, -1).astype(np.int64) for ok, place in zip(inside, (low, high))]
    kept = [np.where(ok, weight, 0).astype(at.dtype) for ok, weight in zip(inside, weights)]
    axis = Axis.of(corners[0], corners[1], low_weight=kept[0], high_weight=kept[1], size=size)
    return axis if not slack else _wider(axis, np.floor(at - slack), np.floor(at + slack) + 1, size)


def _nearest(at: np.ndarray, size: int, slack: float) -> Axis:
    index = np.rint(at)
    axis = Axis.copy(np.where((index >= 0) & (index < size), index, -1).astype(np.int64), size)
    if not slack:
        return axis
    first, last = np.rint(at - slack), np.rint(at + slack)
    if np.any((first != last) & ((first < 0) | (last >= size))):
        raise Unstreamable("it turns the volume a little, so that zeros beyond its border may be the nearest voxel")
    return _wider(axis, first, last, size)


def _wider(axis: Axis, first: np.ndarray, last: np.ndarray, size: int) -> Axis:
    """An axis of voxels for which all from a first to a last one may be needed."""
    nothing = (last < 0) | (first >= size)
    ends = [np.where(nothing, -1, end.clip(0, size - 1)).astype(np.int64) for end in (first, last)]
    return Axis(axis.low, axis.high, axis.low_weight, axis.high_weight, ends[0], ends[1], size)


def _linear(size: int, made: int, align_corners: bool) -> Axis:
    """``interpolate`` computes in float32, with products and sums that are rounded once."""
    number = np.float32
    if size == made:
        return Axis.copy(np.arange(size), size)
    at = np.arange(made, dtype=number)
    if align_corners:
        place = at * (number(size - 1) / number(made - 1) if made > 1 else number(0))
    else:
        scale = np.float64(number(size) / number(made))
        place = np.maximum((scale * (at + number(0.5)) - 0.5).astype(number), number(0))
    low = np.minimum(place.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    high_weight = np.clip(place - low.astype(number), number(0), number(1))
    return Axis.of(low, high, low_weight=number(1) - high_weight, high_weight=high_weight, size=size)


def _mean(size: int, made: int) -> Axis:
    first = np.array([k * size // made for k in range(made)])
    last = np.array([ceil((k + 1) * size / made) - 1 for k in range(made)])
    if np.any(last - first > 1):
        raise Unstreamable("it takes the mean of more than two voxels in a dimension")
    single = first == last
    low_weight, high_weight = np.where(single, 1.0, 0.5), np.where(single, 0.0, 0.5)
    return Axis.of(first, last, low_weight=low_weight, high_weight=high_weight, size=size)
