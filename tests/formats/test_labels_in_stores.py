"""Labels go into the store of their image, which is not touched, with colours, names and their source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import ome_zarr_models.v05 as ngff_models
import pytest
import torch
import zarr
from monai.data import MetaTensor

from monai_chunked import ChunkedSlidingWindowInferer, ZarrOutput, open_image
from tests.formats.ngff_cases import (
    Labels,
    assert_same_place,
    described,
    expected,
    label,
    run_again,
    run_until,
    snapshot,
    world,
    write,
)
from tests.outputs.cases import SETTINGS
from tests.refusals import never

# ---------------------------------------------------------------- labels in the store of the image


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


def test_labels_are_not_put_into_an_image_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["ome"]["version"] = "0.6"
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(
        ValueError, match=r"place='labels' writes OME-Zarr 0.5, and .*embryo.ome.zarr is of version 0.6"
    ):
        ChunkedSlidingWindowInferer(6, postprocessing="argmax", output=ZarrOutput(place="labels", output_postfix="a"))(
            open_image(path), never
        )


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
