"""Results lie over their image in the world, as the specification and viewers compute it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr
from monai.data import decollate_batch
from monai.transforms import LoadImage

from monai_chunked import ChunkedSlidingWindowInferer, ImageArray, ZarrOutput, open_image
from tests.formats.ngff_cases import SCALE, TRANSLATION, assert_same_place, described, expected, label, world, write

# ---------------------------------------------------------------- axes, units and voxels


@pytest.mark.parametrize("unit", ["micrometer", "nanometer", "angstrom", None])
@pytest.mark.parametrize("axes", ["czyx", "zyx", "cxyz", "cyxz", "cyx"])
def test_labels_have_the_axes_of_their_image_in_its_order_and_units(
    axes: str, unit: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "embryo.ome.zarr"
    data = write(path, axes, unit)
    array = label(open_image(path), ZarrOutput(tmp_path, "labels", levels=2))
    labels = tmp_path / "embryo" / "embryo_labels.ome.zarr"
    with_channel = data if "c" in axes else data[None]
    assert array.shape == with_channel.shape
    assert np.array_equal(array[...], expected(with_channel))
    assert len(np.unique(array[...])) == 3
    names = "c" + axes.replace("c", "")
    assert [axis.name for axis in described(labels).multiscales[0].axes] == list(names)
    group = zarr.open_group(labels, mode="r")
    for level in (0, 1):
        index = {"c": 0, "z": 3, "y": 5, "x": 2}
        ours = world(labels, level, [index[axis] for axis in names])
        assert_same_place(ours, world(path, level, [index[axis] for axis in axes]))
        assert group[str(level)].metadata.dimension_names == tuple(names)


@pytest.mark.filterwarnings("ignore:'pixel', the unit of axis")
@pytest.mark.parametrize(
    ("unit", "written"), [("um", "micrometer"), ("\N{MICRO SIGN}m", "micrometer"), ("inch", "inch"), ("pixel", None)]
)
def test_units_are_written_as_the_specification_calls_them(unit: str, written: str | None, tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path, unit=unit)
    label(open_image(path), ZarrOutput(tmp_path, "labels"))
    theirs = {name: (value, written) for name, (value, _) in world(path, 0, [0, 1, 2, 3]).items()}
    assert_same_place(world(tmp_path / "embryo" / "embryo_labels.ome.zarr", 0, [0, 1, 2, 3]), theirs)


@pytest.mark.parametrize(
    ("code", "written"), [("mm", "millimeter"), ("meter", "meter"), ("micron", "micrometer"), ("unknown", None)]
)
@pytest.mark.parametrize("lazily", [True, False])
def test_the_unit_of_a_nifti_is_that_of_its_header_or_none(
    code: str, written: str | None, lazily: bool, tmp_path: Path
) -> None:
    nifti = nibabel.Nifti1Image(np.random.default_rng(0).random((9, 10, 11), np.float32), np.diag([2, 3, 4, 1]))
    nifti.header.set_xyzt_units(code, "sec")
    nibabel.save(nifti, tmp_path / "scan.nii")
    image = (
        open_image(tmp_path / "scan.nii")
        if lazily
        else LoadImage(ensure_channel_first=True)(tmp_path / "scan.nii")[None]
    )
    label(image, ZarrOutput(tmp_path, "labels"))
    ours = world(tmp_path / "scan" / "scan_labels.ome.zarr", 0, [0, 1, 1, 1])
    assert ours == {"x": (2, written), "y": (3, written), "z": (4, written)}


@pytest.mark.parametrize("units", [("um", "mm", ""), ("pixel", "millimetre", None)])
def test_units_in_the_metadata_of_an_array_of_ones_own_are_those_of_the_specification(
    units: Any, tmp_path: Path
) -> None:
    meta = {"affine": np.diag([4.0, 3, 2, 1]), "axes": ("z", "y", "x"), "axis_units": units, "filename_or_obj": "a"}
    label(ImageArray(np.zeros((9, 9, 9), np.float32), (None, None, 2, 1, 0), meta), ZarrOutput(tmp_path, "labels"))
    found = world(tmp_path / "a" / "a_labels.ome.zarr", 0, [0, 1, 1, 1])
    micrometers = units[0] == "um"
    assert found == {
        "z": (2000 if micrometers else 2, "micrometer" if micrometers else None),
        "y": (3, "millimeter"),
        "x": (4, None),
    }


def test_scale_and_translation_are_the_very_numbers_of_the_image(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    label(open_image(path), ZarrOutput(tmp_path, "labels"))
    steps = zarr.open_group(tmp_path / "embryo" / "embryo_labels.ome.zarr", mode="r").attrs["ome"]["multiscales"][0]  # type: ignore[index, call-overload]
    scale, translation = steps["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [SCALE[axis] for axis in "czyx"]
    assert translation["translation"] == [TRANSLATION[axis] for axis in "czyx"]


@pytest.mark.parametrize("level", [0, 1])
def test_labels_of_a_coarser_level_lie_over_the_whole_image(level: int, tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    label(open_image(path, level=level), ZarrOutput(tmp_path, "labels"))
    index = [0, 2, 3, 4]
    ours = world(tmp_path / "embryo" / "embryo_labels.ome.zarr", 0, index)
    assert_same_place(ours, world(path, level, index))


def test_scores_of_a_network_that_halves_the_resolution_lie_over_the_image(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    ChunkedSlidingWindowInferer(6, overlap=0, output=ZarrOutput(tmp_path))(open_image(path), torch.nn.AvgPool3d(2))
    ours = world(tmp_path / "embryo" / "embryo_trans.ome.zarr", 0, [0, 1, 2, 3])
    theirs = world(path, 0, [0, 2.5, 4.5, 6.5])  # the middle of the voxels that voxel (1, 2, 3) stands for
    assert {name: unit for name, (_, unit) in ours.items()} == dict.fromkeys("zyx", "micrometer")
    for name in "yx":
        assert ours[name][0] == pytest.approx(theirs[name][0])


def test_where_nothing_is_known_axes_are_z_y_x_as_the_specification_recommends(tmp_path: Path) -> None:
    label(torch.rand(1, 1, 7, 8, 9), ZarrOutput(tmp_path, separate_folder=False))
    (path,) = tmp_path.glob("*.ome.zarr")
    axes = described(path).multiscales[0].axes
    assert [(axis.name, getattr(axis, "unit", None)) for axis in axes] == [(name, None) for name in "czyx"]


@pytest.mark.parametrize("kind", ["npy", "array"])
def test_axes_that_the_user_names_are_written(kind: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((9, 12, 14), np.float32)
    if kind == "npy":
        np.save(tmp_path / "embryo.npy", data)
    else:
        zarr.create_array(tmp_path / "embryo.zarr", data=data)
    image = open_image(tmp_path / f"embryo.{'npy' if kind == 'npy' else 'zarr'}", axes="zyx")
    array = label(image, ZarrOutput(tmp_path, separate_folder=False))
    assert array.metadata.dimension_names == ("c", "z", "y", "x")
    assert np.array_equal(array[...], expected(data[None]))


def test_in_engines_the_result_has_the_order_of_the_input(tmp_path: Path) -> None:
    write(tmp_path / "embryo.ome.zarr")
    image = open_image(tmp_path / "embryo.ome.zarr")
    array = label(image, ZarrOutput(tmp_path))
    (item,) = decollate_batch(array)
    assert item.shape == image.shape[1:]
    assert np.array_equal(item, expected(np.asarray(image[0])))
    assert torch.equal(item.affine, image.meta[0]["affine"])


@pytest.mark.parametrize("storage", [{"storage_chunk_size": (2, 3, 4)}, {"shard_size": (4, 6, 8)}], ids=str)
def test_sizes_of_storage_chunks_are_given_in_the_order_of_the_input(storage: dict[str, Any], tmp_path: Path) -> None:
    data = write(tmp_path / "embryo.ome.zarr")
    array = label(open_image(tmp_path / "embryo.ome.zarr"), ZarrOutput(tmp_path, **storage))
    if "shard_size" in storage:
        assert array.shards == (1, 8, 6, 4)
    else:
        assert array.chunks == (1, 4, 3, 2)
    assert np.array_equal(array[...], expected(data))


# ---------------------------------------------------------------- the reader of napari


def layers(path: Path) -> list[tuple[Any, dict[str, Any], str]]:
    reader = pytest.importorskip("napari_ome_zarr", reason="napari-ome-zarr is not installed; it needs napari")
    return reader.napari_get_reader(str(path))()


def in_napari(metadata: dict[str, Any], index: Sequence[float]) -> np.ndarray:
    """World coordinates of a voxel in the spatial axes, by napari's own transforms."""
    transforms = pytest.importorskip("napari.utils.transforms")
    spatial = np.array(index)[-len(metadata["scale"]) :]
    affine = transforms.Affine(affine_matrix=metadata["affine"].affine_matrix)
    return np.asarray(affine(np.array(metadata["scale"]) * spatial))[-3:]


