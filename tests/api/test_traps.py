"""What is easily got wrong is said in a sentence before the network runs, and folders need not be made beforehand."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_chunked import (
    ChunkedSliceInferer,
    ChunkedSlidingWindowInferer,
    MemoryOutput,
    NiftiOutput,
    NumpyOutput,
    Output,
    ZarrOutput,
)
from tests.refusals import never


def volume(**meta: Any) -> torch.Tensor:
    image = torch.rand(1, 1, 7, 8, 9, generator=torch.Generator().manual_seed(0))
    return MetaTensor(image, meta=meta) if meta else image


def infer(image: Any, network: Callable[..., Any] = torch.neg, **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer(**{"roi_size": (4, 4, 4), **parameters})(image, network)


REFERENCE = SlidingWindowInferer((4, 4, 4))(volume(), torch.neg)


# ---------------------------------------------------------------- output and output_dir


@pytest.mark.parametrize(
    ("output", "error", "meant"),
    [
        ("labels.nii.gz", ValueError, 'output=NiftiOutput("folder", output_ext=".nii.gz")'),
        ("/results/labels.nii", ValueError, 'output=NiftiOutput("folder", output_ext=".nii")'),
        (Path("labels.nii.gz"), ValueError, 'output=NiftiOutput("folder", output_ext=".nii.gz")'),
        ("x.ome.zarr", ValueError, 'output=ZarrOutput("folder")'),
        ("x.zarr/", ValueError, 'output=ZarrOutput("folder")'),
        ("scores.npy", ValueError, 'output=NumpyOutput("folder")'),
        ("nifti", ValueError, 'NiftiOutput("folder")'),
        (NiftiOutput, TypeError, 'NiftiOutput("folder")'),
        (ZarrOutput, TypeError, 'ZarrOutput("folder")'),
        (MemoryOutput, TypeError, "MemoryOutput(...)"),
    ],
)
def test_an_output_that_is_a_file_name_or_a_class_is_refused_with_what_was_meant(
    output: Any, error: type[Exception], meant: str
) -> None:
    with pytest.raises(error, match="output=") as caught:
        infer(volume(), never, output=output)
    assert meant in str(caught.value)


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("cpu", "output='cpu' writes no file"),
        ("device", "output='device' writes no file"),
        (MemoryOutput(), "output=MemoryOutput(...) has its own folder"),
        (NumpyOutput(), "output=NumpyOutput(...) has its own folder"),
    ],
)
def test_an_output_dir_to_which_nothing_would_be_written_is_refused(
    output: str | Output, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="output_dir=") as caught:
        infer(volume(), never, output=output, output_dir=tmp_path / "results")
    assert named in str(caught.value)
    assert str(tmp_path / "results") in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_an_output_dir_of_auto_is_for_when_it_comes_to_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results" / "of today"
    assert torch.equal(infer(volume(), output_dir=folder), REFERENCE)
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr("monai_chunked.outputs.auto.available_memory", lambda device: 0)
    with pytest.warns(UserWarning, match="goes to disk"):
        assert torch.equal(infer(volume(), output_dir=folder), REFERENCE)
    assert [path.suffix for path in folder.iterdir()] == [".npy"]


# ---------------------------------------------------------------- folders

FILES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "disk": lambda folder: {"output": "disk", "output_dir": folder},
    "NumpyOutput": lambda folder: {"output": NumpyOutput(folder)},
    "NiftiOutput": lambda folder: {"output": NiftiOutput(str(folder))},
    "ZarrOutput": lambda folder: {"output": ZarrOutput(folder)},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("image", [volume(), volume(filename_or_obj="scan.nii.gz")], ids=["nameless", "named"])
def test_an_output_dir_is_created_with_its_parents(image: torch.Tensor, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "of today"
    result = infer(image, **FILES[name](folder))
    assert any(folder.rglob("*"))
    assert np.array_equal(np.asarray(result[:]).reshape(REFERENCE.shape), REFERENCE)


@pytest.mark.parametrize("name", FILES)
def test_an_output_dir_that_cannot_be_created_is_refused_before_the_network_runs(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="output_dir is not a folder"):
        infer(volume(), never, **FILES[name](file / "results"))
    parent = Path("/proc")  # not even root may
    if not parent.is_dir():
        parent = tmp_path / "locked"
        parent.mkdir(0o500)
        if os.access(parent, os.W_OK):
            pytest.skip("this user may write to any folder")
    with pytest.raises(PermissionError, match="output_dir cannot be written to") as caught:
        infer(volume(), never, **FILES[name](parent / "results" / "of today"))
    assert str(parent) in str(caught.value)


# ---------------------------------------------------------------- dimensions


@pytest.mark.parametrize(
    ("image", "roi_size", "advice"),
    [
        (volume()[0], (4, 4, 4), "pass inputs[None]."),
        (volume()[0, 0], (4, 4, 4), "pass inputs[None, None]."),
        (volume()[0, 0, 0], (4, 4), "inputs[None, None]"),
        (volume()[0, 0, 0], 4, "inputs[None, None]"),
        (volume()[0, 0].numpy(), (4, 4), "pass inputs[None]."),
    ],
)
def test_a_missing_batch_dimension_is_said_with_what_adds_it(image: Any, roi_size: Any, advice: str) -> None:
    with pytest.raises(ValueError, match="inputs") as caught:
        infer(image, never, roi_size=roi_size)
    assert advice in str(caught.value)


def test_one_dimension_behind_batch_and_channel_is_an_image_too() -> None:
    signal = volume()[0, 0]
    assert torch.equal(infer(signal, roi_size=(4,)), SlidingWindowInferer((4,))(signal, torch.neg))


# ---------------------------------------------------------------- help and types


@pytest.mark.parametrize("kind", [ChunkedSlidingWindowInferer, SlidingWindowInferer])
def test_help_explains_every_parameter_itself(kind: type) -> None:
    text = inspect.getdoc(ChunkedSlidingWindowInferer) or ""
    for name in list(inspect.signature(kind).parameters):
        (line,) = [line for line in text.splitlines() if line.startswith(f"    {name}: ")]
        assert len(line.split()) > 3, line


@pytest.mark.parametrize("what", ["zarr.Array", "list[torch.Tensor]", "list[zarr.Array]"])
def test_the_annotation_names_what_else_is_returned(what: str) -> None:
    assert what in str(inspect.signature(ChunkedSlidingWindowInferer.__call__).return_annotation)
    assert issubclass(ChunkedSliceInferer, ChunkedSlidingWindowInferer)
