"""Labels are found in an image, and a plate, whose metadata are consolidated."""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from monai_chunked import ZarrOutput, open_image
from monai_chunked.formats.zarr.consolidated import consolidate
from tests.formats.ngff_cases import expected, label, run_again, snapshot, write

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def copies(group: Path) -> dict[str, Any]:
    """What a group keeps of the metadata of others."""
    return dict(json.loads((group / "zarr.json").read_text())["consolidated_metadata"]["metadata"])


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


def test_what_consolidation_itself_makes_is_what_labels_are_found_by(tmp_path: Path) -> None:
    path = tmp_path / "embryo.ome.zarr"
    write(path)
    zarr.consolidate_metadata(path)
    label(open_image(path), ZarrOutput(place="labels", output_postfix="nuclei", levels=2))
    ours: Any = zarr.open_group(path, mode="r").metadata.consolidated_metadata
    zarr.consolidate_metadata(path)
    theirs: Any = zarr.open_group(path, mode="r").metadata.consolidated_metadata
    assert ours.flattened_metadata == theirs.flattened_metadata


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


def test_runs_over_images_of_one_plate_do_not_forget_the_labels_of_each_other(tmp_path: Path) -> None:
    labels = plate_with_labels(tmp_path / "plate", 12)
    with ThreadPoolExecutor(len(labels)) as threads:
        list(threads.map(consolidate, labels))
    plate: Any = zarr.open_group(tmp_path / "plate", mode="r")
    assert [plate[f"{well}/0/labels/nuclei/0"].shape for well in range(len(labels))] == [(1, 2)] * len(labels)


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
