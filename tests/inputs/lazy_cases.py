"""Arrays that are read piece by piece, and how they are stored; a helper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array
import h5py
import nibabel
import numpy as np
import torch
import zarr
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer

SETTINGS: dict[str, Any] = {"roi_size": (6, 5, 7), "overlap": 0.5, "mode": "gaussian"}


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
