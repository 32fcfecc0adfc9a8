"""Labels of more than 256 classes are unsigned integers of 16 bits and more, for which PyTorch lacks most functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Spacing

from monai_chunked import ChunkedSlidingWindowInferer, NiftiOutput, NumpyOutput, ZarrOutput, open_image
from tests.formats.ngff_cases import write
from tests.killed_run import Boom

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CLASSES = 300
SETTINGS: dict[str, Any] = {"roi_size": 6, "overlap": 0.5, "mode": "gaussian"}

OUTPUTS: dict[str, Callable[[Path], Any]] = {
    "cpu": lambda folder: "cpu",
    "disk": lambda folder: "disk",
    "npy": NumpyOutput,
    "nii": NiftiOutput,
    "nii.gz": lambda folder: NiftiOutput(folder, output_ext=".nii.gz"),
    "zarr": lambda folder: ZarrOutput(folder, levels=3),
    "zarr in small pieces": lambda folder: ZarrOutput(folder, levels=2, storage_chunk_size=3),
}


class Network(torch.nn.Module):
    """A class for each of as many steps of brightness; may fail at a window."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.left = at

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise Boom
        classes = torch.arange(float(CLASSES)).reshape(1, CLASSES, *[1] * (windows.dim() - 2))
        return -(windows * CLASSES - classes).abs()


def image(*size: int) -> MetaTensor:
    voxels = torch.rand((1, 1, *(size or (10, 9, 8))), generator=torch.Generator().manual_seed(0))
    return MetaTensor(voxels, affine=torch.eye(4), meta={"filename_or_obj": "scan.nii.gz"})


def monai(inputs: torch.Tensor) -> np.ndarray:
    return SlidingWindowInferer(**SETTINGS)(inputs, Network()).argmax(1, keepdim=True).numpy()


def labels(inputs: Any, output: Any, network: Any = None, **parameters: Any) -> Any:
    options = {**SETTINGS, "postprocessing": "argmax", "output": output, "network_id": "classes", **parameters}
    return ChunkedSlidingWindowInferer(**options)(inputs, Network() if network is None else network)


def values(result: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(result[:]).reshape(shape)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_holds_labels_of_300_classes(output: str, dtype: torch.dtype, tmp_path: Path) -> None:
    def widest(scores: torch.Tensor) -> torch.Tensor:
        return scores.argmax(0, keepdim=True).to(dtype)

    chosen: Any = "argmax" if dtype == torch.uint16 else widest
    result = labels(image(), OUTPUTS[output](tmp_path), postprocessing=chosen)
    found, reference = values(result, (1, 1, 10, 9, 8)), monai(image())
    assert reference.max() > 255
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert np.array_equal(found, reference)
    for path in tmp_path.rglob("*.nii*"):
        if path.suffix != ".journal":
            assert np.array_equal(np.asarray(nibabel.load(path).dataobj), reference[0, 0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("at", [2, 6])
@pytest.mark.parametrize("output", [name for name in OUTPUTS if name not in ("cpu", "disk")])
def test_a_run_goes_on_with_them(output: str, at: int, tmp_path: Path) -> None:
    with pytest.raises(Boom):
        labels(image(), OUTPUTS[output](tmp_path), Network(at))
    result = labels(image(), OUTPUTS[output](tmp_path))
    assert np.array_equal(values(result, (1, 1, 10, 9, 8)), monai(image()))
    again = labels(image(), OUTPUTS[output](tmp_path), Network(at=1))
    assert np.array_equal(values(again, (1, 1, 10, 9, 8)), monai(image()))


def test_a_store_says_what_its_greatest_label_is(tmp_path: Path) -> None:
    for folder, at in ((tmp_path / "whole", 0), (tmp_path / "resumed", 6)):
        if at:
            with pytest.raises(Boom):
                labels(image(), ZarrOutput(folder, levels=2), Network(at))
        labels(image(), ZarrOutput(folder, levels=2))
        group = zarr.open_group(next(folder.rglob("*.ome.zarr")), mode="r")
        ome: Any = group.attrs["ome"]
        greatest = int(monai(image()).max())
        assert [each["label-value"] for each in ome["image-label"]["colors"]] == list(range(1, greatest + 1))
        level: Any = group["1"]
        assert np.array_equal(level[...], monai(image())[0, :, ::2, ::2, ::2])


def test_labels_go_into_the_store_of_their_image(tmp_path: Path) -> None:
    data = write(tmp_path / "embryo.ome.zarr")
    result = labels(open_image(tmp_path / "embryo.ome.zarr"), ZarrOutput(place="labels", levels=2))
    reference = monai(torch.from_numpy(data)[None])
    assert np.array_equal(values(result, reference.shape), reference)


@pytest.mark.parametrize("output", ["cpu", "nii", "zarr"])
def test_skipped_windows_voxels_that_no_window_reaches_and_another_grid_have_them_too(
    output: str, tmp_path: Path
) -> None:
    background = [float(k == 299) for k in range(CLASSES)]
    mask = torch.zeros(10, 9, 8)
    mask[:4] = 1
    for number, parameters in enumerate(({"mask": mask}, {"skip": 2.0}, {"border": "crop"})):
        into = OUTPUTS[output](tmp_path / str(number))
        result = labels(image(), into, background=background, **parameters)
        found = values(result, (10, 9, 8))
        assert found.dtype == np.uint16
        assert found[-1, -1, -1] == 299
    spacing = Spacing((1.5, 1.5, 1.5))
    inputs = spacing(image()[0])[None]
    into = OUTPUTS[output](tmp_path / "inverse")
    found = values(labels(inputs, into, inverse="image"), (10, 9, 8))
    scores = SlidingWindowInferer(**SETTINGS)(inputs, Network())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = spacing.inverse(MetaTensor(scores[0]).copy_meta_from(inputs[0]))
    assert np.array_equal(found, back.argmax(0).numpy())
