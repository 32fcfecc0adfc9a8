"""Importance maps: how much each voxel of a prediction counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from monai.utils import BlendMode, convert_data_type, ensure_tuple_rep

__all__ = ["CROP", "MODES", "Importance", "at_sizes"]


CROP = "crop"
"""The mode in which each voxel is of one window; which one is geometry, and its weight is one."""


Size = tuple[int, ...]

MakeMap = Callable[[Size, Sequence[float], torch.device, torch.dtype], torch.Tensor]
"""From the size of a window, sigma_scale, device and dtype to a map."""


@dataclass(frozen=True)
class Importance:
    """Importance maps of windows, of whatever size.

    Attributes:
        roi_weight_map: the one that was given; ``None``: they are computed.
        mode: one of ``MODES``.
        sigma_scale: as in MONAI.
        device: of the maps.
        dtype: of the maps.
    """

    roi_weight_map: torch.Tensor | None
    mode: str
    sigma_scale: Sequence[float] | float
    device: torch.device
    dtype: torch.dtype
    _maps: dict[Size, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, size: tuple[int, ...]) -> torch.Tensor:
        """The map of a window.

        Raises:
            ValueError: when the one that was given does not fit windows of this size.
        """
        if size not in self._maps:
            weights = self.roi_weight_map
            if weights is None:
                weights = MODES[self.mode](size, ensure_tuple_rep(self.sigma_scale, len(size)), self.device, self.dtype)
            else:
                _at_roi(weights, size)
            self._maps[size] = convert_data_type(weights, torch.Tensor, device=self.device, dtype=self.dtype)[0]
        return self._maps[size]


def monais(mode: str) -> MakeMap:
    """One of MONAI's maps."""
    return lambda size, sigma_scale, device, dtype: compute_importance_map(size, mode, sigma_scale, device, dtype)


def hann(size: Size, sigma_scale: Sequence[float], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """TorchIO's (``overlap_mode="hann"``): a Hann window of two voxels more, without its ends, which are zero.

    So the outermost voxels of a window count, if little, and a voxel that has one window has its prediction.
    """
    sides = [torch.hann_window(n + 2, periodic=False, dtype=dtype, device=device)[1:-1] for n in size]
    return _product(sides)


def nnunet(size: Size, sigma_scale: Sequence[float], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """nnU-Net's (``compute_gaussian``), where ``sigma_scale`` is an eighth, with its rounding to half precision.

    A one in the middle, filtered as ``scipy.ndimage.gaussian_filter`` does it (no further than four standard
    deviations), scaled so that it is ten there. What is zero in half precision becomes the smallest number beside it.
    """
    sides = []
    for n, scale in zip(size, sigma_scale):
        reach = int(4 * n * scale + 0.5)
        kernel = np.exp(-0.5 / (n * scale) ** 2 * np.arange(-reach, reach + 1) ** 2)
        side, middle = np.zeros(n + 2 * reach), n // 2
        side[middle : middle + 2 * reach + 1] = kernel / kernel.sum()
        sides.append(torch.from_numpy(side[reach : reach + n]))
    weights = _product(sides)
    weights = (weights / (weights.max() / 10)).to(torch.float16)
    weights[weights == 0] = weights[weights != 0].min()
    return weights.to(device, dtype)


def _product(sides: Sequence[torch.Tensor]) -> torch.Tensor:
    return reduce(lambda weights, side: weights.unsqueeze(-1) * side, sides)


MODES: Mapping[str, MakeMap] = {
    BlendMode.CONSTANT.value: monais("constant"),
    BlendMode.GAUSSIAN.value: monais("gaussian"),
    "hann": hann,
    "nnunet": nnunet,
    CROP: monais("constant"),
}
"""What makes the map of a window, by the name of the mode."""


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
