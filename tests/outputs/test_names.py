"""Names of results come from names of images, and nothing is ever written outside the folder for results."""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import SaveImage, Spacing

from monai_chunked import ChunkedSlidingWindowInferer, NiftiOutput, NumpyOutput, ZarrOutput, open_image
from monai_chunked.machine.files import beside
from tests.formats.ngff_cases import write
from tests.inputs.ome_zarr_cases import write_plate
from tests.refusals import never

OUTPUTS: dict[str, Callable[..., Any]] = {"npy": NumpyOutput, "nii": NiftiOutput, "zarr": ZarrOutput}


def named(name: str) -> MetaTensor:
    return MetaTensor(torch.rand(1, 1, 6, 6, 6), meta={"filename_or_obj": name})


def infer(image: Any, output: Any) -> Any:
    return ChunkedSlidingWindowInferer(6, postprocessing="argmax", output=output)(image, torch.nn.Conv3d(1, 2, 1))


def all_paths(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "spelling", ["embryo.ome.zarr", "embryo.ome.zarr/", "./embryo.ome.zarr//", "sub/../embryo.ome.zarr/"]
)
def test_a_slash_behind_the_name_of_a_store_changes_nothing(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    zarr.create_array("embryo.ome.zarr", data=np.zeros((6, 6, 6), np.float32), dimension_names=["z", "y", "x"])
    infer(open_image(spelling), ZarrOutput(tmp_path, "labels"))
    assert (tmp_path / "embryo" / "embryo_labels.ome.zarr").is_dir()


@pytest.mark.parametrize("spelling", [".", "./", "../embryo.ome.zarr", "sub/.."])
def test_the_folder_that_one_is_in_has_its_name(spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, results = tmp_path / "embryo.ome.zarr", tmp_path / "results"
    zarr.create_array(path, data=np.zeros((6, 6, 6), np.float32), dimension_names=["z", "y", "x"])
    (path / "sub").mkdir()
    results.mkdir()
    monkeypatch.chdir(path)
    infer(open_image(spelling), ZarrOutput(results, "labels"))
    assert (results / "embryo" / "embryo_labels.ome.zarr").is_dir()


def test_a_folder_of_slices_gives_its_name_too(tmp_path: Path) -> None:
    infer(named("/data/series/"), NiftiOutput(tmp_path, "seg"))
    assert (tmp_path / "series" / "series_seg.nii").is_file()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("..", {}),
        ("/data/..", {}),
        ("/data/../", {}),
        ("/", {}),
        (".", {}),
        ("..", {"separate_folder": False}),
        ("scan.nii", {"output_postfix": "/../../../seg"}),
        ("/elsewhere/scan.nii", {"data_root_dir": "/data/study"}),
    ],
)
def test_an_image_whose_result_would_lie_elsewhere_is_refused_before_the_network_runs(
    name: str, parameters: dict[str, Any], output: str, tmp_path: Path
) -> None:
    (folder := tmp_path / "a" / "results").mkdir(parents=True)
    before = all_paths(tmp_path)
    with pytest.raises(ValueError, match=f"image named '{re.escape(name)}'.*no file in output_dir='{folder}'"):
        ChunkedSlidingWindowInferer(6, output=OUTPUTS[output](folder, **parameters))(named(name), never)
    assert all_paths(tmp_path) == before


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_nothing_can_be_written_outside_the_folder(data: st.DataObject) -> None:
    name, postfix = data.draw(st.text("ab./\\ -~", max_size=12)), data.draw(st.text("ab./_", max_size=6))
    root, separate = data.draw(st.sampled_from(["", "/data", "a", "../b", "/"])), data.draw(st.booleans())
    kind = OUTPUTS[data.draw(st.sampled_from(sorted(OUTPUTS)))]
    with tempfile.TemporaryDirectory() as top:
        (folder := Path(top, "a", "b", "c", "d", "results")).mkdir(parents=True)
        others = all_paths(Path(top))
        with contextlib.suppress(ValueError):
            infer(named(name), kind(folder, postfix, separate_folder=separate, data_root_dir=root))
        assert [path for path in all_paths(Path(top)) - others if folder not in path.parents] == []


