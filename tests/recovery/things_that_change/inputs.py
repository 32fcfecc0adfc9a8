"""Inputs of each kind that a result depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.array
import h5py
import nibabel
import numpy as np
import torch
import zarr

from monai_chunked import ImageArray, open_image
from tests.recovery.things_that_change.makers import SHAPE, image, maker, named


@maker
def condition(folder: Path, changed: bool) -> dict[str, Any]:
    return {"kwargs": {"condition": torch.from_numpy(image(changed))}}


@maker
def tensor(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": named(image(changed))}


@maker
def affine(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": named(image(), affine=torch.eye(4) * (1 + changed))}


@maker
def array_in_memory(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": image(changed)}


@maker
def mapped_file(folder: Path, changed: bool) -> dict[str, Any]:
    np.save(folder / "image.npy", image(changed))
    return {"inputs": np.load(folder / "image.npy", mmap_mode="r")}


@maker
def array_over_a_mapped_file(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": np.asarray(mapped_file(folder, changed)["inputs"])[..., ::-1]}


@maker
def other_part_of_a_mapped_file(folder: Path, changed: bool) -> dict[str, Any]:
    np.save(folder / "image.npy", np.concatenate([image(), image(True)]))
    start = int(changed)
    return {"inputs": np.load(folder / "image.npy", mmap_mode="r")[start : start + 1]}


def as_image(array: Any) -> ImageArray:
    """With a name, so that it has the same place in a folder when it changes."""
    return ImageArray(array, range(5), {"filename_or_obj": "scan.nii"})


OPEN: list[h5py.File] = []


def h5py_file(path: Path, **voxels: np.ndarray) -> h5py.File:
    """Written and opened, in the place of one that is open."""
    for file in OPEN:
        file.close()
    with h5py.File(path, "w") as file:
        for name, values in voxels.items():
            file[name] = values
    OPEN[:] = [h5py.File(path)]
    return OPEN[0]


@maker
def h5py_dataset(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": as_image(h5py_file(folder / "image.h5", voxels=image(changed))["voxels"])}


@maker
def other_h5py_dataset(folder: Path, changed: bool) -> dict[str, Any]:
    file = h5py_file(folder / "image.h5", a=image(), b=image(True))
    return {"inputs": as_image(file["b" if changed else "a"])}


@maker
def h5py_without_name(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": h5py_dataset(folder, changed)["inputs"].source}


@maker
def h5py_in_memory(folder: Path, changed: bool) -> dict[str, Any]:
    file = h5py.File(f"in memory {uuid4()}", "w", driver="core", backing_store=False)
    file["voxels"] = image(changed)
    return {"inputs": as_image(file["voxels"])}


@maker
def zarr_array(folder: Path, changed: bool) -> dict[str, Any]:
    values = image(changed)
    zarr.create_array(folder / "image.zarr", name="voxels", data=values, chunks=(1, 1, 4, 4, 4), overwrite=True)
    return {"inputs": as_image(zarr.open_group(folder / "image.zarr", mode="r")["voxels"])}


@maker
def zarr_in_memory(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": as_image(zarr.create_array(zarr.storage.MemoryStore(), data=image(changed)))}


@maker
def dask_over_numpy(folder: Path, changed: bool) -> dict[str, Any]:
    return {"inputs": as_image(dask.array.from_array(image(changed), chunks=(1, 1, 4, 4, 4)))}


@maker
def dask_over_h5py(folder: Path, changed: bool) -> dict[str, Any]:
    dataset = h5py_dataset(folder, changed)["inputs"].source
    return {"inputs": as_image(dask.array.from_array(dataset, chunks=(1, 1, 4, 4, 4), lock=True))}


@maker
def what_dask_does(folder: Path, changed: bool) -> dict[str, Any]:
    array = dask.array.from_array(image(), chunks=(1, 1, 4, 4, 4))
    return {"inputs": as_image((array * (2 + changed)).map_blocks(lambda block: block + np.float32(changed)))}


@maker
def dask_over_files_that_it_reads_itself(folder: Path, changed: bool) -> dict[str, Any]:
    np.save(folder / "image.npy", image(changed))
    delayed = dask.delayed(np.load)(folder / "image.npy")
    return {"inputs": as_image(dask.array.from_delayed(delayed, SHAPE, np.float32))}


@maker
def nifti(folder: Path, changed: bool) -> dict[str, Any]:
    nibabel.save(nibabel.Nifti1Image(image(changed)[0, 0], np.eye(4)), folder / "scan.nii")
    return {"inputs": open_image(folder / "scan.nii")}


@maker
def nifti_gz(folder: Path, changed: bool) -> dict[str, Any]:
    nibabel.save(nibabel.Nifti1Image(image(changed)[0, 0], np.eye(4)), folder / "scan.nii.gz")
    return {"inputs": open_image(folder / "scan.nii.gz")}


@maker
def nifti_dataobj(folder: Path, changed: bool) -> dict[str, Any]:
    nibabel.save(nibabel.Nifti1Image(image(changed), np.eye(4)), folder / "scan.nii")
    return {"inputs": as_image(nibabel.load(folder / "scan.nii").dataobj)}


class OfTheUser:
    """An array that reads what it likes."""

    def __init__(self, path: Path) -> None:
        self.path, self.shape, self.dtype = path, SHAPE, np.dtype(np.float32)
        self.meta = {"filename_or_obj": "scan.nii"}

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.load(self.path)[index]


@maker
def array_of_the_user(folder: Path, changed: bool) -> dict[str, Any]:
    np.save(folder / "image.npy", image(changed))
    return {"inputs": OfTheUser(folder / "image.npy")}
