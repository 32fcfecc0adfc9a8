"""Importance maps: how much each voxel of a prediction counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from monai.utils import convert_data_type

__all__ = ["at_sizes", "importance_map"]


def importance_map(
    roi_weight_map: torch.Tensor | None,
    roi_size: tuple[int, ...],
    mode: str,
    sigma_scale: Sequence[float] | float,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """MONAI's importance map of a window: the one that was given, else computed.

    Raises:
        ValueError: when the one that was given does not fit windows.
    """
    weights = roi_weight_map
    if weights is None:
        weights = compute_importance_map(roi_size, mode=mode, sigma_scale=sigma_scale, device=device, dtype=dtype)
    else:
        _at_roi(weights, roi_size)
    return convert_data_type(weights, torch.Tensor, device=device, dtype=dtype)[0]


def at_sizes(weights: torch.Tensor, roi_size: tuple[int, ...], sizes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """An importance map at the resolution of each head, ``(1, *size)``.

    As MONAI does it, each from the one before where a head has another size than a window.
    """
    at_roi = current = _at_roi(weights, roi_size)
    resampled = []
    for size in sizes:
        if size == roi_size:
            resampled.append(at_roi)
            continue
        for d, (old, new) in enumerate(zip(current.shape[1:], size), start=1):
            nearest = F.interpolate(torch.arange(float(old))[None, None], new, mode="nearest-exact")[0, 0].long()
            current = current.index_select(d, nearest.to(weights.device))
        resampled.append(current)
    return resampled


def _at_roi(weights: torch.Tensor, roi: tuple[int, ...]) -> torch.Tensor:
    """An importance map as ``(1, *roi)``; dimensions that are missing or of size one are filled."""
    try:
        return weights.expand((1, 1, *roi))[0]
    except RuntimeError:
        raise ValueError(
            f"roi_weight_map of shape {tuple(weights.shape)} does not fit windows of {roi} voxels; it must have that "
            f"shape, or (1, 1) before it"
        ) from None
