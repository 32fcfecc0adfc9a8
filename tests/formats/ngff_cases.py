"""OME-Zarr images, their labels, and where these lie in the world; a helper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v05 as ngff_models
import pytest
import torch
import zarr
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer, ZarrOutput
from tests.killed_run import Boom
from tests.outputs.cases import SETTINGS

SIZES = {"t": 3, "c": 1, "z": 9, "y": 12, "x": 14}
SCALE = {"t": 2.0, "c": 1.0, "z": 2.5, "y": 0.325, "x": 0.325}
TRANSLATION = {"t": 0.0, "c": 0.0, "z": -40.0, "y": 7.3, "x": 11.0}


class Labels(torch.nn.Module):
    """Three classes by brightness, which every voxel gets for itself."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.3 - windows, windows * 0, windows - 0.6], 1)


def write(path: Path, axes: str = "czyx", unit: str | None = "micrometer", version: str = "0.5") -> np.ndarray:
    """An OME-Zarr image of two levels."""
    data = np.random.default_rng(0).random([SIZES[axis] for axis in axes], np.float32)
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for level, step in enumerate((1, 2)):
        part = data[tuple(slice(None, None, step if axis in "xyz" else 1) for axis in axes)]
        names = {"dimension_names": list(axes)} if version == "0.5" else {}
        group.create_array(str(level), data=part, chunks=part.shape, **names)
        scale = [SCALE[axis] * (step if axis in "xyz" else 1) for axis in axes]
        moved = [TRANSLATION[axis] + ((step - 1) / 2 * SCALE[axis] if axis in "xyz" else 0) for axis in axes]
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": moved}]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    kinds = {"t": {"type": "time", "unit": "second"}, "c": {"type": "channel"}}
    space: dict[str, str] = {"type": "space"} | ({"unit": unit} if unit else {})
    described = [{"name": axis, **kinds.get(axis, space)} for axis in axes]
    multiscales = [{"axes": described, "datasets": datasets, "name": path.stem}]
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **multiscales[0]}]
    return data


def expected(data: np.ndarray) -> np.ndarray:
    """Labels as MONAI has them, in the order of the data, ``(C, *spatial)``."""
    scores = SlidingWindowInferer(**SETTINGS)(torch.from_numpy(data)[None], Labels())
    return scores.argmax(1).to(torch.uint8).numpy()


def label(image: Any, output: ZarrOutput, **parameters: Any) -> Any:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, postprocessing="argmax", output=output, **parameters)
    return inferer(image, Labels())


def described(path: Path, kind: Any = ngff_models.ImageLabel) -> Any:
    """What a store says of itself, after ome-zarr-models has compared it with the specification and the arrays."""
    return kind.from_zarr(zarr.open_group(path, mode="r")).attributes.ome


def snapshot(path: Path) -> dict[str, bytes]:
    """All files of an image but its labels."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.relative_to(path).parts[0] != "labels"}


def world(path: Path, level: int, index: Sequence[float]) -> dict[str, tuple[float, str | None]]:
    """Where a voxel of a store lies, by the specification: name of each spatial axis, coordinate and unit."""
    multiscale = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]  # type: ignore[index, call-overload]
    scale, translation = multiscale["datasets"][level]["coordinateTransformations"]
    at = np.array(scale["scale"]) * index + translation["translation"]
    axes = multiscale["axes"]
    return {axis["name"]: (float(value), axis.get("unit")) for axis, value in zip(axes, at) if axis["type"] == "space"}


def assert_same_place(one: dict[str, tuple[float, str | None]], other: dict[str, tuple[float, str | None]]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name][0] == pytest.approx(other[name][0], rel=1e-12)
        assert one[name][1] == other[name][1]


class Stopping(Labels):
    """Fails at a window."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = [at]

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self._left[0] -= 1
        if self._left[0] < 0:
            raise Boom
        return super().forward(windows)


def run_until(image: Any, output: ZarrOutput, window: int) -> None:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, postprocessing="argmax", output=output, network_id="labels")
    network = Stopping(window)
    with pytest.raises(Boom):
        inferer(image, lambda windows: network(windows))


def run_again(image: Any, output: ZarrOutput) -> Any:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, postprocessing="argmax", output=output, network_id="labels")
    network = Stopping(10**6)
    return inferer(image, lambda windows: network(windows))
