"""The README shows what its commands print."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import zarr
from monai.transforms import AsDiscreted, Compose, SaveImaged

from monai_chunked import ChunkedSlidingWindowInferer, split_postprocessing
from monai_chunked.__main__ import main
from tests import ROOT
from tests.house import tomllib

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"\n```python\n(.*?)```\n", README, re.S)
CONTRIBUTING = (ROOT / "docs" / "contributing.md").read_text()
SHOWN = re.findall(r"    \$ python -m monai_chunked (.*)\n((?:    [^$].*\n)+)", README)


def test_plans_are_shown() -> None:
    assert len(SHOWN) == 3


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_a_plan_is_shown_as_it_is_printed(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    assert ["    " + line for line in capsys.readouterr().out.splitlines()] == shown.splitlines()


def example(with_text: str) -> str:
    (text,) = [text for text in EXAMPLES if with_text in text]
    return text


def test_the_example_out_of_core_labels_a_zarr_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    voxels = np.random.default_rng(0).integers(0, 4096, (100, 110, 120), np.uint16)
    array = zarr.create_array("embryo.ome.zarr/0", shape=voxels.shape, chunks=(32, 32, 32), dtype=voxels.dtype)
    array[:] = voxels
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2.0, 1.0, 1.0]}]}]
    multiscales = [{"axes": axes, "datasets": scale}]
    zarr.open_group("embryo.ome.zarr").attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    network = torch.nn.Conv3d(1, 3, 1)
    names = {"network": network, "torch": torch}
    exec(example("volume = open_image("), names)
    labels = zarr.open_array("results/embryo/embryo_labels.ome.zarr/0", mode="r")
    assert labels.shape == names["labels"].shape
    image = torch.from_numpy(voxels.transpose() / np.float32(4095))[None, None]
    inferer = ChunkedSlidingWindowInferer((96, 96, 96), overlap=0.5, mode="gaussian", postprocessing="argmax")
    assert torch.equal(torch.from_numpy(labels[:].transpose(0, 3, 2, 1)), inferer(image, network)[0])


def test_the_example_of_a_loop_of_ones_own_saves_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image, network = torch.rand(1, 1, 100, 97, 99), torch.nn.Conv3d(1, 3, 1).requires_grad_(False)
    nibabel.save(nibabel.Nifti1Image(image[0, 0].numpy(), np.eye(4)), "ct.nii.gz")

    class Session:
        """In the place of one of ONNX Runtime, which has a test of its own."""

        def __init__(self, path: str, providers: list[str]) -> None:
            assert path == "network.onnx"

        def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [network(torch.from_numpy(inputs["image"])).numpy()]

    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=Session))
    exec(example("import onnxruntime"), {})
    (saved,) = (tmp_path / "results").rglob("*.nii*")
    inferer = ChunkedSlidingWindowInferer((96, 96, 96), 4, overlap=0.5, mode="gaussian", postprocessing="argmax")
    assert np.array_equal(np.asarray(nibabel.load(saved).dataobj), inferer(image, network)[0, 0].numpy())


def test_the_example_of_a_split_gives_both_parts() -> None:
    names: dict[str, object] = {"postprocessing": Compose([AsDiscreted("pred", argmax=True), SaveImaged("pred")])}
    names |= {"split_postprocessing": split_postprocessing, "ChunkedSlidingWindowInferer": ChunkedSlidingWindowInferer}
    exec(example("streamed, behind = "), names)
    assert isinstance(names["behind"], Compose)
    assert [type(each) for each in names["behind"].transforms] == [SaveImaged]


def test_the_example_of_an_output_counts_voxels() -> None:
    network, image = torch.nn.Conv3d(1, 5, 1), torch.rand(2, 1, 100, 100, 100)
    names = {"network": network, "image": image, "torch": torch}
    names["ChunkedSlidingWindowInferer"] = ChunkedSlidingWindowInferer
    text = example("class VolumeOutput")
    assert len(text.splitlines()) <= 30
    exec(text, names)
    labels = ChunkedSlidingWindowInferer(96, mode="gaussian", postprocessing="argmax")(image, network)
    expected = [torch.bincount(each.flatten(), minlength=256) for each in labels]
    assert torch.equal(names["voxels_of_each_label"], torch.stack(expected))


@pytest.mark.long
def test_the_example_of_many_workers_labels_a_nifti(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = torch.rand(1, 1, 100, 97, 99)
    nibabel.save(nibabel.Nifti1Image(image[0, 0].numpy(), np.eye(4)), "ct.nii")
    names: dict[str, object] = {"load_network": network_of_workers}
    exec(example("from monai_chunked.dask import infer"), names)
    inferer = ChunkedSlidingWindowInferer((96, 96, 96), overlap=0.5, mode="gaussian", postprocessing="argmax")
    (saved,) = (tmp_path / "results").rglob("*.nii")
    assert np.array_equal(np.asarray(nibabel.load(saved).dataobj), inferer(image, network_of_workers())[0, 0].numpy())


def network_of_workers() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 1).requires_grad_(False)


ROOMS = [f"{path.name}/" for path in (ROOT / "monai_chunked").iterdir() if (path / "__init__.py").exists()]


def test_each_room_is_laid_out_on_its_floor() -> None:
    (contract, _) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = {
        f"{name.strip()}/": floor
        for floor, names in enumerate(reversed(contract["layers"]), 1)
        for name in names.split("|")
        if f"{name.strip()}/" in ROOMS
    }
    table = re.findall(r"^\| (\d) \| `(\w+/)` \|", README, re.M)
    assert {room: int(floor) for floor, room in table} == floors
    assert sorted(floors) == sorted(ROOMS)


def test_contributing_says_which_tests_to_run_for_each_room() -> None:
    table = re.findall(r"^\| `(\w+/)` \| (.*)$", CONTRIBUTING, re.M)
    assert sorted(room for room, _ in table) == sorted(ROOMS)
    assert [path for path in re.findall(r"tests/[\w./]+", CONTRIBUTING) if not (ROOT / path).exists()] == []
    assert [room for room, named in table if not named.startswith(f"`tests/{room[:-1]}")] == []


def test_contributing_has_the_limits_of_the_house() -> None:
    limits = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["house"]["limits"]
    (table,) = re.findall(r"^\| of \| at most \|\n.*\n((?:\|.*\n)+)", CONTRIBUTING, re.M)
    assert [int(row.rpartition(" | ")[2].strip(" |").replace(",", "")) for row in table.splitlines()] == [
        limits[kind] for kind in limits if kind != "files of one name"
    ]
