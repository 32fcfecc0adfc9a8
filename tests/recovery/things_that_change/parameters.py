"""Parameters that a result depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.inferers import SliceInferer

from monai_chunked import ChunkedSliceInferer, Mirrored
from tests.recovery.things_that_change.makers import MAKERS, maker


def setting(name: str, before: Any, after: Any) -> None:
    MAKERS[f"setting {name}"] = lambda folder, changed: {name: after if changed else before}


setting("overlap", 0.25, 0.5)
setting("mode", "constant", "gaussian")
setting("cval", 0.0, 1.0)
setting("sw_batch_size", 1, 2)
setting("roi_size", 4, 10)
setting("padding_mode", "constant", "replicate")
setting("with_coord", False, True)
setting("buffer_steps", None, 1)
setting("skip", 0.2, 0.4)
setting("border", "edge", "even")
setting("mirror_axes", None, 0)
setting("fill_batches", False, True)


@maker
def mask(folder: Path, changed: bool) -> dict[str, Any]:
    inside = torch.zeros(9, 8, 7, dtype=torch.bool)
    inside[: 1 + 4 * changed] = True
    return {"mask": inside}


@maker
def voxels_of_the_nearest_window_only(folder: Path, changed: bool) -> dict[str, Any]:
    return {"mode": "crop" if changed else "constant", "network": torch.nn.AvgPool3d(3, 1, 1)}


@maker
def min_size(folder: Path, changed: bool) -> dict[str, Any]:
    return {"border": "adaptive", "min_size": 1 + 2 * changed}


@maker
def background(folder: Path, changed: bool) -> dict[str, Any]:
    return {"skip": lambda window: bool(window.mean() < 0.5), "background": -1 - changed}


@maker
def background_of_uncovered_voxels(folder: Path, changed: bool) -> dict[str, Any]:
    return {"border": "crop", "background": [float(changed), 0.5]}


@maker
def mirror_batch(folder: Path, changed: bool) -> dict[str, Any]:
    return {"mirror_axes": (0, 2), "mirror_batch": changed}


@maker
def mirrored_network(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Conv3d(1, 1, 3, padding=1)
    torch.nn.init.constant_(network.bias, 0)
    network.weight.data = torch.arange(27.0).reshape(1, 1, 3, 3, 3)
    return {"network": Mirrored(network, (0, 1 + changed))}


@maker
def sigma_scale(folder: Path, changed: bool) -> dict[str, Any]:
    return {"mode": "gaussian", "sigma_scale": 0.125 + 0.125 * changed}


@maker
def roi_weight_map(folder: Path, changed: bool) -> dict[str, Any]:
    weights = torch.ones(4, 4, 4)
    weights[0] += changed
    return {"roi_weight_map": weights}


@maker
def process_fn(folder: Path, changed: bool) -> dict[str, Any]:
    factor = 2 + changed
    return {"process_fn": lambda tensors, windows, weights: (tuple(t * factor for t in tensors), weights)}


class Squaring(SliceInferer):
    factor = 1.0

    def network_wrapper(self, network: Any, x: Any, condition: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().network_wrapper(network, x, condition, *args, **kwargs) ** 2


class SquaringSlices(Squaring, ChunkedSliceInferer):
    pass


@maker
def wrapper_of_a_slice_inferer(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    return {"network": network, "inferer": SquaringSlices if changed else ChunkedSliceInferer, "roi_size": (4, 4)}
