"""OME-Zarr stores hold MONAI's values, each storage chunk written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v05 as ngff_models
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked import Result, ZarrOutput
from monai_chunked.formats.zarr import storage_chunks
from monai_chunked.formats.zarr.storage_chunks import Collector, suitable_size
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.window_grid import window_grid
from tests.formats.zarr_cases import AFFINE, boxes, monai, random_values, result, volume, write_all
from tests.outputs.cases import infer_into


@pytest.mark.parametrize("chunk_size", [None, (4, 3, 11), 2], ids=str)
@pytest.mark.parametrize("size", [(9, 10, 11), (13, 17)], ids=len)
def test_a_store_holds_monais_bits(chunk_size: Any, size: tuple[int, ...], tmp_path: Path) -> None:
    chunk_size = chunk_size if chunk_size is None else np.broadcast_to(chunk_size, 3)[: len(size)].tolist()
    array = infer_into(volume(*size), ZarrOutput(tmp_path, storage_chunk_size=4), chunk_size=chunk_size)
    assert isinstance(array, zarr.Array)
    assert np.array_equal(array[...], monai(volume(*size))[0])
    reopened = zarr.open_group(tmp_path / "brain" / "brain_trans.ome.zarr", mode="r")["0"]
    assert np.array_equal(reopened[...], monai(volume(*size))[0])


def test_a_batch_is_a_list_of_arrays_and_labels_are_labels(tmp_path: Path) -> None:
    inputs = torch.rand((2, 1, 9, 10, 11), generator=torch.Generator().manual_seed(0))
    output = ZarrOutput(tmp_path, "labels", separate_folder=False, levels=2)
    names = [{"filename_or_obj": f"/data/{name}.nii.gz", "affine": AFFINE} for name in "ab"]
    writer = output.create(
        Result("prediction", (2, 1, 9, 10, 11), torch.uint8, ((0, 4, 9), (0, 10), (0, 11)), (*names,))
    )
    labels = torch.as_tensor(monai(inputs).argmax(1, keepdims=True)).to(torch.uint8)
    arrays = write_all(writer, labels, ((0, 4, 9), (0, 10), (0, 11)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_labels.ome.zarr", "b_labels.ome.zarr"]
    for array, expected in zip(arrays, labels, strict=True):
        assert np.array_equal(array[...], expected.numpy())
    group = zarr.open_group(tmp_path / "a_labels.ome.zarr", mode="r")
    assert ngff_models.ImageLabel.from_zarr(group).attributes.ome.image_label is not None
    assert np.array_equal(group["1"][...], labels[0, :, ::2, ::2, ::2].numpy())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float32, torch.float64, torch.uint8, torch.uint16, torch.int64, torch.bool], ids=str
)
def test_a_store_holds_any_dtype_that_zarr_knows(dtype: torch.dtype, tmp_path: Path) -> None:
    cuts = ((0, 3, 7), (0, 5), (0, 2, 4))
    values = random_values((1, 2, 7, 5, 4), dtype)
    array = write_all(ZarrOutput(tmp_path).create(result(values.shape, cuts, dtype)), values, cuts)
    assert array.dtype == values.numpy().dtype
    assert np.array_equal(array[...], values[0].numpy())


def cut(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    inner = st.sets(st.integers(1, size - 1), max_size=4) if size > 1 else st.just(set())
    return inner.map(lambda cuts: (0, *sorted(cuts), size))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_chunks_of_any_cuts_and_order_become_whole_storage_chunks_each_written_once(data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=3))
    cuts = [data.draw(cut(n)) for n in size]
    unit = [data.draw(st.integers(1, 6)) for _ in size]
    order = data.draw(st.permutations(boxes(cuts)))
    values = np.random.default_rng(0).random((2, *size))
    collector = Collector(values.shape, unit)
    written = np.zeros(values.shape, int)
    found = np.zeros(values.shape)
    safe: list[Box] = []
    for box in order:
        chunk = values[(slice(None), *box)].copy()
        for region, part in collector.add(box, chunk):
            assert all(s.start % u == 0 and (s.stop % u == 0 or s.stop == n) for s, u, n in zip(region[1:], unit, size))
            written[region] += 1
            found[region] = part
        chunk[...] = -1  # the core uses the memory again
        safe += collector.written()
        for done in safe:
            assert written[(slice(None), *done)].all()
    assert list(collector.rest()) == []
    assert collector.held_bytes == 0
    assert (written == 1).all()
    assert np.array_equal(found, values)
    assert sorted(map(str, safe)) == sorted(map(str, order))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_never_more_than_the_limit_is_held_and_nothing_is_lost_by_that(data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=3))
    cuts = [data.draw(cut(n)) for n in size]
    limit = data.draw(st.integers(0, 2000))
    values = np.random.default_rng(0).random((2, *size))
    collector = Collector(values.shape, [5] * len(size), limit)
    written = np.zeros(values.shape, int)
    found = np.zeros(values.shape)
    for box in data.draw(st.permutations(boxes(cuts))):
        for region, part in collector.add(box, values[(slice(None), *box)]):
            written[region] += 1
            found[region] = part
        assert collector.held_bytes <= limit
    for region, part in collector.rest():
        written[region] += 1
        found[region] = part
    assert (written == 1).all()
    assert np.array_equal(found, values)


@pytest.mark.parametrize("channels", [1, 14, 105])
@pytest.mark.parametrize("itemsize", [1, 4])
@pytest.mark.parametrize("size", [(256, 256, 512), (197, 233, 189)])
def test_storage_chunks_are_chosen_so_that_little_is_held(channels: int, itemsize: int, size: tuple[int, ...]) -> None:
    windows = window_grid(size, (96, 96, 96), (0.5, 0.5, 0.5))
    cuts = [sorted({0, n, *starts, *(start + 96 for start in starts)}) for n, starts in zip(size, windows.starts)]
    cuts = [*cuts[:2], [0, size[2]]]
    unit = suitable_size(cuts, channels, itemsize)
    assert 2**16 <= np.prod(unit) * itemsize <= 2**22
    # what is held does not depend on the number of channels, so it is tried with none of the memory
    collector = Collector((1, *size), unit)
    most = 0
    for box in boxes(cuts):
        for _ in collector.add(box, np.broadcast_to(np.uint8(0), (1, *(s.stop - s.start for s in box)))):
            pass
        most = max(most, collector.held_bytes)
    assert most * channels * itemsize <= storage_chunks.HELD_BYTES
