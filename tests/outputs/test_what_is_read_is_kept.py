"""No result takes the place of what its run reads, or lies around or in it, which is known before the first window."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import h5py
import nibabel
import numpy as np
import pytest
import torch
import zarr
from monai.data import MetaTensor
from monai.transforms import LoadImage

from monai_chunked import (
    ChunkedSlidingWindowInferer,
    NiftiOutput,
    NumpyOutput,
    ZarrOutput,
    chunked_sliding_window_inference,
    open_image,
)
from monai_chunked.inputs.lazy.files_under import files_under
from monai_chunked.machine.mapped import MappedFiles
from tests.formats.ngff_cases import write
from tests.refusals import never

SIZE = (8, 8, 8)

on_linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no system but Linux tells what is mapped")


def contents(folder: Path) -> dict[str, bytes]:
    """All files, and those that links lead to."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder: Path, name: str, image: Any, output: Any, network: Any = never, **parameters: Any) -> str:
    """Why a run is refused before anything is written or predicted, whatever may be overwritten."""
    before = contents(folder)
    for overwrite in (True, "changed", False):
        options = {"postprocessing": "argmax", "overwrite": overwrite, "output": output, "run_id": "", **parameters}
        with pytest.raises(FileExistsError) as caught:
            chunked_sliding_window_inference(image, 6, 1, network, **options)
        assert contents(folder) == before
        if overwrite:
            assert f"which {name} is read from" in str(caught.value)
    return str(caught.value)


def voxels() -> np.ndarray:
    return np.random.default_rng(0).random(SIZE, np.float32)


def nifti(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels(), np.eye(4)), path)
    return path


def npy(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, voxels()[None, None])
    return path


def array_in(path: Path) -> Path:
    zarr.create_array(path, data=voxels(), dimension_names=["z", "y", "x"])
    return path


def named(name: str, values: torch.Tensor | None = None) -> MetaTensor:
    return MetaTensor(torch.rand(1, 1, *SIZE) if values is None else values, meta={"filename_or_obj": name})


def in_its_place(extension: str, folder: Path) -> Any:
    if extension == ".npy":
        return NumpyOutput(folder, "", separate_folder=False)
    if extension == ".ome.zarr":
        return ZarrOutput(folder, "", separate_folder=False)
    return NiftiOutput(folder, "", extension, separate_folder=False)


# ---------------------------------------------------------------- the input


def load(path: Path) -> Any:
    return LoadImage(ensure_channel_first=True, image_only=True)(path)[None]