def test_images_that_monai_numbers_are_numbered_as_save_image_does(tmp_path: Path) -> None:
    image = MetaTensor(torch.rand(1, 1, 6, 6, 6), meta={"filename_or_obj": "scan.nii", "patch_index": 7})
    (tmp_path / "ours").mkdir()
    infer(image, NiftiOutput(tmp_path / "ours", "seg"))
    SaveImage(tmp_path / "monai", "seg", ".nii", print_log=False)(image[0])
    folders = tmp_path / "ours", tmp_path / "monai"
    ours, monai = (sorted(path.relative_to(folder) for path in folder.rglob("*.nii")) for folder in folders)
    assert ours == monai == [Path("scan/scan_seg_7.nii")]


# ---------------------------------------------------------------- endings, and images in larger stores


def names_in(folder: Path, ending: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"*{ending}"))


@pytest.mark.parametrize(("output", "ending"), [("npy", ".npy"), ("nii", ".nii"), ("zarr", ".ome.zarr")])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("plate.ome.zarr", "plate.ome.zarr/A/1/scan.nii.gz"),
        ("a.nii.gz", "a.nii.gz/b.npy.d/scan.v2.nii.gz"),
        ("", "a.ome.zarr/scan.npy"),
        ("study.npy/x", "study.npy/x/.hidden/scan.1.nii"),
    ],
)
def test_only_the_end_of_a_path_is_taken_off(
    root: str, name: str, separate: bool, output: str, ending: str, tmp_path: Path
) -> None:
    """As MONAI does it."""
    for folder in ("ours", "monai"):
        (tmp_path / folder).mkdir()
    image = named(f"{tmp_path}/{name}")
    data_root_dir = tmp_path / root if root else ""
    infer(image, OUTPUTS[output](tmp_path / "ours", "seg", separate_folder=separate, data_root_dir=data_root_dir))
    save = SaveImage(
        tmp_path / "monai", "seg", ".nii", separate_folder=separate, data_root_dir=str(data_root_dir), print_log=False
    )
    save(image[0])
    (theirs,) = names_in(tmp_path / "monai", ".nii")
    assert names_in(tmp_path / "ours", ending) == [theirs.removesuffix(".nii") + ending]


@pytest.mark.parametrize("name", ["a.ome.zarr", "a.zarr", "a.ozx", "a.ome.zarr.zip", "a.zarr.zip", "A.OME.ZARR/"])
def test_the_endings_of_stores_are_taken_off(name: str, tmp_path: Path) -> None:
    infer(named(f"/data/x.ome.zarr/{name}"), NiftiOutput(tmp_path, "seg"))
    assert [each.lower() for each in names_in(tmp_path, ".nii")] == ["a/a_seg.nii"]


def test_stores_whose_names_have_dots_keep_them(tmp_path: Path) -> None:
    for name in ("scan.v1", "scan.v2.zarr"):
        zarr.create_array(tmp_path / name, data=np.zeros((6, 6, 6), np.float32), dimension_names=["z", "y", "x"])
        infer(open_image(tmp_path / name), NiftiOutput(tmp_path / "results", "seg", separate_folder=False))
    assert names_in(tmp_path / "results", ".nii") == ["scan.v1_seg.nii", "scan.v2_seg.nii"]


@pytest.mark.parametrize("root", ["plate.ome.zarr", "plates"])
def test_images_of_a_plate_have_names_that_differ(root: str, tmp_path: Path) -> None:
    path = tmp_path / root
    write_plate(path)
    output = ZarrOutput(tmp_path / "results", "labels")
    for well, field in itertools.product((1, 2), (0, 1)):
        infer(open_image(path / f"A/{well}/{field}"), output)
    names = [f"{root.removesuffix('.ome.zarr')}_A_{well}_{field}" for well in (1, 2) for field in (0, 1)]
    assert names_in(tmp_path / "results", ".ome.zarr") == [f"{name}/{name}_labels.ome.zarr" for name in names]


def test_folders_below_data_root_dir_tell_images_of_a_plate_apart(tmp_path: Path) -> None:
    path = tmp_path / "plate.ome.zarr"
    write_plate(path)
    output = NiftiOutput(tmp_path / "results", "labels", data_root_dir=path)
    for well in (1, 2):
        infer(open_image(path / f"A/{well}/0"), output)
    assert names_in(tmp_path / "results", ".nii") == [f"A/{well}/0/0_labels.nii" for well in (1, 2)]


