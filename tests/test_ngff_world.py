"""Results lie over their image: in the world as viewers compute it, and in the image's own store."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v05 as ngff_models
import pytest
import torch
import zarr
from monai.data import MetaTensor, decollate_batch
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer, NumpyOutput, ZarrOutput, open_image

SETTINGS: dict[str, Any] = {"roi_size": 6, "overlap": 0.5, "mode": "gaussian"}
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


class Stop(Exception):
    pass


class Stopping(Labels):
    """Fails at a window."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = [at]

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self._left[0] -= 1
        if self._left[0] < 0:
            raise Stop
        return super().forward(windows)


def run_until(image: Any, output: ZarrOutput, window: int) -> None:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, postprocessing="argmax", output=output, network_id="labels")
    network = Stopping(window)
    with pytest.raises(Stop):
        inferer(image, lambda windows: network(windows))


def run_again(image: Any, output: ZarrOutput) -> Any:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, postprocessing="argmax", output=output, network_id="labels")
    network = Stopping(10**6)
    return inferer(image, lambda windows: network(windows))


# ---------------------------------------------------------------- labels in the store of the image


def snapshot(path: Path) -> dict[str, bytes]:
    """All files of an image but its labels."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.relative_to(path).parts[0] != "labels"}


def test_labels_go_into_the_store_of_their_image_which_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    data = write(path)
    before = snapshot(path)
    for postfix in ("nuclei", "cells"):
        array = label(open_image(path), ZarrOutput(place="labels", output_postfix=postfix, levels=2))
        assert np.array_equal(array[...], expected(data))
    assert snapshot(path) == before
    group = zarr.open_group(path, mode="r")
    assert group["labels"].attrs["ome"] == {"version": "0.5", "labels": ["cells", "nuclei"]}
    assert described(path, ngff_models.Image).multiscales[0].name == "embryo.ome"
    ome = described(path / "labels" / "nuclei")
    assert ome.image_label.source.image == "../../"
    assert_same_place(world(path / "labels" / "nuclei", 0, [0, 1, 2, 3]), world(path, 0, [0, 1, 2, 3]))
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name or p.name.endswith(".lock")]


def test_labels_that_are_finished_are_returned_and_replaced_only_if_they_may(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    data = write(path)
    output = ZarrOutput(place="labels", output_postfix="nuclei")
    label(open_image(path), output)
    again = ChunkedSlidingWindowInferer(**SETTINGS, postprocessing="argmax", output=output)(open_image(path), Labels())
    assert np.array_equal(again[...], expected(data))
    with pytest.raises(FileExistsError):
        label(open_image(path), output, sw_batch_size=2)
    assert np.array_equal(label(open_image(path), output, overwrite=True)[...], expected(data))
    assert zarr.open_group(path, mode="r")["labels"].attrs["ome"]["labels"] == ["nuclei"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize("window", [0, 1, 5, 20])
def test_a_run_that_fails_leaves_the_store_of_the_image_as_it_was_and_can_be_resumed(
    window: int, tmp_path: Path
) -> None:
    path = tmp_path / "embryo.ome.zarr"
    data = write(path)
    before = snapshot(path)
    output = ZarrOutput(place="labels", output_postfix="nuclei")
    run_until(open_image(path), output, window)
    assert snapshot(path) == before
    assert not (path / "labels").exists()
    assert np.array_equal(run_again(open_image(path), output)[...], expected(data))
    assert snapshot(path) == before


def test_labels_that_were_published_but_not_listed_are_listed_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    data = write(path)
    output = ZarrOutput(place="labels", output_postfix="nuclei")
    label(open_image(path), output)
    (path / "labels" / "zarr.json").unlink()  # as if the process had ended in between
    assert np.array_equal(label(open_image(path), output)[...], expected(data))
    assert zarr.open_group(path, mode="r")["labels"].attrs["ome"]["labels"] == ["nuclei"]  # type: ignore[index, call-overload]


def test_labels_by_others_stay_listed(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    zarr.open_group(path, mode="r+").create_group("labels", attributes={"ome": {"version": "0.5", "labels": ["hand"]}})
    label(open_image(path), ZarrOutput(place="labels", output_postfix="nuclei"))
    assert zarr.open_group(path, mode="r")["labels"].attrs["ome"]["labels"] == ["hand", "nuclei"]  # type: ignore[index, call-overload]


def test_what_cannot_hold_labels_is_refused_before_the_network_runs(tmp_path: Path) -> None:
    def never(windows: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network ran")

    write(tmp_path / "old.ome.zarr", version="0.4")
    np.save(tmp_path / "image.npy", np.zeros((8, 8, 8), np.float32))
    inferer = ChunkedSlidingWindowInferer(6, postprocessing="argmax", output=ZarrOutput(place="labels"))
    for image in (
        open_image(tmp_path / "old.ome.zarr"),
        open_image(tmp_path / "image.npy"),
        torch.zeros(1, 1, 8, 8, 8),
    ):
        with pytest.raises(ValueError, match=r"place='labels' needs an OME-Zarr 0\.5 image"):
            inferer(image, never)
    write(tmp_path / "embryo.ome.zarr")
    for postfix in ("../nuclei", "..", "", "a/b"):
        output = ZarrOutput(place="labels", output_postfix=postfix)
        with pytest.raises(ValueError, match="output_postfix"):
            ChunkedSlidingWindowInferer(6, postprocessing="argmax", output=output)(
                open_image(tmp_path / "embryo.ome.zarr"), never
            )
    for arguments in ({"place": "labels", "output_dir": tmp_path}, {}, {"place": "there"}):
        with pytest.raises(ValueError, match="place="):
            ZarrOutput(**arguments)
    with pytest.raises(ValueError, match="label=False"):
        ZarrOutput(place="labels", label=False)


# ---------------------------------------------------------------- colours, names and source


def test_labels_have_colours_names_and_their_source(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    label(open_image(path), ZarrOutput(tmp_path, "labels", label_names={1: "membrane"}))
    ome = described(tmp_path / "embryo" / "embryo_labels.ome.zarr")
    colors, properties = ome.image_label.colors, ome.image_label.properties
    assert [color.label_value for color in colors] == [1, 2]
    assert len({tuple(color.rgba) for color in colors}) == 2
    attributes = json.loads((tmp_path / "embryo" / "embryo_labels.ome.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["ome"]["image-label"]["properties"] == [
        {"label-value": 1, "name": "membrane"},
        {"label-value": 2, "name": "label 2"},
    ]
    assert len(properties) == 2
    source = tmp_path / "embryo" / "embryo_labels.ome.zarr" / ome.image_label.source.image
    assert source.resolve() == path.resolve()


def test_a_resumed_run_writes_the_same_metadata(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        write(tmp_path / name / "embryo.ome.zarr")
        output = ZarrOutput(tmp_path / name, "labels", separate_folder=False)
        if name == "resumed":
            run_until(open_image(tmp_path / name / "embryo.ome.zarr"), output, 20)
        run_again(open_image(tmp_path / name / "embryo.ome.zarr"), output)
    one, other = ((tmp_path / name / "embryo_labels.ome.zarr" / "zarr.json") for name in ("whole", "resumed"))
    assert json.loads(one.read_text()) == json.loads(other.read_text())


def test_labels_of_what_is_no_ome_zarr_name_no_source(tmp_path: Path) -> None:
    image = MetaTensor(torch.rand(1, 1, 7, 8, 9), meta={"filename_or_obj": "scan.nii.gz"})
    label(image, ZarrOutput(tmp_path, separate_folder=False))
    assert described(tmp_path / "scan_trans.ome.zarr").image_label.source is None


# ---------------------------------------------------------------- time series


@pytest.mark.parametrize("axes", ["tczyx", "tzyx"])
def test_a_time_series_becomes_a_result_for_each_point_with_its_number_behind_the_name(
    axes: str, tmp_path: Path
) -> None:
    path = tmp_path / "movie.ome.zarr"
    data = write(path, axes)
    points = data if "c" in axes else data[:, None]
    (folder := tmp_path / "results").mkdir()
    arrays = label(open_image(path), ZarrOutput(folder, "labels", separate_folder=False, levels=2))
    found = sorted(p.name for p in folder.glob("*.zarr"))
    assert found == [f"movie_labels_t00{time}.ome.zarr" for time in range(3)]
    for time, array in enumerate(arrays):
        assert np.array_equal(array[...], expected(points[time]))
    index = [1, 2, 3]
    ours = world(folder / "movie_labels_t001.ome.zarr", 0, [0, *index])
    assert_same_place(ours, world(path, 0, [*[0] * (len(axes) - 3), *index]))


def test_one_point_of_a_time_series_is_read_and_named_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "movie.ome.zarr"
    data = write(path, "tczyx")
    (folder := tmp_path / "results").mkdir()
    for time in range(len(open_image(path))):
        image = open_image(path, time=time)
        assert image.shape == (1, 1, 14, 12, 9)
        assert np.array_equal(image, open_image(path)[time : time + 1])
        assert np.array_equal(image[0, :, 3:5, ..., 2], open_image(path)[time, :, 3:5, ..., 2])
        array = label(image, ZarrOutput(folder, "labels", separate_folder=False))
        assert np.array_equal(array[...], expected(data[time]))
        label(image, ZarrOutput(place="labels", output_postfix="cells"))
    assert sorted(p.name for p in folder.glob("*.zarr")) == [f"movie_labels_t00{time}.ome.zarr" for time in range(3)]
    assert sorted(p.name for p in (path / "labels").iterdir() if p.is_dir()) == [f"cells_t00{t}" for t in range(3)]


def test_a_npy_holds_all_points_of_a_batch_and_has_the_number_of_one_alone(tmp_path: Path) -> None:
    write(tmp_path / "movie.ome.zarr", "tczyx")
    output = NumpyOutput(tmp_path, "labels", separate_folder=False)
    assert len(label(open_image(tmp_path / "movie.ome.zarr"), output)) == 3
    assert len(label(open_image(tmp_path / "movie.ome.zarr", time=1), output)) == 1
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["movie_labels.npy", "movie_labels_t001.npy"]


def test_a_time_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "movie.ome.zarr", "tczyx")
    for time in (-1, 3):
        with pytest.raises(ValueError, match=f"time={time} must be at least 0 and less than 3"):
            open_image(tmp_path / "movie.ome.zarr", time=time)


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