@pytest.mark.parametrize("opened", [open_image, load])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_a_nifti_file_is_not_replaced_by_its_own_result_also_where_it_was_read_before(
    extension: str, opened: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = nifti(tmp_path / f"scan{extension}")
    text = refused(tmp_path, "inputs", opened(path), in_its_place(extension, tmp_path))
    assert str(path) in text


@pytest.mark.parametrize("make", [write, array_in])
def test_a_zarr_store_is_not_replaced_by_its_own_result(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "embryo.ome.zarr")
    image = open_image(tmp_path / "embryo.ome.zarr")
    refused(tmp_path, "inputs", image, in_its_place(".ome.zarr", tmp_path))


def test_an_npy_file_is_not_replaced_by_its_own_result(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", voxels())
    refused(tmp_path, "inputs", open_image(tmp_path / "scan.npy"), in_its_place(".npy", tmp_path))


@pytest.mark.parametrize("link", ["symbolic", "hard", "folder"])
def test_links_do_not_hide_what_is_read(link: str, tmp_path: Path) -> None:
    path, other = nifti(tmp_path / "data" / "scan.nii"), tmp_path / "results"
    if link == "folder":
        other.symlink_to(path.parent)
    else:
        other.mkdir()
        (other / "scan.nii").symlink_to(path) if link == "symbolic" else os.link(path, other / "scan.nii")
    refused(tmp_path, "inputs", open_image(path), in_its_place(".nii", other))
    refused(tmp_path, "inputs", open_image(other / "scan.nii"), in_its_place(".nii", path.parent))


@pytest.mark.parametrize("ending", ["", ".partial", ".journal", ".journal.lock", ".journal.new"])
def test_what_lies_beside_a_result_while_it_is_made_is_none_of_what_is_read(ending: str, tmp_path: Path) -> None:
    path = npy(tmp_path / f"scan_trans.npy{ending}")
    image = named("scan.nii", torch.from_numpy(np.load(path, mmap_mode="r+")))
    if MappedFiles().of(image.data_ptr()):
        refused(tmp_path, "inputs", image, NumpyOutput(tmp_path, separate_folder=False))
    mask = np.load(path, mmap_mode="r")
    refused(tmp_path, "mask", named("scan.nii"), NumpyOutput(tmp_path, separate_folder=False), mask=mask)


@pytest.mark.parametrize("ending", [".chunks", ".plain", ".partial"])
def test_nor_is_what_lies_beside_a_nifti_file(ending: str, tmp_path: Path) -> None:
    mask = np.load(npy(tmp_path / f"scan_seg.nii.gz{ending}"), mmap_mode="r")
    output = NiftiOutput(tmp_path, "seg", ".nii.gz", separate_folder=False)
    refused(tmp_path, "mask", named("scan.nii"), output, mask=mask)


def test_a_result_does_not_lie_in_the_folder_of_an_array(tmp_path: Path) -> None:
    array_in(tmp_path / "raw")
    for output in (ZarrOutput(tmp_path), NiftiOutput(tmp_path / "raw" / "results")):
        assert "which is inside" in refused(tmp_path, "inputs", open_image(tmp_path / "raw"), output)


def test_a_result_does_not_lie_in_an_ome_zarr_image_but_for_its_labels(tmp_path: Path) -> None:
    write(path := tmp_path / "embryo.ome.zarr")
    for folder in (path, path / "0", path / "labels"):
        assert "which is inside" in refused(tmp_path, "inputs", open_image(path), ZarrOutput(folder))
    inferer = ChunkedSlidingWindowInferer(6, postprocessing="argmax", output=ZarrOutput(place="labels"))
    inferer(open_image(path), torch.nn.Conv3d(1, 2, 1))
    assert (path / "labels" / "trans").is_dir()


def test_a_result_does_not_lie_around_what_is_read(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "scan_trans.ome.zarr")
    mask = np.load(npy(tmp_path / "scan_trans.ome.zarr" / "mask.npy"), mmap_mode="r")
    output = ZarrOutput(tmp_path, separate_folder=False)
    assert "which is around" in refused(tmp_path, "mask", named("scan.nii"), output, mask=mask)


@pytest.mark.parametrize("results", ["bucket", "bucket/embryo.ome.zarr", "bucket/embryo.ome.zarr/0"])
def test_a_store_at_a_url_is_kept_too(results: str, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    zarr.create_array(f"{url}/bucket/embryo.ome.zarr/0", data=voxels(), overwrite=True)
    zarr.create_group(f"{url}/bucket/embryo.ome.zarr", attributes={"ome": {"multiscales": [MULTISCALE]}})
    image = open_image(f"{url}/bucket/embryo.ome.zarr")
    refused(tmp_path, "inputs", image, in_its_place(".ome.zarr", f"{url}/{results}"))  # type: ignore[arg-type]
    assert np.array_equal(zarr.open_array(f"{url}/bucket/embryo.ome.zarr/0")[...], voxels())


MULTISCALE = {
    "axes": [{"name": name, "type": "space"} for name in "zyx"],
    "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}],
}


# ---------------------------------------------------------------- all else that is read


def place(tmp_path: Path) -> tuple[np.ndarray, Any]:
    """A mapped file, and an output that would replace it."""
    return np.load(npy(tmp_path / "scan_trans.npy"), mmap_mode="r+"), NumpyOutput(tmp_path, separate_folder=False)


def test_a_mask_is_kept(tmp_path: Path) -> None:
    mapped, output = place(tmp_path)
    refused(tmp_path, "mask", named("scan.nii"), output, mask=mapped)


@on_linux
def test_a_condition_and_the_map_of_weights_are_kept(tmp_path: Path) -> None:
    mapped, output = place(tmp_path)
    refused(tmp_path, "condition", named("scan.nii"), output, condition=torch.from_numpy(mapped))
    weights = torch.from_numpy(mapped)[0, 0, :6, :6, :6]
    refused(tmp_path, "roi_weight_map", named("scan.nii"), output, roi_weight_map=weights)


@on_linux
def test_weights_that_are_mapped_are_kept(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 1, 1, 1, 1), "bias": torch.ones(2)}, tmp_path / "scan_trans.npy")
    network = torch.nn.Conv3d(1, 2, 1)
    network.load_state_dict(torch.load(tmp_path / "scan_trans.npy", mmap=True), assign=True)
    output = NumpyOutput(tmp_path, separate_folder=False)
    refused(tmp_path, "network", named("scan.nii"), output, network)


@on_linux
def test_a_result_of_an_earlier_run_is_kept_while_it_is_the_input(tmp_path: Path) -> None:
    inferer = ChunkedSlidingWindowInferer(6, output=NumpyOutput(tmp_path), overwrite=True)
    with torch.no_grad():
        scores = inferer(named("scan.nii"), torch.nn.Conv3d(1, 2, 1))
    refused(tmp_path, "inputs", scores, NumpyOutput(tmp_path))


def test_labels_that_are_a_mask_are_not_replaced_by_others(tmp_path: Path) -> None:
    write(path := tmp_path / "embryo.ome.zarr")
    output = ZarrOutput(place="labels", output_postfix="nuclei")
    inferer = ChunkedSlidingWindowInferer(6, postprocessing="argmax", output=output)
    inferer(open_image(path), torch.nn.Conv3d(1, 2, 1))
    mask = open_image(path / "labels" / "nuclei")
    refused(tmp_path, "mask", open_image(path), output, mask=mask)


class TwoHeads(torch.nn.Conv3d):
    def forward(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"seg": super().forward(windows), "edge": torch.cat([windows, -windows], 1)}


def test_names_of_heads_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    mask = np.load(npy(tmp_path / "scan_trans-seg.npy"), mmap_mode="r")
    output = NumpyOutput(tmp_path, separate_folder=False)
    text = refused(tmp_path, "mask", named("scan.nii"), output, TwoHeads(1, 2, 1), mask=mask)
    assert "scan_trans-seg.npy" in text


def test_heads_that_would_have_the_same_file_are_refused(tmp_path: Path) -> None:
    def network(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a b": windows, "a/b": -windows}

    inferer = ChunkedSlidingWindowInferer(6, output=NumpyOutput(tmp_path), network_id="")
    with torch.no_grad(), pytest.raises(FileExistsError, match=r"2 heads of the network would be written to .*a_b"):
        inferer(named("scan.nii"), network)
    assert contents(tmp_path) == {}


KINDS: dict[str, Callable[[Path], Any]] = {
    "numpy.memmap": lambda path: np.load(path, mmap_mode="r")[0],
    "tensor over numpy.memmap": lambda path: torch.from_numpy(np.load(path, mmap_mode="r+"))[..., 2:],
    "torch.from_file": lambda path: torch.from_file(str(path), shared=True, size=100, dtype=torch.uint8),
}


@on_linux
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_any_kind_of_input_is_known(kind: str, tmp_path: Path) -> None:
    path = npy(tmp_path / "scan.npy")
    value = KINDS[kind](path)
    assert str(path) in set(files_under(value, MappedFiles()))


def test_the_files_of_arrays_in_other_formats_are_known(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["voxels"] = voxels()
    layout = h5py.VirtualLayout(SIZE, np.float32)
    layout[:] = h5py.VirtualSource("scan.h5", "voxels", SIZE)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("voxels", layout)
    array_in(tmp_path / "group.zarr" / "raw")
    path, stored = nifti(tmp_path / "scan.nii.gz"), zarr.open_array(tmp_path / "group.zarr" / "raw")
    with h5py.File(tmp_path / "virtual.h5") as file:
        found = {
            "virtual": set(files_under(file["voxels"], MappedFiles())),
            "nibabel": set(files_under(nibabel.load(path).dataobj, MappedFiles())),  # type: ignore[attr-defined]
            "zarr": set(files_under(stored, MappedFiles())),
            "dask": set(files_under(dask.array.from_array(stored, chunks=4) + 1, MappedFiles())),
        }
    assert found["virtual"] == {str(tmp_path / "virtual.h5"), str(tmp_path / "scan.h5")}
    assert found["nibabel"] == {str(path)}
    for kind in ("zarr", "dask"):
        assert {os.path.normpath(each) for each in found[kind]} == {str(tmp_path / "group.zarr" / "raw")}


# ---------------------------------------------------------------- what stays possible


def test_results_lie_beside_what_is_read_in_the_same_folder(tmp_path: Path) -> None:
    nifti(tmp_path / "scan.nii").chmod(0o444)
    write(tmp_path / "embryo.ome.zarr")
    np.save(tmp_path / "volume.npy", voxels())
    before = contents(tmp_path)
    network = torch.nn.Conv3d(1, 2, 1)
    for name in ("scan.nii", "embryo.ome.zarr", "volume.npy"):
        for output in (NiftiOutput(tmp_path), NumpyOutput(tmp_path, separate_folder=False), ZarrOutput(tmp_path)):
            inferer = ChunkedSlidingWindowInferer(6, postprocessing="argmax", output=output, overwrite=True)
            inferer(open_image(tmp_path / name), network)
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert len(list(tmp_path.rglob("*_trans.*"))) > 9


def test_a_folder_for_the_results_of_an_image_is_none_that_it_was_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = named("patient")
    for _ in range(2):
        with torch.no_grad():
            ChunkedSlidingWindowInferer(6, output=NiftiOutput("."), overwrite=True)(image, torch.nn.Conv3d(1, 2, 1))
    assert (tmp_path / "patient" / "patient_trans.nii").is_file()
    (tmp_path / "patient" / "slice1.dcm").write_bytes(b"")
    assert "which is inside" in refused(tmp_path, "inputs", image, NiftiOutput("."))


def test_a_message_says_what_to_do(tmp_path: Path) -> None:
    path = nifti(tmp_path / "scan.nii")
    text = refused(tmp_path, "inputs", open_image(path), in_its_place(".nii", tmp_path))
    assert re.search(r"also with overwrite=True.* Choose another output_dir, or another output_postfix", text)
