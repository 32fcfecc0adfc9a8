"""
All voxels of a part of a resampled grid, exactly as PyTorch makes them.

Each is made by the products and sums of ``corners.py``, in the same order. But where dimensions do not depend on each
other, corners are read a row at a time, and weights are the same for all channels: to make all voxels takes no longer
than to make one in ten or twenty of them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from monai_chunked.resampling.axes import Axis, Resampling
from monai_chunked.resampling.corners import multiply_add

__all__ = ["can_be_whole", "make_whole"]


AT_ONCE = 2**20
"""Numbers that are made at a time, of as many channels as that allows: channels have their weights in common."""


IN_CACHE = 2**15
"""Numbers that are added up at a time on a CPU."""


def can_be_whole(resampling: Resampling) -> bool:
    """Whether all voxels of a part can be made at once."""
    return resampling.oblique is None and resampling.kind in ("product", "nested")


def make_whole(resampling: Resampling, axes: Sequence[Axis], values: torch.Tensor, made: torch.Tensor) -> None:
    """All voxels of a part of a grid.

    Args:
        resampling: from which voxels to which.
        axes: of this part, counted from where it is read.
        values: of the voxels that are read, ``(C, *read)``.
        made: where they are written, ``(C, *made)``, float32.
    """
    order = (0, *(d + 1 for d in resampling.frame))
    inorder = [axes[d] for d in resampling.frame]
    channels = max(1, AT_ONCE // made[0].numel())
    for part, target in zip(values.permute(order).split(channels), made.permute(order).split(channels)):
        if resampling.kind == "nested":
            _nested(inorder, part, target)
        else:
            _product(inorder, part, target)


def _product(axes: Sequence[Axis], values: torch.Tensor, made: torch.Tensor) -> None:
    """Of each corner ``value * (x weight * y weight * z weight)``, added up with x the fastest."""
    rows: list[Any] = [_arrays(values.to(torch.from_numpy(axes[0].low_weight).dtype).contiguous())]
    weights: list[Any] = [1.0]
    for d in range(len(axes) - 1, 0, -1):
        corners = _corners(axes, d, values.device)
        rows = [_taken(row, index, d + 1) for index, _ in corners for row in rows]
        weights = [before * weight for _, weight in corners for before in weights]
    target = _arrays(made)
    step = max(1, (IN_CACHE if values.device.type == "cpu" else AT_ONCE) // made[:, 0].numel())
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, made.shape[1], step):
            here = slice(start, start + step)
            total: Any = None
            for index, weight in _corners(axes, 0, values.device):
                for row, before in zip(rows, weights):
                    term = _taken(row, index[here], 1)
                    term *= before * weight[here]
                    if total is None:
                        total = term
                    else:
                        total += term
            target[:, here] = total


def _nested(axes: Sequence[Axis], values: torch.Tensor, made: torch.Tensor) -> None:
    """One dimension after the other, the last one first."""
    result = values.float()
    for d in range(len(axes) - 1, -1, -1):
        low, high = (
            (_taken(result, index, d + 1), torch.as_tensor(weight).float())
            for index, weight in _corners(axes, d, values.device)
        )
        result = multiply_add(low[0], low[1], high[0] * high[1])
    made.copy_(result)


def _corners(axes: Sequence[Axis], d: int, device: torch.device) -> list[tuple[np.ndarray, Any]]:
    """The two places for each voxel along a dimension, and their weights, shaped for the dimensions behind it."""
    shape = (-1, *[1] * (len(axes) - 1 - d))
    return [(index, _arrays(torch.from_numpy(weight).view(shape).to(device))) for index, weight in axes[d].corners]


def _arrays(values: torch.Tensor) -> Any:
    """The same numbers, on a CPU in an array: no operation on so few is worth sharing out to threads."""
    return values.numpy() if values.device.type == "cpu" else values


def _taken(values: Any, index: np.ndarray, dim: int) -> Any:
    """What is at these places along a dimension, in memory of its own; -1: zeros."""
    there = index >= 0
    at = np.where(there, index, 0)
    if isinstance(values, np.ndarray):
        taken: Any = values.take(at, axis=dim)
    else:
        taken = values.index_select(dim, torch.from_numpy(at).to(values.device))
    if not there.all():
        taken[(slice(None),) * dim + (np.flatnonzero(~there),)] = 0
    return taken
