"""A run that was killed goes on where it stopped, to the same bits; nothing else is ever mixed with it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import resource
import shutil
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr

from monai_chunked import (
    ChunkedSlidingWindowInferer,
    NiftiOutput,
    NumpyOutput,
    ZarrOutput,
    open_image,
)
from tests.killed_run import OUTPUTS, OVERLAP, ROI, SIZE, WINDOWS, Boom, Network, image, inferer
from tests.outputs.recorded import (
    FIRST_IS_DONE,
    FORMATS,
    expected,
    records,
    voxels,
    windows_that_touch_what_is_not_recorded,
)
from tests.watching import Watching

MOMENTS = 10
"""How many times each output is killed."""


@pytest.mark.parametrize("output", FORMATS)
def test_a_run_that_is_killed_goes_on_to_the_same_bits_without_predicting_again_what_is_recorded(
    output: str, ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    reference = expected()
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments are drawn with seed {seed}")
    moments = random.Random(seed)
    for moment in range(MOMENTS):
        folder = tmp_path / str(moment)
        folder.mkdir()
        windows = moments.randint(0, WINDOWS)
        killed = ask(output, folder, windows, moments.uniform(0, 0.01))
        assert killed["exit"] in (-9, 0)
        begun = any(folder.rglob("*.journal")) and any("result" in record for record in records(folder))
        missing = windows_that_touch_what_is_not_recorded(folder) if begun else None
        (folder / "seen").write_text("")
        network = Network(folder / "seen")
        with torch.no_grad():
            result = inferer(OUTPUTS[output](folder))(image(), network)
        assert torch.equal(voxels(result), reference)
        seen = [json.loads(line) for line in (folder / "seen").read_text().splitlines()]
        assert begun or windows < FIRST_IS_DONE
        if missing is not None:  # windows come in batches of two, of which one may be there already
            assert [window for window in seen if window in missing] == missing
            assert len(seen) <= 2 * len(missing)


@pytest.mark.parametrize("output", FORMATS)
def test_a_run_that_is_resumed_again_and_again_ends_in_the_same_bits(output: str, tmp_path: Path) -> None:
    for at in (5, 5, 5):
        with pytest.raises(Boom), torch.no_grad():
            inferer(OUTPUTS[output](tmp_path))(image(), Network(at=at))
    with torch.no_grad():
        result = inferer(OUTPUTS[output](tmp_path))(image(), Network())
    assert torch.equal(voxels(result), expected())


@pytest.mark.parametrize("output", FORMATS)
def test_the_same_call_again_returns_the_result_without_the_network(output: str, tmp_path: Path) -> None:
    with torch.no_grad():
        inferer(OUTPUTS[output](tmp_path))(image(), Network())
        today = datetime.now().strftime("%Y-%m-%d")
        with pytest.warns(UserWarning, match=rf"first_trans.* an earlier run finished it on {today}.* without running"):
            again = inferer(OUTPUTS[output](tmp_path))(image(), Network(at=1))
    assert torch.equal(voxels(again), expected())


def other_weights() -> Network:
    network = Network()
    torch.nn.init.constant_(network.weight, 2.0)
    return network


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": other_weights}, "network weights"),
        ({"image": lambda: image() + 1}, "input"),
        ({"overlap": 0.25}, r"overlap \(0.5 before, 0.25 now\)"),
        ({"mode": "constant"}, "importance map"),
        ({"sw_batch_size": 3}, r"sw_batch_size \(2 before, 3 now\)"),
        ({"postprocessing": "argmax"}, "postprocessing"),
        ({"preprocessing": torch.neg}, "preprocessing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_input_network_or_setting_is_refused_by_name_until_overwrite(
    change: dict[str, Any], named: str, output: str, finished: bool, tmp_path: Path
) -> None:
    def again(overwrite: bool) -> Any:
        options = {"roi_size": ROI, "sw_batch_size": 2, "overlap": OVERLAP, "mode": "gaussian", "with_coord": True}
        options |= {"network_id": "sigmoid"}
        options |= {key: value for key, value in change.items() if key not in ("network", "image")}
        output_object = OUTPUTS[output](tmp_path)
        return ChunkedSlidingWindowInferer(**options, output=output_object, overwrite=overwrite)(
            change.get("image", image)(), change.get("network", Network)()
        )

    with torch.no_grad():
        with contextlib.suppress(Boom):
            inferer(OUTPUTS[output](tmp_path))(image(), Network(at=None if finished else 20))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(FileExistsError, match=f"what differs: .*{named}.*overwrite=True"):
            again(overwrite=False)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        replaced = again(overwrite=True)
        assert torch.equal(voxels(replaced).double(), expected().double()) == ("sw_batch_size" in change)
        assert torch.equal(voxels(again(overwrite=False)), voxels(replaced))


@pytest.mark.parametrize("kind", ["memmap", "zarr", "nifti"])
def test_a_file_that_changes_where_no_sample_lies_is_another_input(kind: str, tmp_path: Path) -> None:
    def lazy() -> Any:
        if kind == "memmap":
            return np.load(tmp_path / "input.npy", mmap_mode="r")
        return zarr.open_array(tmp_path / "input.zarr") if kind == "zarr" else open_image(tmp_path / "input.nii")

    values = np.random.default_rng(0).random((1, 1, *SIZE), np.float32)
    (tmp_path / "results").mkdir()
    for moved in (0.0, 1.0):
        values[0, 0, 9, 9, 9] += moved  # beside the boxes of 8 voxels at 0, 7 or 6 or 5, ...
        np.save(tmp_path / "input.npy", values)
        zarr.create_array(tmp_path / "input.zarr", data=values, chunks=(1, 1, 8, 8, 8), overwrite=True)
        nibabel.save(nibabel.Nifti1Image(values[0, 0], np.eye(4)), tmp_path / "input.nii")
        output = NumpyOutput(tmp_path / "results")
        with torch.no_grad():
            if not moved or kind != "nifti":  # others have no name: another input has another one
                inferer(output)(lazy(), Network())
            else:
                with pytest.raises(FileExistsError, match="what differs: input"):
                    inferer(output)(lazy(), Network())
    assert len(list((tmp_path / "results").rglob("*.npy"))) == (1 if kind == "nifti" else 2)


@pytest.mark.parametrize("keys", ["2.", "2/", "3.", "3/", "3/ sharded"])
def test_only_what_belongs_to_a_zarr_array_is_compared(keys: str, tmp_path: Path) -> None:
    version, separator, *sharded = keys
    values = np.random.default_rng(0).random((1, 1, *SIZE), np.float32)
    path = tmp_path / "raw"
    encoding = {"name": "default" if version == "3" else "v2", "separator": separator}
    options: Any = {"zarr_format": int(version), "chunk_key_encoding": encoding}
    shards = (1, 1, 16, 16, 16) if sharded else None
    array = zarr.create_array(path, data=values, chunks=(1, 1, 8, 8, 8), shards=shards, **options)
    output = NumpyOutput(tmp_path / "results")
    with torch.no_grad():
        inferer(output)(zarr.open_array(path, mode="r"), Network())
        shutil.copytree(path, path / "raw_trans.ome.zarr" / "0")  # the result of somebody else, say
        (path / ".DS_Store").write_text("of the desktop")
        with pytest.warns(UserWarning, match="without running the network"):
            inferer(output)(zarr.open_array(path, mode="r"), Network(at=1))
        array[0, 0, 9, 9, 9] += 1
        inferer(output)(zarr.open_array(path, mode="r"), Network())
    assert len(list((tmp_path / "results").rglob("*.npy"))) == 2


def test_a_limit_or_a_chunk_size_may_change_since_results_do_not_depend_on_it(tmp_path: Path) -> None:
    with torch.no_grad():
        with pytest.raises(Boom):
            inferer(NumpyOutput(tmp_path))(image(), Network(at=20))
        network = Network()
        result = inferer(NumpyOutput(tmp_path), cpu_memory="100KiB", chunk_size=7)(image(), network)
    assert torch.equal(voxels(result), expected())
    assert network.batches < 40


def test_what_is_finished_takes_no_memory_and_no_scratch_again(tmp_path: Path) -> None:
    reference = expected()
    limited = {"cpu_memory": "45KiB", "progress": (watching := Watching())}
    folders = tmp_path / "whole", tmp_path / "broken"
    for folder in folders:
        folder.mkdir()
    with torch.no_grad():
        inferer(NumpyOutput(folders[0]), **limited)(image(), Network())
        with pytest.raises(Boom):
            inferer(NumpyOutput(folders[1]), **limited)(image(), Network(at=40))
        result = inferer(NumpyOutput(folders[1]), **limited)(image(), Network())
    assert torch.equal(voxels(result), reference)
    whole, broken, resumed = (levels.written for levels in watching.runs)
    assert whole > 0
    assert 0 < resumed < whole / 2 < broken


def test_a_network_that_cannot_be_compared_is_resumed_only_by_its_network_id(tmp_path: Path) -> None:
    network, calls, lock = Network(), [], threading.Lock()

    def function(windows: torch.Tensor, coordinates: Any) -> torch.Tensor:
        with lock:
            calls.append(coordinates)
        if len(calls) == 20:
            raise Boom
        return network(windows, coordinates)

    with torch.no_grad():
        with pytest.raises(Boom), pytest.warns(UserWarning, match=r"cannot be resumed.* network.lock: .*network_id="):
            inferer(NumpyOutput(tmp_path), network_id=None)(image(), function)
        assert not any(path.is_file() for path in tmp_path.rglob("*")), "it cannot be resumed, so nothing is kept"
        calls.clear()
        with pytest.raises(Boom):
            inferer(NumpyOutput(tmp_path), network_id="sigmoid, version 1")(image(), function)
        with pytest.raises(FileExistsError, match="network_id"):
            inferer(NumpyOutput(tmp_path), network_id="sigmoid, version 2")(image(), function)
        assert len(calls) == 20
        result = inferer(NumpyOutput(tmp_path), network_id="sigmoid, version 1")(image(), function)
    assert torch.equal(voxels(result), expected())
    assert len(calls) < 20 + 40


@pytest.mark.parametrize("postprocessing", [None, torch.sigmoid, "argmax"])
def test_several_outputs_are_resumed_together(postprocessing: Any, tmp_path: Path) -> None:
    class Two(Network):
        def forward(self, windows: torch.Tensor, coordinates: Any) -> Any:
            both = super().forward(windows, coordinates)
            return {"seg": both, "low": torch.nn.functional.avg_pool3d(both, 2)}

    with torch.no_grad():
        options = {"postprocessing": postprocessing}
        reference = inferer("cpu", **options)(image(), Two())
        for at in (20, 31):
            with pytest.raises(Boom):
                inferer(NumpyOutput(tmp_path), **options)(image(), Two(at=at))
        network = Two()
        result = inferer(NumpyOutput(tmp_path), **options)(image(), network)
        again = inferer(NumpyOutput(tmp_path), **options)(image(), Two(at=1))
    assert network.batches < 40
    assert {path.name for path in tmp_path.rglob("*.npy")} == {"first_trans-low.npy", "first_trans-seg.npy"}
    for each in (result, again):
        assert list(each) == ["low", "seg"]
        assert all(torch.equal(voxels(each[key]), reference[key].as_tensor()) for key in each)


def test_images_without_a_name_are_told_apart_by_their_voxels(tmp_path: Path) -> None:
    first, second = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        results = [inferer("disk", output_dir=tmp_path)(x, Network()) for x in (first, second)]
        again = [inferer("disk", output_dir=tmp_path)(x, Network(at=1)) for x in (first, second)]
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    assert all(torch.equal(a, b) for a, b in zip(results, again))


@pytest.mark.parametrize("output", FORMATS)
def test_a_result_that_somebody_removed_is_made_again(output: str, tmp_path: Path) -> None:
    with torch.no_grad():
        inferer(OUTPUTS[output](tmp_path))(image(), Network())
        for path in tmp_path.rglob("*"):
            if path.is_file() and not path.name.endswith(".journal"):
                path.unlink()
        for path in tmp_path.rglob("*.zarr"):
            os.system(f"rm -r '{path}'")
        result = inferer(OUTPUTS[output](tmp_path))(image(), Network())
    assert torch.equal(voxels(result), expected())


@pytest.mark.parametrize("output", FORMATS)
def test_a_second_run_on_the_same_result_is_refused_while_the_first_one_lasts(output: str, tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(600)

    results: list[Any] = []

    def first() -> None:
        with torch.no_grad():
            results.append(inferer(OUTPUTS[output](tmp_path))(image(), Network(at=3, act=wait)))

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert inside.wait(600)
        for overwrite in (False, True):
            with pytest.raises(BlockingIOError, match="another run is writing this result"):
                inferer(OUTPUTS[output](tmp_path), overwrite=overwrite)(image(), Network())
    finally:
        go_on.set()
        thread.join()
    assert torch.equal(voxels(results[0]), expected())


def test_the_lock_of_a_dead_process_does_not_hold(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    assert ask("npy", tmp_path, WINDOWS // 2)["exit"] == -9
    assert any(tmp_path.rglob("*.lock"))
    with torch.no_grad():
        result = inferer(NumpyOutput(tmp_path))(image(), Network())
    assert torch.equal(voxels(result), expected())
    assert not any(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("output", FORMATS)
def test_a_full_disk_is_said_within_a_batch_and_freeing_space_is_enough(output: str, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    network = Network(at=10, act=limit)
    try:
        with pytest.raises(OSError, match=re.escape(str(tmp_path))) as caught, torch.no_grad():
            inferer(OUTPUTS[output](tmp_path))(image(), network)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    with torch.no_grad():
        result = inferer(OUTPUTS[output](tmp_path))(image(), Network())
    assert torch.equal(voxels(result), expected())


def test_outputs_that_cannot_be_resumed_leave_no_journal(tmp_path: Path) -> None:
    with torch.no_grad():
        inferer("disk")(image(), Network())
        inferer("auto", output_dir=tmp_path)(image(), Network())
    assert not any(tmp_path.rglob("*"))


def test_the_formats_are_those_that_users_have() -> None:
    assert {type(OUTPUTS[name](Path())) for name in ("npy", "nii", "zarr")} == {NumpyOutput, NiftiOutput, ZarrOutput}
