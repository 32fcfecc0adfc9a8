"""Voxels that are made a row at a time, where the order of sums says how they are rounded."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from monai_chunked.resampling.axes import Resampling
from monai_chunked.transforms.coordinates import grid_sample_axes
from tests.resampling.test_resampling import ORDER, assert_all_is_made
from tests.side_by_side import random

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("order", list(itertools.permutations(ORDER)), ids=str)
@pytest.mark.parametrize("padding_mode", [0, 1])
def test_sums_that_lie_between_two_float32_numbers_are_rounded_as_pytorch_does(
    order: tuple[int, ...], padding_mode: int
) -> None:
    """Twice the spacing: every other voxel lies in the middle, but for the last bits of its weights."""
    size, made = (19, 20, 21), (38, 40, 42)
    theta = torch.eye(3, 4, dtype=torch.float64)
    theta[:, 3] = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64) / torch.tensor(made[::-1]) * (1 + 1e-15)
    volume = random(3, *size)
    volume[0, 2, 0, 3] = torch.inf  # beside zeros beyond the border, and no weight of it must reach what they make
    grid = F.affine_grid(theta[None], [1, 1, *made], align_corners=False)
    padding = ("zeros", "border")[padding_mode]
    whole = F.grid_sample(volume[None].double(), grid, padding_mode=padding, align_corners=False)[0].float()
    axes, kind, _ = grid_sample_axes(theta, size, made, 0, padding_mode, False)
    # the dimensions that are read in another order than those that PyTorch adds up in
    back = [order.index(d) for d in ORDER]
    turned = Resampling(tuple(axes[d] for d in order), tuple(back), tuple(back), kind)
    read = volume.permute(0, *(d + 1 for d in order)).contiguous()
    assert_all_is_made(turned, read, [(0, 5, n) for n in read.shape[1:]], whole)
