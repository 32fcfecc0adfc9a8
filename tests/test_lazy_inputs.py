"""An input that is an array is read piece by piece, each voxel once, and the result has MONAI's bits all the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array
import h5py
import nibabel
import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, NormalizeIntensity, ScaleIntensityRange
from zarr.storage import LocalStore, WrapperStore

from monai_chunked import ChunkedSlidingWindowInferer, chunked_sliding_window_inference
from monai_chunked.inputs import kept_rows
from monai_chunked.inputs.kept_rows import KeptRows, plan_rows
from monai_chunked.plan.window_grid import window_grid

SETTINGS: dict[str, Any] = {"roi_size": (6, 5, 7), "overlap": 0.5, "mode": "gaussian"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower with more, and much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As inference runs; the tests that want gradients enable them."""
    with torch.no_grad():
        yield


def volume(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 50, shape or (2, 2, 13, 11, 15))
    return abs(values).astype(dtype) if np.dtype(dtype).kind in "ub" else values.astype(dtype)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def network(windows: torch.Tensor) -> torch.Tensor:
    """Its last bits depend on how the windows lie in memory."""
    means = windows.mean(tuple(range(2, windows.dim())), keepdim=True).expand_as(windows)
    return torch.cat([windows.sigmoid(), windows * means, windows.softmax(-1)], 1)


def infer(inputs: Any, predictor: Any = network, **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, predictor)


def monai(inputs: torch.Tensor, predictor: Any = network, **parameters: Any) -> Any:
    return SlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, predictor)


class Recording:
    """An array that counts how often each voxel is read, and cannot be read as a whole."""

    def __init__(self, array: np.ndarray, chunks: Any = None, meta: Any = None) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.reads = np.zeros(array.shape, int)
        self.largest = 0
        if chunks is not None:
            self.chunks = chunks
        if meta is not None:
            self.meta = meta

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        assert len(index) == len(self.shape)
        part = self.array[index]
        self.reads[index] += 1
        self.largest = max(self.largest, part.size)
        return part

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise AssertionError("the whole of the input was read")


# ---------------------------------------------------------------- MONAI's bits


@st.composite
def cases(draw: st.DrawFn) -> tuple[Recording, dict[str, Any]]:
    dims = draw(st.integers(1, 3))
    most = {1: 40, 2: 20, 3: 12}[dims]
    size = draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *size)
    array = volume(*shape, dtype=draw(st.sampled_from(["u1", ">i2", "<u2", "i8", "?", "f4", ">f4"])))
    chunks = draw(st.none() | st.tuples(*(st.integers(1, n) for n in shape)))
    if chunks is not None:  # more than one image in a storage chunk means that it is read again
        chunks = (1, *chunks[1:])
    if chunks is not None and draw(st.booleans()):  # as dask has them
        chunks = tuple((*[c] * (n // c), *[n % c] * (n % c > 0)) for n, c in zip(shape, chunks))
    padding_mode = draw(st.sampled_from(["constant", "replicate"]))
    return Recording(array, chunks), {
        "roi_size": draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims)),
        "sw_batch_size": draw(st.integers(1, 3)),
        "overlap": draw(st.sampled_from([0, 0.25, 0.5, 0.8])),
        "mode": draw(st.sampled_from(["gaussian", "constant"])),
        "padding_mode": padding_mode,
        "cval": -3.5 if padding_mode == "constant" else 0.0,  # MONAI refuses others
        "buffer_steps": draw(st.none() | st.integers(1, 3)),
        "buffer_dim": draw(st.integers(-dims, dims - 1)),
    }


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases(), st.booleans())
def test_any_array_gives_the_bits_of_the_tensor_and_each_voxel_is_read_once(case: Any, in_file: bool) -> None:
    recording, parameters = case
    if parameters["buffer_steps"]:  # MONAI adds up its buffers in another order
        reference = infer(tensor(recording.array), **parameters)
    else:
        reference = monai(tensor(recording.array), **parameters)
    with pytest.MonkeyPatch.context() as patch:
        if in_file:
            patch.setattr(kept_rows, "IN_MEMORY", 0)
        patch.setattr(kept_rows, "READ_BYTES", 64)
        assert torch.equal(infer(recording, **parameters), reference)
    assert (recording.reads == 1).all()