def test_an_image_of_a_plate_keeps_its_name_behind_an_inverse(tmp_path: Path) -> None:
    write_plate(tmp_path / "plate.ome.zarr")
    image = open_image(tmp_path / "plate.ome.zarr/A/2/1")
    tensor = MetaTensor(torch.as_tensor(np.asarray(image[0], np.float32)), meta=image.meta[0])
    output = NiftiOutput(tmp_path / "results", "labels", separate_folder=False)
    inferer = ChunkedSlidingWindowInferer(6, postprocessing="argmax", inverse="image", output=output)
    inferer(Spacing((0.004, 0.004, 0.005))(tensor)[None], torch.nn.Conv3d(1, 2, 1))
    assert names_in(tmp_path / "results", ".nii") == ["plate_A_2_1_labels.nii"]


# ---------------------------------------------------------------- as long as names can be


def longest(kind: str, ending: str) -> str:
    """The longest name of an image whose result SaveImage can write."""
    unit = {"ascii": "x", "two bytes": "ü", "four bytes": "🧠", "decomposed": "u\u0308"}[kind]
    room = 255 - len(ending.encode())
    count = room // len(unit.encode())
    return unit * count + "y" * (room - count * len(unit.encode()))


@pytest.mark.parametrize("kind", ["ascii", "two bytes", "four bytes", "decomposed"])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_every_name_that_save_image_can_write_can_be_written_and_gone_on_with(
    extension: str, kind: str, tmp_path: Path
) -> None:
    (ours := tmp_path / "ours").mkdir()
    name = longest(kind, f"_seg{extension}")
    image = named(f"/data/{name}.nii.gz")
    SaveImage(tmp_path / "monai", "seg", extension, print_log=False)(image[0])
    (path,) = (tmp_path / "monai").rglob(f"*{extension}")
    assert len(path.name.encode()) == 255
    output = NiftiOutput(ours, "seg", extension)
    network = torch.nn.Conv3d(1, 2, 1)
    inferer = ChunkedSlidingWindowInferer(4, overlap=0.5, output=output, network_id="network")
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        inferer(image, stopping(network, 5))
    seen: list[int] = []
    with torch.no_grad():
        inferer(image, stopping(network, 0, seen))
    assert 0 < len(seen) < 27
    assert (ours / path.relative_to(tmp_path / "monai")).is_file()
    assert len(all_paths(ours)) == 3, "a folder, the file and its journal"


def stopping(network: torch.nn.Module, at: int, seen: list[int] | None = None) -> torch.nn.Module:
    seen = [] if seen is None else seen

    class Stopping(torch.nn.Module):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            seen.append(len(seen) + 1)
            if seen[-1] == at:
                raise ZeroDivisionError
            return network(windows)

    return Stopping()


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_name_that_no_file_can_have_is_refused_before_the_network_runs(output: str, tmp_path: Path) -> None:
    name = longest("two bytes", "")
    with pytest.raises(OSError, match=r"name of the result has 2\d\d bytes, and 255 are possible") as caught:
        ChunkedSlidingWindowInferer(6, output=OUTPUTS[output](tmp_path))(named(f"{name}.nii.gz"), never)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert all_paths(tmp_path) == set()


def test_labels_of_an_image_with_a_long_name_go_into_its_store(tmp_path: Path) -> None:
    path = tmp_path / f"{longest('two bytes', '.ome.zarr')}.ome.zarr"
    write(path)
    inferer = ChunkedSlidingWindowInferer(6, postprocessing="argmax", output=ZarrOutput(place="labels"))
    inferer(open_image(path), torch.nn.Conv3d(1, 2, 1))
    assert (path / "labels" / "trans").is_dir()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["x", "ü", "🧠", ".", "_"]), min_size=1, max_size=255)
    .map("".join)
    .filter(lambda name: name not in (".", ".."))
)
def test_what_lies_beside_a_result_has_a_name_that_is_possible_and_of_this_result_alone(name: str) -> None:
    name = name.encode()[:255].decode("utf-8", "ignore")
    one, other = Path("results", name), Path("results", name[:-1] + "z")
    for ending in (".partial", ".journal", ".monai_chunked-replaced"):
        found = beside(one, ending)
        assert found.parent == one.parent
        assert len(found.name.encode()) <= 255
        assert found.name.endswith(ending)
        assert found.name == name + ending or len((name + ending).encode()) > 255
        assert beside(other, ending) != found
        lock = beside(found, ".lock")
        assert len(lock.name.encode()) <= 255
        assert lock != beside(beside(other, ending), ".lock")
