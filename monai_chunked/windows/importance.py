"""Importance maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data.utils import compute_importance_map
from monai.utils import convert_data_type

__all__ = ["_at_roi", "importance_map"]


def importance_map(
    roi_weight_map: torch.Tensor | None,
    roi_size: tuple[int, ...],
    mode: str,
    sigma_scale: Sequence[float] | float,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """MONAI's importance map of a window: the one that was given, else computed."""
    weights = roi_weight_map
    if weights is None:
        weights = compute_importance_map(roi_size, mode=mode, sigma_scale=sigma_scale, device=device, dtype=dtype)
    else:
        _at_roi(weights, roi_size)
    return convert_data_type(weights, torch.Tensor, device=device, dtype=dtype)[0]


def _at_roi(weights: torch.Tensor, roi: tuple[int, ...]) -> torch.Tensor:
    """An importance map as ``(1, *roi)``; dimensions that are missing or of size one are filled."""
    try:
        return weights.expand((1, 1, *roi))[0]
    except RuntimeError:
        raise ValueError(
            f"roi_weight_map of shape {tuple(weights.shape)} does not fit windows of {roi} voxels; it must have that "
            f"shape, or (1, 1) before it"
        ) from None