@pytest.mark.parametrize("padding_mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("roi_size", [(16, 5, 7), (16, 14, 18), (6, 5, 19)], ids=str)
def test_padding_acts_at_the_border_of_the_image_only(padding_mode: str, roi_size: Any) -> None:
    parameters = {"roi_size": roi_size, "padding_mode": padding_mode}
    parameters |= {"cval": 2.5} if padding_mode == "constant" else {}  # MONAI refuses others
    assert torch.equal(infer(Recording(volume()), **parameters), monai(tensor(volume()), **parameters))


def test_what_cannot_be_padded_is_refused_before_anything_is_read() -> None:
    recording = Recording(volume(1, 1, 4, 11, 15))
    with pytest.raises(ValueError, match="padding_mode='reflect' cannot pad"):
        infer(recording, roi_size=(20, 5, 7), padding_mode="reflect")
    assert not recording.reads.any()


ARRAYS = ["ndarray", "memmap", "zarr", "sharded zarr", "h5py", "chunked h5py", "dask", "dataobj", "scaled dataobj"]


def stored(kind: str, array: np.ndarray, folder: Path) -> Any:
    chunks = (1, 1, 4, 5, 6)
    if kind == "memmap":
        np.save(folder / "array.npy", array)
        return np.load(folder / "array.npy", mmap_mode="r")
    if kind == "zarr":
        return zarr.create_array(folder / "array.zarr", data=array, chunks=chunks)
    if kind == "sharded zarr":
        shards = (1, 2, 8, 10, 12)
        return zarr.create_array(folder / "array.zarr", data=array, chunks=chunks, shards=shards)
    if "h5py" in kind:
        chosen = {"chunks": chunks, "compression": "gzip"} if "chunked" in kind else {}
        h5py.File(folder / "array.h5", "w").create_dataset("array", data=array, **chosen)
        return h5py.File(folder / "array.h5", "r")["array"]
    if kind == "dask":
        return dask.array.from_array(array, chunks=(1, 2, (3, 9, 1), 5, 6))
    if "dataobj" in kind:
        image = nibabel.Nifti1Image(array, np.eye(4))
        if kind.startswith("scaled"):
            image.header.set_slope_inter(0.3, -2)
        nibabel.save(image, folder / "array.nii.gz")
        return nibabel.load(folder / "array.nii.gz").dataobj
    return array


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_what_libraries_store_is_read_as_it_is(kind: str, sw_batch_size: int, tmp_path: Path) -> None:
    array = stored(kind, volume(dtype=">i2"), tmp_path)
    reference = tensor(np.asarray(array[...]))
    assert torch.equal(infer(array, sw_batch_size=sw_batch_size), monai(reference, sw_batch_size=sw_batch_size))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_of_other_precision_are_treated_as_tensors_of_it(dtype: Any) -> None:
    array = volume(dtype=dtype)
    result, reference = infer(Recording(array)), infer(torch.from_numpy(array))
    assert result.dtype == reference.dtype
    assert torch.equal(result, reference)


def test_a_condition_is_read_piece_by_piece_too() -> None:
    def conditioned(windows: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return network(windows) * condition[:, :1].sigmoid()

    inputs, condition = Recording(volume()), Recording(volume()[::-1].copy())
    expected = SlidingWindowInferer(**SETTINGS)(tensor(inputs.array), conditioned, condition=tensor(condition.array))
    result = ChunkedSlidingWindowInferer(**SETTINGS)(inputs, conditioned, condition=condition)
    assert torch.equal(result, expected)
    assert (condition.reads == 1).all()


# ---------------------------------------------------------------- what is read and held


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
    windows = window_grid(recording.shape[2:], roi, overlap, parameters["buffer_steps"], parameters["buffer_dim"])
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


# ---------------------------------------------------------------- preprocessing

TRANSFORMS = {
    "ScaleIntensityRange": ScaleIntensityRange(-100, 90, 0, 1, clip=True),
    "NormalizeIntensity": NormalizeIntensity(subtrahend=3.7, divisor=41.3),
    "Compose": Compose([ScaleIntensityRange(-100, 90), NormalizeIntensity(subtrahend=0.1, divisor=1.7)]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("roi_size", [(6, 5, 7), (16, 5, 19)], ids=str)
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_preprocessing_of_windows_gives_the_bits_of_preprocessing_the_volume(
    name: str, lazy: bool, roi_size: Any, sw_batch_size: int
) -> None:
    parameters = {"roi_size": roi_size, "sw_batch_size": sw_batch_size, "cval": 0.5}
    data = volume()
    before = data.copy()
    reference = monai(TRANSFORMS[name](tensor(data.copy())), **parameters)
    inputs = Recording(data) if lazy else torch.from_numpy(data)
    result = infer(inputs, preprocessing=TRANSFORMS[name], **parameters)
    assert torch.equal(result, torch.as_tensor(reference))
    assert np.array_equal(data, before)


def test_preprocessing_may_write_to_what_it_gets() -> None:
    data = tensor(volume())
    before = data.clone()
    result = infer(data, preprocessing=lambda window: window.mul_(2))
    assert torch.equal(result, monai(2 * before))
    assert torch.equal(data, before)


def test_preprocessing_may_change_the_number_of_channels() -> None:
    def ranges(window: torch.Tensor) -> torch.Tensor:
        return torch.cat([window.clamp(-10, 10), window.clamp(0, 90), window / 4])

    result = infer(Recording(volume()), preprocessing=ranges)
    reference = monai(torch.stack([ranges(image) for image in tensor(volume())]))
    assert torch.equal(result, reference)


def test_metadata_stay_with_preprocessing() -> None:
    inputs = MetaTensor(tensor(volume(1, 2, 13, 11, 15)), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    result = infer(inputs, preprocessing=TRANSFORMS["NormalizeIntensity"])
    assert torch.equal(result.affine, inputs.affine)


def test_gradients_reach_the_input_through_preprocessing() -> None:
    inputs = tensor(volume(1, 2, 13, 11, 15)).requires_grad_()
    with torch.enable_grad():
        infer(inputs, lambda windows: windows.clone(), preprocessing=lambda window: 3 * window).sum().backward()
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, torch.tensor(3.0))


@pytest.mark.parametrize("inputs", [tensor(volume()), volume()], ids=["tensor", "array"])
def test_preprocessing_that_changes_the_size_is_refused_with_what_it_returned(inputs: Any) -> None:
    with pytest.raises(
        ValueError, match=r"preprocessing.*\(6, 5, 7\).*\(2, 6, 5, 6\).*window image 0 \[0:6, 0:5, 0:7\]"
    ):
        infer(inputs, preprocessing=lambda window: window[..., 1:])
    with pytest.raises(ValueError, match=r"preprocessing.*NoneType"):
        infer(inputs, preprocessing=lambda window: None)
    with pytest.raises(TypeError, match="preprocessing='zscore'"):
        infer(inputs, preprocessing="zscore")


# ---------------------------------------------------------------- metadata and errors


def test_metadata_of_an_array_go_to_the_result() -> None:
    meta = {"affine": torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])).double(), "filename_or_obj": "brain.nii"}
    array = volume(1, 2, 13, 11, 15)
    result = infer(Recording(array, meta=meta))
    reference = infer(MetaTensor(tensor(array), meta=meta))
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, reference.affine)
    assert result.meta["filename_or_obj"] == reference.meta["filename_or_obj"]
    assert torch.equal(result.as_tensor(), reference.as_tensor())