@pytest.mark.parametrize("place", ["labels", None])
@pytest.mark.parametrize("axes", ["czyx", "zyx"])
def test_napari_lays_labels_over_their_image(axes: str, place: str | None, tmp_path: Path) -> None:
    path = tmp_path / "data" / "embryo.ome.zarr"
    data = write(path, axes)
    (tmp_path / "results").mkdir()
    where: dict[str, Any] = {"place": "labels"} if place else {"output_dir": tmp_path / "results"}
    label(open_image(path), ZarrOutput(**where, output_postfix="labels", levels=2))
    read = layers(path)
    if not place:
        read += layers(tmp_path / "results" / "embryo" / "embryo_labels.ome.zarr")
    (image, image_metadata, _), (labels, labels_metadata, kind) = read
    assert kind == "labels"
    spatial = np.asarray(labels[0]).reshape(np.asarray(image[0]).shape[-3:])
    assert np.array_equal(spatial, expected(data if "c" in axes else data[None])[0])
    for index in itertools.product((0, 8), (0, 11), (0, 13)):
        ours, theirs = in_napari(labels_metadata, [0, *index]), in_napari(image_metadata, index)
        assert np.allclose(ours, theirs)
    assert labels_metadata["units"][-3:] == image_metadata["units"][-3:] == ("micrometer",) * 3
    assert labels_metadata["axis_labels"][-3:] == image_metadata["axis_labels"][-3:] == ("z", "y", "x")
    assert sorted(labels_metadata["colormap"]) == [1, 2]
