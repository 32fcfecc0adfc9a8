"""Windows and blending as others have them, written down plainly over whole volumes; a helper."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval

Box = tuple[slice, ...]


def patchlys(border: str, size: int, roi: int, step: int, min_size: int) -> list[tuple[int, int]]:
    """The windows of Patchly's own sampler along one dimension; none twice."""
    sampler = pytest.importorskip("patchly.sampler", reason="compared with Patchly")
    kinds = {
        "squeeze": sampler._SqueezeGridSampler,
        "adaptive": sampler._AdaptiveGridSampler,
        "crop": sampler._CropGridSampler,
        "edge": sampler._EdgeGridSampler,
    }
    one = {"min_patch_size_s": np.array([min_size])} if border == "adaptive" else {}
    if border == "squeeze" and size == roi:  # it divides by the number of windows less one
        return [(0, roi)]
    made = kinds[border](None, np.array([size]), np.array([roi]), np.array([step]), **one)
    return list(dict.fromkeys(tuple(made.get_bbox(k)[0].tolist()) for k in range(len(made))))


def nnunets(size: int, roi: int, step_size: float) -> list[tuple[int, int]]:
    """``compute_steps_for_sliding_window`` of nnU-Net, with its ``tile_step_size``; none twice."""
    number = int(np.ceil((size - roi) / (roi * step_size))) + 1
    step = (size - roi) / (number - 1) if number > 1 else 0
    starts = dict.fromkeys(int(np.round(step * k)) for k in range(number))
    return [(start, start + roi) for start in starts]


def monais(size: int, roi: int, overlap: float) -> list[tuple[int, int]]:
    windows = dense_patch_slices((size,), (roi,), _get_scan_interval((size,), (roi,), 1, (overlap,)))
    return [(window.start, window.stop) for (window,) in windows]


def windows(border: str, size: int, roi: int, overlap: float, min_size: int = 1) -> list[tuple[int, int]]:
    """Along one dimension of an image that is padded to the size of a window already, unless windows are cut.

    Only MONAI takes an overlap. The others take a step, which is what its decimals leave of a window.
    """
    step = 1 - Fraction(str(overlap))
    if border == "edge":
        return monais(size, roi, overlap)
    if border == "even":
        return nnunets(size, roi, float(step))
    return patchlys(border, size, roi, max(int(roi * step), 1), min_size)


def hann(size: Sequence[int]) -> torch.Tensor:
    """TorchIO's."""
    sides = [np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) ** 2 for n in size]
    return torch.from_numpy(np.prod(np.meshgrid(*sides, indexing="ij"), axis=0))


def nnunet(size: Sequence[int], sigma_scale: float = 1 / 8) -> torch.Tensor:
    """``compute_gaussian`` of nnU-Net, with SciPy."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="nnU-Net's weights are made with SciPy")
    delta = np.zeros(size)
    delta[tuple(n // 2 for n in size)] = 1
    weights = ndimage.gaussian_filter(delta, [n * sigma_scale for n in size], 0, mode="constant", cval=0)
    weights = torch.from_numpy(weights / (np.max(weights) / 10)).to(torch.float16)
    weights[weights == 0] = weights[weights != 0].min()
    return weights


MAPS: dict[str, Callable[[Sequence[int]], torch.Tensor]] = {
    "constant": lambda size: torch.ones(*size),
    "gaussian": lambda size: compute_importance_map(tuple(size), "gaussian", 0.125),
    "nnunet": nnunet,
}


def batches(boxes: Sequence[Any], sw_batch_size: int) -> list[list[Any]]:
    """As many as fit, of one size."""

    def size(one: Any) -> tuple[int, ...]:
        return tuple(side.stop - side.start for side in one[1])

    runs = [list(run) for _, run in itertools.groupby(boxes, size)]
    return [run[k : k + sw_batch_size] for run in runs for k in range(0, len(run), sw_batch_size)]


def padded(image: torch.Tensor, least: Sequence[int]) -> tuple[torch.Tensor, Any]:
    """An image ``(B, C, *spatial)`` with zeros around it, up to a least size, and where it is in there."""
    before = [max(c - size, 0) // 2 for size, c in zip(image.shape[2:], least)]
    part = (..., *(slice(start, start + size) for start, size in zip(before, image.shape[2:])))
    whole = image.new_zeros(*image.shape[:2], *map(max, image.shape[2:], least))
    whole[part] = image
    return whole, part


def blended(
    image: torch.Tensor,
    network: Callable[[torch.Tensor], torch.Tensor],
    sides: Sequence[Sequence[tuple[int, int]]],
    mode: str,
    sw_batch_size: int = 1,
    background: Any = 0.0,
) -> torch.Tensor:
    """Sliding window inference with all scores of the volume at once, in MONAI's order.

    Args:
        image: ``(B, C, *spatial)``, padded.
        sides: windows along each dimension.
    """
    each = [tuple(slice(*side) for side in box) for box in itertools.product(*sides)]
    boxes = [(number, box) for number in range(len(image)) for box in each]
    predictions: list[tuple[int, Box, torch.Tensor]] = []
    for batch in batches(boxes, sw_batch_size):
        voxels = [image[(slice(k, k + 1), slice(None), *box)] for k, box in batch]
        data = torch.cat(voxels) if sw_batch_size > 1 else voxels[0]
        predictions += [(k, box, scores) for (k, box), scores in zip(batch, network(data))]
    total = image.new_zeros(len(image), len(predictions[0][2]), *image.shape[2:])
    if mode == "crop":
        nearest = _nearest(each, tuple(image.shape[2:]))
        for number, (k, box, scores) in enumerate(predictions):
            mine = nearest[box] == number % len(each)
            total[(k, slice(None), *box)][:, mine] = scores[:, mine]
        uncovered = nearest < 0
    else:
        weights = image.new_zeros(image.shape[2:])
        for k, box, scores in predictions:
            importance = MAPS[mode](scores.shape[1:]).to(image.dtype)
            total[(k, slice(None), *box)] += scores * importance
            if k == 0:
                weights[box] += importance
        total /= weights
        uncovered = weights == 0
    scores = torch.as_tensor(background, dtype=image.dtype).reshape(-1, 1)
    total[:, :, uncovered] = scores.expand(total.shape[1], int(uncovered.sum()))
    return total


def _nearest(boxes: Sequence[Box], size: tuple[int, ...]) -> torch.Tensor:
    """For each voxel which of the windows over it has the nearest centre, the first if several have; -1: none."""
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij"))
    least, nearest = torch.full(size, 2**62), torch.full(size, -1)
    for number, box in enumerate(boxes):
        inside = voxels[(slice(None), *box)]
        middle = torch.tensor([side.start + side.stop - 1 for side in box]).reshape(-1, *[1] * len(size))
        distance = ((2 * inside - middle) ** 2).sum(0)
        nearer = distance < least[box]
        least[box] = torch.where(nearer, distance, least[box])
        nearest[box] = torch.where(nearer, number, nearest[box])
    return nearest
