"""Inputs of every kind that are read in other processes than the one that opened them; a helper."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from torch.utils.data import Dataset

from monai_chunked import ImageArray, open_image
from monai_chunked.plan.boxes import Box

CHUNKS = (1, 1, 8, 8, 8)
BATCHED = (None, None, 0, 1, 2)
"""Axes of an image over an array of three dimensions."""

MAKERS: dict[str, Callable[[Path, np.ndarray], Any]] = {}
"""Each makes an input of a folder and an array ``(1, 1, *spatial)`` of integers."""

REFUSED = (
    "tiff", "own_class_over_an_open_file", "h5py_for_writing", "h5py_over_an_open_file", "zarr_zip_for_writing",
    "dask_over_tiff",
)  # fmt: skip
"""What no other process can open."""


def maker(make: Callable[[Path, np.ndarray], Any]) -> Callable[[Path, np.ndarray], Any]:
    MAKERS[make.__name__] = make
    return make


class OverAnOpenFile:
    """As a user may write it: seeks and reads, and nothing makes sure that nobody seeks between."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.file = path.open("rb")

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *others = index
        each = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        start, stop, _ = first.indices(self.shape[0])
        self.file.seek(start * each)
        data = self.file.read((stop - start) * each)
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])[(slice(None), *others)]


class OpensItAgain(OverAnOpenFile):
    """As the message says."""

    def __reduce__(self) -> Any:
        return OpensItAgain, (self.path, self.shape, self.dtype)


class Boxes(Dataset[torch.Tensor]):
    """A data set of a user, over an image without a sampler."""

    def __init__(self, image: Any, boxes: list[Box]) -> None:
        self.image = image
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.image[(0, slice(None), *self.boxes[number])], np.float32))


@maker
def tensor(folder: Path, voxels: np.ndarray) -> Any:
    return torch.from_numpy(voxels.astype("f4"))


@maker
def meta_tensor(folder: Path, voxels: np.ndarray) -> Any:
    return MetaTensor(torch.from_numpy(voxels.astype("f4")), affine=torch.eye(4) * 2, meta={"filename_or_obj": "a.nii"})


@maker
def numpy_array(folder: Path, voxels: np.ndarray) -> Any:
    return voxels


@maker
def numpy_memmap(folder: Path, voxels: np.ndarray) -> Any:
    np.save(folder / "array.npy", voxels)
    return np.load(folder / "array.npy", mmap_mode="r")


@maker
def part_of_a_memmap_for_writing(folder: Path, voxels: np.ndarray) -> Any:
    np.save(folder / "array.npy", np.concatenate([voxels, voxels[..., ::-1]]))
    return np.load(folder / "array.npy", mmap_mode="r+")[1:, ..., ::-1]


@maker
def result_on_disk(folder: Path, voxels: np.ndarray) -> Any:
    """As ``output="disk"`` returns it."""
    np.save(folder / "array.npy", voxels.astype("f4"))
    return torch.from_numpy(np.load(folder / "array.npy", mmap_mode="r+"))


@maker
def npy(folder: Path, voxels: np.ndarray) -> Any:
    np.save(folder / "scan.npy", voxels[0, 0])
    return open_image(folder / "scan.npy")


def nifti(name: str, *scaling: float) -> Callable[[Path, np.ndarray], Any]:
    def make(folder: Path, voxels: np.ndarray) -> Any:
        stored = voxels[0, 0] if not scaling else ((voxels[0, 0] - scaling[1]) / scaling[0])
        image = nibabel.Nifti1Image(stored.astype("i2"), np.eye(4))
        if scaling:
            image.header.set_slope_inter(*scaling)
        nibabel.save(image, folder / name)
        return open_image(folder / name)

    return make


MAKERS |= {
    "nii": nifti("scan.nii"),
    "scaled_nii": nifti("scan.nii", 0.5, -2),
    "nii_gz": nifti("scan.nii.gz"),
    "scaled_nii_gz": nifti("scan.nii.gz", 0.5, -2),
}


def dataobj(name: str, **how: Any) -> Callable[[Path, np.ndarray], Any]:
    def make(folder: Path, voxels: np.ndarray) -> Any:
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / name)
        return nibabel.load(folder / name, **how).dataobj

    return make


