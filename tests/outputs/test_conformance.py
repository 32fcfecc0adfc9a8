"""Every output keeps what :py:class:`OutputTests` says that outputs promise."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_chunked import MemoryOutput, NiftiOutput, NumpyOutput, Output, ZarrOutput
from monai_chunked.outputs.auto import AutoOutput
from monai_chunked.outputs.base import Metadata
from monai_chunked.testing import OutputTests

# the output of the README, and its test class, which is the example of OutputTests
README = Path(__file__).parents[2].joinpath("README.md").read_text()
EXAMPLE = README[README.index("from monai_chunked import Output, OutputWriter") :]
exec(EXAMPLE[: EXAMPLE.index("\ninferer = ")])
exec(textwrap.dedent((OutputTests.__doc__ or "").split("Example::")[1]))


class TestMemory(OutputTests):
    def make(self, folder: Path) -> Output:
        return MemoryOutput()


class TestNumpy(OutputTests):
    def make(self, folder: Path) -> Output:
        return NumpyOutput(folder)


class TestNumpyInFewLongRuns(TestNumpy):
    shape = (2, 2, 9, 40, 64)
    cuts = ((0, 4, 9), (0, 40), (0, 64))


class TestNumpyTemporary(OutputTests):
    def make(self, folder: Path) -> Output:
        return NumpyOutput()


class TestNifti(OutputTests):
    def make(self, folder: Path) -> Output:
        return NiftiOutput(folder)


class TestNiftiCompressed(OutputTests):
    def make(self, folder: Path) -> Output:
        return NiftiOutput(folder, output_ext=".nii.gz")


class TestZarr(OutputTests):
    def make(self, folder: Path) -> Output:
        pytest.importorskip("zarr")
        return ZarrOutput(folder)

    def voxels(self, result: Any) -> list[np.ndarray]:
        return [np.asarray(image) for image in (result if isinstance(result, list) else [result])]


class TestZarrStorageChunksAcrossChunks(TestZarr):
    def make(self, folder: Path) -> Output:
        pytest.importorskip("zarr")
        return ZarrOutput(folder, storage_chunk_size=5, levels=2)


class TestZarrLabels(TestZarr):
    shape = (2, 1, 9, 7, 8)
    dtypes = (torch.uint8, torch.int32)

    def make(self, folder: Path) -> Output:
        pytest.importorskip("zarr")
        return ZarrOutput(place="labels")

    def metadata(self, folder: Path) -> tuple[Metadata, ...]:
        zarr = pytest.importorskip("zarr")
        images = [folder / f"image{k}.ome.zarr" for k in range(self.shape[0])]
        for image in images:
            if not image.exists():
                zarr.create_group(image, zarr_format=3)
        return tuple({"filename_or_obj": str(image), "ome_zarr": str(image)} for image in images)


class TestAuto(OutputTests):
    def make(self, folder: Path) -> Output:
        return AutoOutput(torch.device("cpu"), folder)


@pytest.mark.filterwarnings("ignore:output='auto'")
class TestAutoWithoutMemory(OutputTests):
    def make(self, folder: Path) -> Output:
        output = AutoOutput(torch.device("cpu"), folder)
        output.reserve(torch.device("cpu"), 2**60)
        return output


@pytest.mark.parametrize("kind", [NumpyOutput, NiftiOutput, ZarrOutput])
def test_settings_name_every_parameter_but_those_that_say_where(kind: Any, tmp_path: Path) -> None:
    if kind is ZarrOutput:
        pytest.importorskip("zarr")
    where = {"output_dir", "data_root_dir", "storage_options"}
    assert set(kind(tmp_path).settings) == set(inspect.signature(kind).parameters) - where
