"""A source belongs to the process that opened it: another one opens it again, or is refused with one sentence."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from monai.data import ThreadDataLoader
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from monai_chunked import ChunkAggregator, ImageArray, WindowSampler
from monai_chunked.inputs.source import source_of
from monai_chunked.recovery.description.describer import Describer
from monai_chunked.workers.dask.parcels import Parcel, opened
from monai_chunked.workers.worker import Worker
from tests.inputs.process_cases import MAKERS, REFUSED, Boxes

pytestmark = pytest.mark.usefixtures("one_thread")

OPENED = sorted(set(MAKERS) - set(REFUSED))
IN_ONE_FILE = (
    "npy", "nii", "scaled_nii", "nii_gz", "scaled_nii_gz", "numpy_memmap", "part_of_a_memmap_for_writing", "dataobj",
    "dataobj_of_gz", "dataobj_whose_file_stays_open", "dataobj_of_gz_whose_file_stays_open", "h5py_dataset", "zarr_zip",
)  # fmt: skip
METHODS = ("fork", "spawn", "forkserver")
ROI, STEP = 8, 4


def volume(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 10_000, (1, 1, size, size, size)).astype("i2")


def boxes(size: int) -> list[tuple[slice, ...]]:
    """Of the windows of a volume, in scan order."""
    starts = range(0, size - ROI + 1, STEP)
    return [tuple(slice(start, start + ROI) for start in corner) for corner in product(starts, repeat=3)]


def datasets(kind: str, folder: Path, size: int) -> list[Any]:
    """What a user may give to a ``DataLoader``; the process has read of it already."""
    folder.mkdir()
    inputs = MAKERS[kind](folder, volume(size))
    made: list[Any] = [WindowSampler(inputs, ROI, 0.5)]
    if isinstance(inputs, ImageArray):
        made.append(Boxes(inputs, boxes(size)))
    for dataset in made:
        assert len(dataset) == len(boxes(size))
        _ = dataset[len(dataset) // 2]
    return made


class Data(Dataset[torch.Tensor]):
    """Windows without which ones they are."""

    def __init__(self, windows: Any) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> torch.Tensor:
        item = self.windows[number]
        return item[0] if isinstance(item, tuple) else item


def loaded(windows: list[Any], method: str, workers: int) -> Iterator[torch.Tensor]:
    """Each window, as other processes read it."""
    how = {"num_workers": workers, "multiprocessing_context": method, "timeout": 100}
    batches: Any = iter(DataLoader(ConcatDataset(map(Data, windows)), batch_size=2, **how))
    try:
        for batch in batches:
            yield from batch
    finally:
        batches._shutdown_workers()  # an error that is told holds them


def failure(windows: Any, method: str, workers: int) -> str:
    """Which workers tell."""
    try:
        list(loaded([windows], method, workers))
    except (TypeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("all windows were read")


def check(windows: list[Any], size: int, method: str, workers: int = 2) -> None:
    whole = torch.from_numpy(volume(size).astype("f4"))
    expected = [whole[(0, slice(None), *box)] for box in boxes(size)] * len(windows)
    found = list(loaded(windows, method, workers))
    assert len(found) == len(expected)
    wrong = [number for number, (one, other) in enumerate(zip(found, expected)) if not torch.equal(one, other)]
    assert not wrong, f"{len(wrong)} of {len(expected)} windows are wrong"


# ---------------------------------------------------------------- workers


@pytest.mark.parametrize("kind", OPENED)
def test_forked_workers_get_the_windows_of_a_source_that_was_read_before(kind: str, tmp_path: Path) -> None:
    check(datasets(kind, tmp_path / kind, 16), 16, "fork")


@pytest.mark.long  # what they get is a pickle, as workers of Dask do
def test_workers_that_are_not_forked_get_the_same(tmp_path: Path) -> None:
    every = [dataset for kind in OPENED for dataset in datasets(kind, tmp_path / kind, 16)]
    check(every, 16, "spawn", workers=1)


@pytest.mark.parametrize("kind", ["nii_gz", "scaled_nii_gz"])
def test_a_worker_reads_on_from_where_the_process_was_while_that_reads_too(kind: str, tmp_path: Path) -> None:
    image = MAKERS[kind](tmp_path, volume(64))
    slabs = [(slice(0, 64), slice(0, 64), slice(start, start + 4)) for start in range(0, 64, 4)]
    expected = [torch.from_numpy(volume(64)[(0, slice(None), *slab)].astype("f4")) for slab in slabs]
    here = Boxes(image, slabs)
    assert torch.equal(here[0], expected[0])
    there = DataLoader(Boxes(image, slabs[1:]), batch_size=None, num_workers=1, multiprocessing_context="fork")
    for number, slab in enumerate(there, 1):
        assert torch.equal(slab, expected[number])
        assert torch.equal(here[number], expected[number])


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_thousand_windows(kind: str, method: str, tmp_path: Path) -> None:
    every = datasets(kind, tmp_path / kind, 44)
    if kind not in REFUSED:
        return check(every, 44, method)
    for each in every:
        assert "cannot be opened again in another process" in failure(each, method, 2)
    return None


# ---------------------------------------------------------------- what cannot be opened again


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_opened_again_is_refused_in_a_forked_worker(kind: str, tmp_path: Path) -> None:
    for each in datasets(kind, tmp_path / kind, 16):
        assert re.search(f"TypeError: {REFUSALS[kind]}", failure(each, "fork", 2))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_opened_again_is_refused_before_a_worker_starts(kind: str, tmp_path: Path) -> None:
    for each in datasets(kind, tmp_path / kind, 16):
        with pytest.raises(TypeError, match=f"^{REFUSALS[kind]}"):
            ForkingPickler.dumps(each)
        _ = each[0]  # here it is read as before


BUFFERED = r"cannot be opened again in another process \(cannot pickle '_io.BufferedReader' object\): .*num_workers=0"

REFUSALS = {
    "tiff": f"an array of type zarr.Array {BUFFERED}",
    "dask_over_tiff": f"an array of type dask.Array {BUFFERED}",
    "own_class_over_an_open_file": f"an array of type tests.OverAnOpenFile {BUFFERED}",
    "h5py_for_writing": r"an array of type h5py.Dataset .* \(its file was opened with mode='r\+'; open it with 'r'\)",
    "h5py_over_an_open_file": r"an array of type h5py.Dataset .* with driver='fileobj'; open it by its path alone\)",
    "zarr_zip_for_writing": r"an array of type zarr.Array .* \(its ZipStore was opened for writing; .* mode='r'\)",
}


# ---------------------------------------------------------------- pickles


def again(kind: str, folder: Path, size: int = 16) -> tuple[Any, bytes]:
    """An input that was read, and its source as other processes get it."""
    inputs = MAKERS[kind](folder, volume(size))
    source = source_of(inputs)
    source.read(0, boxes(size)[0])
    return inputs, pickle.dumps(source)


@pytest.mark.parametrize("kind", IN_ONE_FILE)
def test_a_pickle_says_where_a_file_is_and_has_none_of_its_voxels(kind: str, tmp_path: Path) -> None:
    sizes = []
    for size in (16, 44):
        (tmp_path / str(size)).mkdir()
        sizes.append(len(again(kind, tmp_path / str(size), size)[1]))
    assert max(sizes) < 6000
    assert max(sizes) - min(sizes) < 100


@pytest.mark.parametrize("kind", IN_ONE_FILE)
def test_a_file_that_has_changed_between_is_noticed(kind: str, tmp_path: Path) -> None:
    pickled = again(kind, tmp_path)[1]
    for path in tmp_path.iterdir():
        os.utime(path, ns=(0, 0))
    source = pickle.loads(pickled)
    with pytest.raises(OSError, match=rf"the file has changed since the image was opened; .*{tmp_path}"):
        source.read(0, boxes(16)[0])


@pytest.mark.parametrize("kind", ["nii_gz", "dataobj_of_gz", "h5py_dataset", "zarr_zip"])
def test_a_forked_worker_notices_it_too(kind: str, tmp_path: Path) -> None:
    (dataset, *_) = datasets(kind, tmp_path / kind, 16)
    for path in (tmp_path / kind).iterdir():
        os.utime(path, ns=(0, 0))
    assert "the file has changed since the image was opened" in failure(dataset, "fork", 1)


@pytest.mark.parametrize("kind", sorted(set(IN_ONE_FILE) - {"zarr_zip"}))
def test_a_file_that_is_not_there_is_said(kind: str, tmp_path: Path) -> None:
    source = pickle.loads(again(kind, tmp_path)[1])
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"opened is not there; put it where all .*{tmp_path}"):
        source.read(0, boxes(16)[0])


@pytest.mark.parametrize("kind", [*IN_ONE_FILE, "numpy_array", "tensor", "zarr_folder", "opened_zarr"])
def test_it_is_described_alike_in_each_process(kind: str, tmp_path: Path) -> None:
    inputs, pickled = again(kind, tmp_path)
    found = pickle.loads(pickle.dumps(pickle.loads(pickled)))  # as a scheduler hands it on
    assert Describer().voxels(found.origin, "input") == Describer().voxels(inputs, "input")


@pytest.mark.parametrize("kind", [*IN_ONE_FILE, "numpy_array", "tensor", "own_class_that_opens_it_again"])
def test_workers_of_dask_get_the_same(kind: str, tmp_path: Path) -> None:
    inputs = MAKERS[kind](tmp_path, volume(44))
    sent = pickle.dumps(Parcel(Worker(None, inputs, torch.nn.Identity)), 5)  # type: ignore[arg-type]  # not asked for
    assert (len(sent) < 6000) == (kind not in ("numpy_array", "tensor"))
    box = boxes(44)[500]
    expected = torch.from_numpy(volume(44)[(0, slice(None), *box)].astype("f4"))
    assert torch.equal(opened(pickle.loads(sent)).source.read(0, box), expected)


def test_a_mask_goes_along_for_who_blends_elsewhere(tmp_path: Path) -> None:
    inside = np.zeros((16, 16, 16), bool)
    inside[4:9] = True
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["mask"] = inside
    sampler = WindowSampler(volume(16), ROI, 0.5, mask=h5py.File(tmp_path / "mask.h5", "r")["mask"])
    found = pickle.loads(pickle.dumps(sampler))
    results = []
    for each in (sampler, found):
        aggregator = ChunkAggregator(each)
        for data, windows in DataLoader(each, batch_size=3):
            aggregator.add_batch(data.sigmoid(), windows)
        results.append(aggregator.finish())
    assert torch.equal(*results)
    assert torch.equal(found[0][0], sampler[0][0])


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_several_threads_read_one_source(kind: str, tmp_path: Path) -> None:
    whole = torch.from_numpy(volume(16).astype("f4"))
    order = np.random.default_rng(0).permutation(np.tile(np.arange(len(boxes(16))), 4)).tolist()
    for windows in map(Data, datasets(kind, tmp_path / kind, 16)):
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(windows.__getitem__, order))
        for number, window in zip(order, found):
            assert torch.equal(window, whole[(0, slice(None), *boxes(16)[number])])


def test_workers_that_are_threads(tmp_path: Path) -> None:
    """As MONAI makes them."""
    whole = torch.from_numpy(volume(44).astype("f4"))
    (sampler, *_) = datasets("own_class_over_an_open_file", tmp_path / "own", 44)
    found = torch.cat(list(ThreadDataLoader(Data(sampler), batch_size=2, num_workers=2, use_thread_workers=True)))
    assert len(found) == 1000
    assert all(torch.equal(window, whole[(0, slice(None), *box)]) for window, box in zip(found, boxes(44)))