def test_metadata_of_several_images_go_to_the_result() -> None:
    meta = [{"affine": torch.eye(4), "filename_or_obj": name} for name in ("a.nii", "b.nii")]
    result = infer(Recording(volume(), meta=meta))
    assert result.meta["filename_or_obj"] == ["a.nii", "b.nii"]
    with pytest.raises(ValueError, match=r"inputs\.meta must be a dict for each of 2"):
        infer(Recording(volume(), meta=meta[0]))


@pytest.mark.parametrize(
    ("broken", "error", "words"),
    [
        (lambda part: part[..., 1:], ValueError, "shape"),
        (lambda part: part.astype(np.float64), TypeError, "although its dtype is float32"),
        (lambda part: 1 / 0, ZeroDivisionError, "division"),
    ],
    ids=["shape", "dtype", "error"],
)
def test_an_error_of_the_array_names_the_window(broken: Any, error: type[Exception], words: str) -> None:
    class Broken(Recording):
        def __getitem__(self, index: Any) -> Any:
            part = super().__getitem__(index)
            return broken(part) if index[2].stop > 6 else part

    with pytest.raises(error, match=rf"{words}.*while reading window image 0 \[3:9, 0:5, 0:7\]"):
        infer(Broken(volume()))


class Shapeless:
    dtype = np.dtype(np.float32)

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError


class OfNoKnownSize(Shapeless):
    shape = (1, 1, math.nan, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (Shapeless(), TypeError, "array with shape, dtype and slicing, got Shapeless"),
        (OfNoKnownSize(), ValueError, "got \\(1, 1, nan, 8, 8\\)"),
        (volume(13, 11), ValueError, "at least one spatial dimension"),
        (volume(1, 1, 13, 11, 15).astype(complex), TypeError, "real and imaginary part as channels"),
        (volume(1, 1, 13, 11, 15).astype([("r", "u1"), ("g", "u1")]), TypeError, "bool, integers and floats"),
    ],
    ids=["no shape", "no known shape", "no batch", "complex", "colours"],
)
def test_what_is_no_array_of_images_is_refused(inputs: Any, error: type[Exception], words: str) -> None:
    for condition in (False, True):
        call = (tensor(volume()), 6, 1, network) if condition else (inputs, 6, 1, network)
        with pytest.raises(error, match=words):
            chunked_sliding_window_inference(*call, **({"condition": inputs} if condition else {}))
