"""An earlier result stays whole until the one that replaces it is complete, and nobody else's files are touched."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import zarr
from monai.data import MetaTensor

from monai_chunked import ChunkedSlidingWindowInferer, Expected, NiftiOutput, NumpyOutput, ZarrOutput
from monai_chunked.formats.zarr import places
from tests.formats.zarr_cases import boxes, random_values, result, write_all
from tests.killed_run import OUTPUTS, Boom, Network, image, inferer
from tests.outputs.recorded import FORMATS, expected, voxels
from tests.refusals import never

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def earlier(output: str, folder: Path) -> dict[Path, bytes]:
    """The files of another result that is finished, but for its journal."""
    inferer(OUTPUTS[output](folder))(image() + 1, Network())
    return {path: data for path, data in contents(folder).items() if path.suffix != ".journal"}


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("output", FORMATS)
def test_an_earlier_result_is_whole_when_the_run_that_replaces_it_is_killed(
    output: str, resumable: bool, ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (folder := tmp_path / "results").mkdir()
    before = earlier(output, folder)
    seen = tmp_path / "seen"
    kill = {"signal": int(signal.SIGKILL), "seen": seen, "overwrite": True, "resumable": resumable}
    assert ask(output, folder, **kill)["exit"] == -signal.SIGKILL
    assert {path: path.read_bytes() for path in before} == before
    if resumable:  # what may be replaced was said when the run began
        again = inferer(OUTPUTS[output](folder))(image(), Network())
    else:
        again = inferer(OUTPUTS[output](folder), overwrite=True)(image(), Network())
    assert torch.equal(voxels(again), expected())
    assert {path: path.read_bytes() for path in before} != before


@pytest.mark.parametrize(("resumable", "at"), [(True, 1), (True, 30), (False, 30)])
@pytest.mark.parametrize("output", FORMATS)
def test_an_earlier_result_is_whole_when_the_run_that_replaces_it_fails(
    output: str, resumable: bool, at: int, tmp_path: Path
) -> None:
    before, network = earlier(output, tmp_path), Network(at=at)
    known = {"overwrite": "changed"} if resumable else {"overwrite": True, "network_id": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this run cannot be resumed")
        with pytest.raises(Boom):
            inferer(OUTPUTS[output](tmp_path), **known)(image(), network if resumable else lambda *w: network(*w))
    assert {path: path.read_bytes() for path in before} == before
    if at == 1:  # nothing was begun, so it can still be returned
        again = inferer(OUTPUTS[output](tmp_path))(image() + 1, Network(at=1))
        assert not torch.equal(voxels(again), expected())


def test_a_run_that_may_replace_results_may_do_so_for_all_heads_when_it_goes_on(tmp_path: Path) -> None:
    class Two(Network):
        def forward(self, windows: torch.Tensor, coordinates: Any) -> Any:
            both = super().forward(windows, coordinates)
            return {"one": both, "two": -both}

    inferer(NumpyOutput(tmp_path))(image() + 1, Two())
    with pytest.raises(Boom):
        inferer(NumpyOutput(tmp_path), overwrite=True)(image(), Two(at=20))
    again = inferer(NumpyOutput(tmp_path))(image(), Two())
    assert torch.equal(again["two"].as_tensor(), -expected())


# ---------------------------------------------------------------- stores


CUTS = ((0, 3, 7), (0, 5), (0, 4, 6))


def test_a_store_that_lost_its_name_to_a_crash_gets_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = random_values((1, 2, 7, 5, 6)), random_values((1, 2, 7, 5, 6)) + 1
    output, fresh = ZarrOutput(tmp_path), result(old.shape, CUTS)
    replacing = replace(fresh, overwrite=True)
    write_all(output.create(fresh), old, CUTS)

    def stop(*_: Any) -> None:
        raise Boom

    with monkeypatch.context() as patch:
        patch.setattr("monai_chunked.machine.files.rename", stop)  # between the two renames
        with pytest.raises(Boom):
            write_all(output.create(replacing), new, CUTS)
    assert not any(tmp_path.rglob("0_trans.ome.zarr"))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        output.check(Expected(0, metadata=fresh.metadata, overwrite=False))
    writer = output.create(replacing)
    assert np.array_equal(output.load(fresh)[...], old[0].numpy())
    assert np.array_equal(write_all(writer, new, CUTS)[...], new[0].numpy())
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["0_trans.ome.zarr"]


def test_a_store_at_a_url_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    old, new = random_values((1, 2, 7, 5, 6)), random_values((1, 2, 7, 5, 6)) + 1
    output, fresh = ZarrOutput(url, levels=2), result(old.shape, CUTS)
    replacing = replace(fresh, overwrite=True)
    write_all(output.create(fresh), old, CUTS)
    writer = output.create(replacing)
    writer.write(0, boxes(CUTS)[0], new[0][(slice(None), *boxes(CUTS)[0])])
    assert np.array_equal(output.load(fresh)[...], old[0].numpy())
    writer.abandon()
    assert np.array_equal(output.load(fresh)[...], old[0].numpy())
    assert np.array_equal(write_all(output.create(replacing), new, CUTS)[...], new[0].numpy())
    assert not [path for path in fsspec.filesystem("memory").find(f"/{tmp_path.name}") if "partial" in path]


def test_what_is_complete_at_a_url_stays_when_it_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path.name}"
    values, output = random_values((1, 2, 7, 5, 6)), ZarrOutput(url)
    fresh = result(values.shape, CUTS)
    replacing = replace(fresh, overwrite=True)
    write_all(output.create(fresh), values, CUTS)

    async def fail(*_: Any) -> None:
        raise Boom

    monkeypatch.setattr(places, "_move", fail)
    writer = output.create(replacing)
    with pytest.raises(Boom):
        write_all(writer, values + 1, CUTS)
    writer.abandon()
    moved = zarr.open_group(f"{url}/0/0_trans.ome.zarr.partial", mode="r")
    assert np.array_equal(moved["0"][...], values[0].numpy() + 1)  # type: ignore[index, call-overload]


# ---------------------------------------------------------------- files of others


def named(name: str = "scan.nii") -> MetaTensor:
    return MetaTensor(torch.rand(1, 1, 8, 8, 8), meta={"filename_or_obj": name})


def infer(output: Any, network: Any = None, **parameters: Any) -> Any:
    network = torch.nn.Conv3d(1, 2, 1) if network is None else network
    return ChunkedSlidingWindowInferer(6, output=output, overwrite=True, **parameters)(named(), network)


@pytest.mark.parametrize("name", ["scan_trans.ome.zarr", "scan_trans.ome.zarr.partial"])
def test_a_folder_that_is_no_store_is_not_removed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"is no .*store.*{name}'"):
        infer(ZarrOutput(tmp_path, separate_folder=False), never)
    assert contents(tmp_path) == before


def test_files_at_a_url_that_are_no_store_are_not_removed(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{tmp_path.name}/scan_trans.ome.zarr/notes.txt", b"mine")
    output = ZarrOutput(f"memory://{tmp_path.name}", separate_folder=False)
    for overwrite in (True, False):
        with pytest.raises(FileExistsError, match=r"scan_trans\.ome\.zarr"):
            ChunkedSlidingWindowInferer(6, output=output, overwrite=overwrite)(named(), never)
    assert memory.cat(f"/{tmp_path.name}/scan_trans.ome.zarr/notes.txt") == b"mine"


@pytest.mark.parametrize("kind", [NumpyOutput, NiftiOutput])
def test_a_folder_is_not_replaced_by_a_file(kind: Any, tmp_path: Path) -> None:
    output = kind(tmp_path, separate_folder=False)
    for path in (output.paths([{"filename_or_obj": "scan.nii"}])[0], *output.taken([{"filename_or_obj": "scan.nii"}])):
        if "journal" not in path.name:
            path.mkdir()
            with pytest.raises(IsADirectoryError, match="move it away"):
                infer(output, never)
            path.rmdir()


def test_a_folder_of_somebody_else_beside_a_store_is_not_removed(tmp_path: Path) -> None:
    output = ZarrOutput(tmp_path, separate_folder=False)
    infer(output)
    (tmp_path / "scan_trans.ome.zarr.old").mkdir()
    (tmp_path / "scan_trans.ome.zarr.old" / "notes.txt").write_text("mine")
    infer(output)
    assert (tmp_path / "scan_trans.ome.zarr.old" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("output", FORMATS)
def test_what_a_link_leads_to_is_not_touched(output: str, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    (results := tmp_path / "results").mkdir()
    infer(OUTPUTS[output](other))
    moved = next(path for path in (other / "scan").iterdir() if path.suffix != ".journal")
    before = contents(other)
    (results / "scan").mkdir()
    (results / "scan" / moved.name).symlink_to(moved)
    assert not torch.equal(torch.as_tensor(infer(OUTPUTS[output](results))[:]), torch.zeros(1))
    assert not (results / "scan" / moved.name).is_symlink()
    assert contents(other) == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("output", ["npy", "nii", "nii.gz"])
def test_what_a_file_is_linked_to_is_not_touched(output: str, link: Callable[..., None], tmp_path: Path) -> None:
    (folder := tmp_path / "scan").mkdir()
    (tmp_path / "mine").write_text("mine")
    for path in OUTPUTS[output](tmp_path).taken([{"filename_or_obj": "scan.nii"}]):  # type: ignore[attr-defined]
        if not path.name.endswith((".journal", ".lock")):
            link(tmp_path / "mine", path)
    infer(OUTPUTS[output](tmp_path))
    assert (tmp_path / "mine").read_text() == "mine"
    assert len(list(folder.iterdir())) == 2


# ---------------------------------------------------------------- two runs, one name


def test_a_nii_and_a_nii_gz_of_the_same_image_do_not_mix(tmp_path: Path) -> None:
    packed = NiftiOutput(tmp_path, output_ext=".nii.gz")
    with pytest.raises(Boom):
        inferer(packed)(image(), Network(at=30))
    inferer(NiftiOutput(tmp_path))(image() + 1, Network())
    network = Network()
    assert torch.equal(voxels(inferer(packed)(image(), network)), expected())
    assert network.batches < 30


@pytest.mark.parametrize("output", FORMATS)
def test_a_second_run_on_the_same_result_is_refused_also_where_runs_cannot_be_resumed(
    output: str, tmp_path: Path
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(60)

    network, results = Network(at=3, act=wait), []

    def first() -> None:
        with torch.no_grad():
            once = inferer(OUTPUTS[output](tmp_path), network_id=None)
            results.append(once(image(), lambda *windows: network(*windows)))

    warnings.filterwarnings("ignore", "this run cannot be resumed")
    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert inside.wait(60)
        for known in ({"network_id": None}, {}):
            with pytest.raises(BlockingIOError, match="another run is writing this result"):
                inferer(OUTPUTS[output](tmp_path), overwrite=True, **known)(image(), lambda *windows: 1 / 0)
    finally:
        go_on.set()
        thread.join()
    assert torch.equal(voxels(results[0]), expected())
    assert not any(tmp_path.rglob("*.lock"))


def test_a_result_of_output_auto_is_not_returned_as_that_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferer("disk", output_dir=tmp_path)(image(), Network())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr("monai_chunked.outputs.auto.available_memory", lambda device: 0)
        inferer("auto", output_dir=tmp_path, overwrite=True, cpu_memory="1GiB")(image() + 1, Network())
    with pytest.raises(FileExistsError, match="exists; overwrite=True"):
        inferer("disk", output_dir=tmp_path)(image(), Network(at=1))


def test_the_same_image_twice_gets_no_labels_twice(tmp_path: Path) -> None:
    store = tmp_path / "embryo.ome.zarr"
    zarr.create_group(store)
    metadata = ({"ome_zarr": str(store)},) * 2
    with pytest.raises(FileExistsError, match="2 images of the batch"):
        ZarrOutput(place="labels").check(Expected(0, metadata=metadata))


@pytest.mark.parametrize("output", ["nii", "nii.gz", "zarr"])
def test_a_batch_is_not_returned_when_another_run_has_replaced_the_result_of_one_of_its_images(
    output: str, tmp_path: Path
) -> None:
    """Which is found by the name of its own image, not by that of the batch's first one."""
    inferer(OUTPUTS[output](tmp_path))(image(), Network())
    second = image()[1:]
    replaced = inferer(OUTPUTS[output](tmp_path), overwrite=True)(second + 1, Network())
    with pytest.raises(OSError, match=r"the chunk of image 1 at .* is not what was written; overwrite=True starts afr"):
        inferer(OUTPUTS[output](tmp_path))(image(), Network(at=1))
    again = inferer(OUTPUTS[output](tmp_path), overwrite="changed")(image(), Network())
    assert torch.equal(voxels(again), expected())
    del replaced
