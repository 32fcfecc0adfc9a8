"""Labels go into the store of their image, which is not touched, with colours, names and their source."""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v05 as ngff_models
import pytest
import torch
import zarr
from monai.data import MetaTensor

from monai_chunked import ChunkedSlidingWindowInferer, ZarrOutput, open_image
from monai_chunked.outputs.zarr.consolidated import consolidate
from tests.outputs.cases import SETTINGS
from tests.outputs.ngff_cases import (
    Labels,
    assert_same_place,
    described,
    expected,
    label,
    run_again,
    run_until,
    world,
    write,
)
from tests.refusals import never

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


# ---------------------------------------------------------------- consolidated metadata


def copies(group: Path) -> dict[str, Any]:
    """What a group keeps of the metadata of others."""
    return dict(json.loads((group / "zarr.json").read_text())["consolidated_metadata"]["metadata"])


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("postfix", ["nuclei", "a b"])
def test_labels_are_found_in_an_image_with_consolidated_metadata_which_keeps_all_else(
    postfix: str, tmp_path: Path
) -> None:
    path = tmp_path / "embryo.ome.zarr"
    data = write(path)
    zarr.open_group(path, mode="a").create_group("elsewhere").attrs["kept"] = {"as": ["it", "is"]}
    zarr.consolidate_metadata(path)
    attributes, before = dict(zarr.open_group(path, mode="r").attrs), copies(path)
    others = {name: content for name, content in snapshot(path).items() if name != "zarr.json"}
    for levels in (1, 2):
        output = ZarrOutput(place="labels", output_postfix=postfix, levels=levels)
        label(open_image(path), output, overwrite=True)
        group: Any = zarr.open_group(path, mode="r")
        assert group.metadata.consolidated_metadata is not None
        assert np.array_equal(group[f"labels/{postfix}/0"][...], expected(data))
        assert group["labels"].attrs["ome"]["labels"] == [postfix]
        assert [name for name in copies(path) if name.startswith(f"labels/{postfix}/")] == [
            f"labels/{postfix}/{level}" for level in range(levels)
        ]
    assert dict(zarr.open_group(path, mode="r").attrs) == attributes
    assert {name: copy for name, copy in copies(path).items() if not name.startswith("labels")} == before
    assert {name: content for name, content in snapshot(path).items() if name != "zarr.json"} == others
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith((".lock", ".unfinished"))]


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_what_consolidation_itself_makes_is_what_labels_are_found_by(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    zarr.consolidate_metadata(path)
    label(open_image(path), ZarrOutput(place="labels", output_postfix="nuclei", levels=2))
    ours: Any = zarr.open_group(path, mode="r").metadata.consolidated_metadata
    zarr.consolidate_metadata(path)
    theirs: Any = zarr.open_group(path, mode="r").metadata.consolidated_metadata
    assert ours.flattened_metadata == theirs.flattened_metadata


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_labels_that_are_replaced_are_replaced_in_consolidated_metadata_too(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    data = write(path)
    label(open_image(path), ZarrOutput(place="labels", output_postfix="nuclei", storage_chunk_size=4))
    for group in (path / "labels", path):
        zarr.consolidate_metadata(group)
    label(open_image(path), ZarrOutput(place="labels", output_postfix="nuclei", storage_chunk_size=5), overwrite=True)
    found: Any = zarr.open_group(path, mode="r")["labels/nuclei/0"]
    assert found.chunks == zarr.open_array(path / "labels" / "nuclei" / "0", mode="r").chunks
    assert np.array_equal(found[...], expected(data))


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_plate_whose_metadata_are_consolidated_knows_labels_of_its_images(tmp_path: Path) -> None:
    path = tmp_path / "plate.ome.zarr"
    for group in ("", "A", "A/1", "A/2"):
        zarr.open_group(path / group, mode="w")
    data = [write(path / f"A/{well}/0") for well in (1, 2)]
    for group in ("A/1/0", ""):  # as tools do that consolidate each image, and the whole in the end
        zarr.consolidate_metadata(path / group)
    for well in (1, 2):
        label(open_image(path / f"A/{well}/0"), ZarrOutput(place="labels", output_postfix="nuclei"))
    plate: Any = zarr.open_group(path, mode="r")
    for well in (1, 2):
        assert np.array_equal(plate[f"A/{well}/0/labels/nuclei/0"][...], expected(data[well - 1]))
    image: Any = zarr.open_group(path / "A/1/0", mode="r")
    assert image["labels/nuclei"].attrs["ome"]["version"] == "0.5"


def plate_with_labels(path: Path, wells: int) -> list[Path]:
    """Labels in the images of a plate that does not know of them yet."""
    for well in range(wells):
        write(path / f"{well}/0")
    for group in ("", *map(str, range(wells))):
        zarr.open_group(path / group, mode="a")
    zarr.consolidate_metadata(path)
    labels = [path / f"{well}/0/labels/nuclei" for well in range(wells)]
    for each in labels:
        zarr.open_group(each.parent, mode="w")
        zarr.open_group(each, mode="w").create_array("0", shape=(1, 2), dtype="u1")
    return labels


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_runs_over_images_of_one_plate_do_not_forget_the_labels_of_each_other(tmp_path: Path) -> None:
    labels = plate_with_labels(tmp_path / "plate", 12)
    with ThreadPoolExecutor(len(labels)) as threads:
        list(threads.map(consolidate, labels))
    plate: Any = zarr.open_group(tmp_path / "plate", mode="r")
    assert [plate[f"{well}/0/labels/nuclei/0"].shape for well in range(len(labels))] == [(1, 2)] * len(labels)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_plate_that_may_not_be_written_to_is_warned_of() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (labels,) = plate_with_labels(Path(folder, "plate"), 1)
        before = Path(folder, "plate", "zarr.json").read_bytes()
        os.chmod(Path(folder, "plate"), 0o555)
        user = os.geteuid()
        try:
            if user == 0:  # who may do everything
                os.seteuid(65534)
            with pytest.warns(
                UserWarning, match=r"is complete, but .*plate, which has consolidated metadata, cannot be"
            ):
                consolidate(labels)
        finally:
            if user == 0:
                os.seteuid(0)
            os.chmod(Path(folder, "plate"), 0o755)
        assert Path(folder, "plate", "zarr.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_run_that_ended_before_it_could_consolidate_is_made_good_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    data = write(path)
    zarr.consolidate_metadata(path)
    before = (path / "zarr.json").read_bytes()
    output = ZarrOutput(place="labels", output_postfix="nuclei")
    run_again(open_image(path), output)
    (path / "zarr.json").write_bytes(before)
    run_again(open_image(path), output)
    found: Any = zarr.open_group(path, mode="r")["labels/nuclei/0"]
    assert np.array_equal(found[...], expected(data))


def test_an_image_without_consolidated_metadata_gets_none(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    before = snapshot(path)
    label(open_image(path), ZarrOutput(place="labels", output_postfix="nuclei"))
    assert snapshot(path) == before


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
