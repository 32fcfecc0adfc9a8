"""Whether PyTorch on this machine adds up as it is known to: another processor or version may round otherwise."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from monai_chunked.resampling.axes import Kind, Resampling, Unstreamable
from monai_chunked.resampling.pieces import pieces
from monai_chunked.transforms.coordinates import grid_sample_axes, interpolate_axes

__all__ = ["check_kind"]


SIZE, MADE = (7, 6, 5), (9, 11, 8)
"""Of a small volume, and of what is made of it."""

TURN = 1e-6
"""How far, about, an affine in float32 turns a volume."""

ORDER = (0, 1, 2)


@cache
def check_kind(kind: Kind, precision: torch.dtype) -> None:
    """Interpolate a small volume, and compare every bit.

    Args:
        kind: how voxels are made.
        precision: that PyTorch computes in.

    Raises:
        Unstreamable: when the bits differ.
    """
    if kind == "copy":
        return
    volume = torch.rand((1, 2, *SIZE), generator=torch.Generator().manual_seed(0))
    if kind != "product":
        mode = "area" if kind == "mean" else "trilinear"
        axes, _ = interpolate_axes(SIZE, MADE, mode, align_corners=False, dtype=torch.float32)
        _compare(Resampling(tuple(axes), ORDER, ORDER, kind), volume[0], F.interpolate(volume, MADE, mode=mode)[0])
        return
    theta = torch.tensor([[0.9, 0, 0, 0.1], [0, 0.7, 0, -0.2], [0, 0, 1.1, 0.05]], dtype=precision)
    for turn in (0.0, TURN):
        theta[:, :3] += turn
        axes, _, oblique = grid_sample_axes(theta, SIZE, MADE, 0, 1, False)
        grid = F.affine_grid(theta[None], [1, 1, *MADE], align_corners=False)
        made = F.grid_sample(volume.to(precision), grid, padding_mode="border", align_corners=False)[0]
        _compare(Resampling(tuple(axes), ORDER, ORDER, kind, oblique), volume[0], made)


def _compare(resampling: Resampling, volume: torch.Tensor, made: torch.Tensor) -> None:
    chunks = resampling.over([(0, n) for n in SIZE])
    (piece,) = pieces(resampling, chunks.of((0, 0, 0)), (0, 0, 0))
    everywhere = torch.from_numpy(np.argwhere(np.ones(MADE, bool)))
    if not torch.equal(piece.exact(volume, everywhere).reshape(made.shape), made.float()):
        raise Unstreamable("PyTorch on this machine adds up in another order than is known")
