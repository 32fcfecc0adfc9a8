"""Each voxel of an array is read once, from rows that are kept as the plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, WrapperStore

from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.inputs import kept_rows
from monai_chunked.inputs.kept_rows import KeptRows, plan_rows
from monai_chunked.plan.window_grid import window_grid
from tests.inputs.lazy_cases import SETTINGS, Recording, cases, infer, monai, network, stored, tensor, volume

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


def test_a_read_is_no_larger_than_the_rows_that_are_new() -> None:
    recording = Recording(volume(1, 1, 40, 11, 15))
    infer(recording)
    assert recording.largest == 6 * 11 * 15


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases(), st.data())
def test_windows_may_be_left_out_and_images_be_read_again(case: Any, data: st.DataObject) -> None:
    recording, parameters = case
    roi = tuple(min(r, n) for r, n in zip(parameters["roi_size"], recording.shape[2:]))
    overlap = (parameters["overlap"],) * len(roi)
    scan = {name: parameters[name] for name in ("buffer_steps", "buffer_dim")}
    windows = window_grid(recording.shape[2:], roi, overlap, **scan)
    kept = KeptRows(recording, plan_rows(recording.shape, recording.dtype, getattr(recording, "chunks", None), windows))
    for image in (0, len(recording.array) - 1, 0):
        recording.reads[:] = 0
        for (window,) in windows.batches(1, 1):
            if data.draw(st.booleans()):
                expected = recording.array[(image, slice(None), *window.box)]
                assert np.array_equal(kept.read(image, window.box), expected)
        assert recording.reads.max() <= 1


class Counting(WrapperStore):
    """A Zarr store that counts the bytes that are read from it."""

    total = 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        if found is not None and not key.endswith(".json"):
            Counting.total += len(found)
        return found


@pytest.mark.parametrize("shards", [None, (1, 1, 32, 32, 32)], ids=["chunks", "shards"])
@pytest.mark.parametrize("buffer_dim", [0, 2])
def test_a_compressed_zarr_is_read_at_most_1_3_times(shards: Any, buffer_dim: int, tmp_path: Path) -> None:
    data = volume(1, 1, 50, 40, 45, dtype="i2")
    zarr.create_array(tmp_path / "array.zarr", data=data, chunks=(1, 1, 16, 16, 16), shards=shards, compressors="auto")
    size = sum(file.stat().st_size for file in (tmp_path / "array.zarr" / "c").rglob("*") if file.is_file())
    array = zarr.open_array(Counting(LocalStore(tmp_path / "array.zarr")), mode="r")
    Counting.total = 0
    parameters = {"roi_size": 12, "buffer_steps": 1, "buffer_dim": buffer_dim}
    assert torch.equal(infer(array, **parameters), infer(tensor(data), **parameters))
    assert 0.9 * size < Counting.total <= 1.3 * size


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_the_plan_says_what_rows_are_held(case: Any) -> None:
    recording, parameters = case
    held = []
    create = KeptRows.__init__

    def noting(self: KeptRows, *args: Any) -> None:
        create(self, *args)
        held.append(self.memory.nbytes)

    inferer = ChunkedSlidingWindowInferer(**{**SETTINGS, **parameters})
    plan = inferer.plan(recording, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptRows, "__init__", noting)
        inferer(recording, network)
    assert held == [plan.input_bytes]
    assert plan.input_bytes <= recording.array[0].nbytes
    assert "input rows kept" in str(plan)


def test_rows_are_kept_in_scratch_where_they_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(volume(1, 1, 40, 11, 15))
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, scratch_dir=tmp_path)
    assert inferer.plan(recording, 3).input_in_memory
    monkeypatch.setattr(kept_rows, "IN_MEMORY", 6 * 11 * 15 * 4 - 1)
    assert not inferer.plan(recording, 3).input_in_memory
    assert "on scratch" in str(inferer.plan(recording, 3))
    assert torch.equal(inferer(recording, network), monai(tensor(recording.array)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="scratch_dir"):
        infer(recording, scratch_dir=tmp_path / "missing")


def test_a_plan_of_what_is_in_memory_or_mapped_keeps_nothing(tmp_path: Path) -> None:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS)
    for inputs in (tensor(volume()), volume(), stored("memmap", volume(), tmp_path), volume().shape):
        assert inferer.plan(inputs, 3).input_bytes == 0
        assert "input rows" not in str(inferer.plan(inputs, 3))