MAKERS |= {
    "dataobj": dataobj("array.nii"),
    "dataobj_of_gz": dataobj("array.nii.gz"),
    "dataobj_whose_file_stays_open": dataobj("array.nii", keep_file_open=True, mmap=False),
    "dataobj_of_gz_whose_file_stays_open": dataobj("array.nii.gz", keep_file_open=True),
}


@maker
def zarr_folder(folder: Path, voxels: np.ndarray) -> Any:
    import zarr

    return zarr.create_array(folder / "array.zarr", data=voxels, chunks=CHUNKS)


@maker
def opened_zarr(folder: Path, voxels: np.ndarray) -> Any:
    import zarr

    zarr.create_array(folder / "array.zarr", data=voxels, chunks=CHUNKS)
    return open_image(folder / "array.zarr", axes="tcxyz")


@maker
def zarr_in_memory(folder: Path, voxels: np.ndarray) -> Any:
    import zarr

    return zarr.create_array(zarr.storage.MemoryStore(), data=voxels, chunks=CHUNKS)


def zipped(folder: Path, voxels: np.ndarray) -> Path:
    zarr_folder(folder, voxels)
    return Path(shutil.make_archive(str(folder / "array"), "zip", folder / "array.zarr"))


@maker
def zarr_zip(folder: Path, voxels: np.ndarray) -> Any:
    import zarr

    return zarr.open_array(zarr.storage.ZipStore(zipped(folder, voxels), mode="r"), mode="r")


@maker
def zarr_zip_for_writing(folder: Path, voxels: np.ndarray) -> Any:
    import zarr

    return zarr.create_array(zarr.storage.ZipStore(folder / "new.zip", mode="w"), data=voxels, chunks=CHUNKS)


@maker
def zarr_zip_at_a_url(folder: Path, voxels: np.ndarray) -> Any:
    return open_image(f"zip://::{zipped(folder, voxels)}", axes="tcxyz")


@maker
def h5py_dataset(folder: Path, voxels: np.ndarray) -> Any:
    import h5py

    with h5py.File(folder / "array.h5", "w") as file:
        file.create_dataset("in/a/group", data=voxels, chunks=CHUNKS, compression="gzip")
    return h5py.File(folder / "array.h5", "r")["in/a/group"]


@maker
def h5py_for_writing(folder: Path, voxels: np.ndarray) -> Any:
    import h5py

    return h5py.File(folder / "array.h5", "w").create_dataset("array", data=voxels)


@maker
def h5py_over_an_open_file(folder: Path, voxels: np.ndarray) -> Any:
    import h5py

    path = Path(h5py_dataset(folder, voxels).file.filename)
    return h5py.File(path.open("rb"), "r")["in/a/group"]


@maker
def dask_array(folder: Path, voxels: np.ndarray) -> Any:
    import dask.array

    return dask.array.from_array(voxels - 1, chunks=CHUNKS) + 1


@maker
def dask_over_zarr(folder: Path, voxels: np.ndarray) -> Any:
    import dask.array

    return dask.array.from_zarr(zarr_zip(folder, voxels))


@maker
def dask_over_tiff(folder: Path, voxels: np.ndarray) -> Any:
    import dask.array

    return dask.array.from_zarr(tiff(folder, voxels).source)[None, None]


@maker
def tiff(folder: Path, voxels: np.ndarray) -> Any:
    import tifffile
    import zarr

    tifffile.imwrite(folder / "scan.tif", voxels[0, 0])
    return ImageArray(zarr.open_array(tifffile.imread(folder / "scan.tif", aszarr=True), mode="r"), BATCHED, {})


def own(kind: type[OverAnOpenFile]) -> Callable[[Path, np.ndarray], Any]:
    def make(folder: Path, voxels: np.ndarray) -> Any:
        (folder / "voxels").write_bytes(voxels.tobytes())
        return ImageArray(kind(folder / "voxels", voxels.shape[2:], voxels.dtype), BATCHED, {})

    return make


MAKERS |= {"own_class_over_an_open_file": own(OverAnOpenFile), "own_class_that_opens_it_again": own(OpensItAgain)}
