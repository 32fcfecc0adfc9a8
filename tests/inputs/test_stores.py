"""Images in plates, series and zip files open by their paths, which are named by what is around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v04 as models_04
import ome_zarr_models.v05 as models_05
import pytest
import zarr

from monai_chunked import open_image
from tests.inputs.ome_zarr_cases import image, into_zip, scaled, space, spacing, voxels, write_group, write_plate

# ---------------------------------------------------------------- plates, series, labels


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_plate_names_its_wells_and_a_well_its_images_which_open(version: str, tmp_path: Path) -> None:
    path = tmp_path / "plate.ome.zarr"
    write_plate(path, version)
    kind: Any = models_05.HCS if version == "0.5" else models_04.HCS
    assert len(kind.from_zarr(zarr.open_group(path, mode="r")).attributes.model_dump()) > 0
    with pytest.raises(
        ValueError, match=rf"{path} is a plate of 2 wells.*{path}/A/1/0, {path}/A/1/1, {path}/A/2/0, ... \(4 in all\)"
    ):
        open_image(path)
    with pytest.raises(
        ValueError, match=rf"a well of a plate, with 2 images; open one of them: {path}/A/2/0, {path}/A/2/1$"
    ):
        open_image(path / "A" / "2")
    assert spacing(path / "A/2/1") == [0.003, 0.003, 0.005]


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_series_names_its_images_which_keep_their_scale(version: str, lists: bool, tmp_path: Path) -> None:
    path, zarr_format = tmp_path / "series.zarr", 3 if version == "0.5" else 2
    root: dict[str, Any] = {"bioformats2raw.layout": 3}
    write_group(path, {"ome": {"version": version, **root}} if version == "0.5" else root, {}, zarr_format)
    names = ["first", "second"] if lists else ["0", "1"]
    for name in names:
        write_group(
            path / name,
            image(version, [space(axis, "um") for axis in "zyx"], scaled([5, 3, 2])),
            {"0": voxels(4, 5, 6)},
            zarr_format,
        )
    if lists:
        write_group(
            path / "OME",
            {"ome": {"version": version, "series": names}} if version == "0.5" else {"series": names},
            {},
            zarr_format,
        )
    with pytest.raises(
        ValueError, match=rf"collection of 2 images, as bioformats2raw.*: {path}/{names[0]}, {path}/{names[1]}$"
    ):
        open_image(path)
    assert spacing(path / names[1]) == [0.002, 0.003, 0.005]


def test_other_groups_name_what_can_be_opened_in_them(tmp_path: Path) -> None:
    attributes = image("0.5", [space(name) for name in "zyx"])
    write_group(tmp_path / "labels", {"ome": {"version": "0.5", "labels": ["nuclei"]}}, {"nuclei/0": voxels(4, 5, 6)})
    zarr.open_group(tmp_path / "group", mode="w")
    write_group(tmp_path / "group" / "embryo", attributes, {"0": voxels(4, 5, 6)})
    write_group(tmp_path / "arrays", {}, {"raw": voxels(4, 5, 6)})
    write_group(tmp_path / "empty", {}, {})
    for name, message in (
        ("labels", f"the labels of an image; open one of them: {tmp_path}/labels/nuclei$"),
        ("group", f"open one of them: {tmp_path}/group/embryo$"),
        ("arrays", f"without an OME-Zarr image.*: {tmp_path}/arrays/raw$"),
        ("empty", "pass the path of an image or an array$"),
    ):
        with pytest.raises(ValueError, match=message):
            open_image(tmp_path / name)


# ---------------------------------------------------------------- zip files


@pytest.mark.parametrize("name", ["embryo.ozx", "embryo.ome.zarr.zip", "embryo.zarr.zip"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_store_in_a_zip_file_opens_as_its_folder_does(version: str, name: str, tmp_path: Path) -> None:
    described = [space(axis, "micrometer") for axis in "zyx"]
    folder = tmp_path / "embryo.ome.zarr"
    write_group(
        folder, image(version, described, scaled([5, 3, 2])), {"0": voxels(9, 9, 9)}, 3 if version == "0.5" else 2
    )
    expected = open_image(folder)
    for within in ("", "embryo.ome.zarr/"):  # some have a folder in them
        archive = into_zip(folder, tmp_path / name, within)
        for path in (str(archive), f"file://{archive}") if not within else (str(archive),):
            opened = open_image(path)
            assert np.array_equal(opened, expected)
            assert np.array_equal(opened.meta[0]["affine"], expected.meta[0]["affine"])
            assert opened.meta[0]["image_name"] == "embryo"


def test_images_of_a_plate_in_a_zip_file_open_by_their_paths(tmp_path: Path) -> None:
    write_plate(tmp_path / "plate.ome.zarr", "0.5")
    archive = into_zip(tmp_path / "plate.ome.zarr", tmp_path / "plate.ozx")
    with pytest.raises(ValueError, match=f"a plate of 2 wells.*{archive}/A/1/0"):
        open_image(archive)
    assert np.array_equal(open_image(archive / "A/2/1"), open_image(tmp_path / "plate.ome.zarr/A/2/1"))
    with pytest.raises(ValueError, match=f"no Zarr array or group at {archive}/B"):
        open_image(archive / "B")


def test_what_has_the_name_of_a_zip_file_may_be_a_folder(tmp_path: Path) -> None:
    write_group(tmp_path / "a.zip", image("0.5", [space(axis) for axis in "zyx"]), {"0": voxels(4, 5, 6)})
    assert open_image(tmp_path / "a.zip").shape == (1, 1, 6, 5, 4)


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.npy"])
def test_what_is_no_zarr_is_not_read_at_a_url(name: str) -> None:
    with pytest.raises(ValueError, match=f"http://localhost/{name} is a URL, at which only Zarr is read; download it"):
        open_image(f"http://localhost/{name}")


def test_a_url_opens_as_a_folder_does(tmp_path: Path) -> None:
    array = voxels(4, 5, 6)
    write_group(
        tmp_path / "a.zarr", image("0.5", [space(axis, "um") for axis in "zyx"], scaled([5, 3, 2])), {"0": array}
    )
    zarr.create_array(tmp_path / "b.zarr", data=array, dimension_names=list("zyx"))
    for path in ("a.zarr", "a.zarr/0", "b.zarr"):
        opened, expected = open_image(f"file://{tmp_path}/{path}"), open_image(tmp_path / path)
        assert np.array_equal(opened, expected)
        assert np.array_equal(opened.meta[0]["affine"], expected.meta[0]["affine"])
        assert opened.meta[0]["image_name"] == expected.meta[0]["image_name"]
