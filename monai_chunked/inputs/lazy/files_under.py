"""The files, folders and URLs that an array is read from, as far as its kind is known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import filterfalse
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from monai_chunked.inputs.lazy.lazy_array import LazyArray
from monai_chunked.machine.mapped import MappedFiles, mapped_under
from monai_chunked.machine.optional import is_of

__all__ = ["files_of_metadata", "files_under"]


NAMES = ("filename_or_obj", "ome_zarr")
"""What metadata say of where an image was read from."""


def files_under(value: Any, mapped: MappedFiles) -> Iterator[str]:
    """The files of an array or tensor, and of those that it stands on.

    Args:
        value: of any kind; one that is not known has no files.
        mapped: the files that tensors may lie in.
    """
    yield from files_of_metadata(getattr(value, "meta", None))
    if isinstance(value, torch.Tensor):
        yield from _of_tensor(value, mapped)
    elif isinstance(value, np.ndarray):
        yield from _path(mapped.of(value.__array_interface__["data"][0]))
        yield from _path(getattr(mapped_under(value), "filename", None))
    elif isinstance(value, LazyArray):
        for part in value.stands_on.values():
            yield from files_under(part, mapped)
    elif nibabel.is_proxy(value):
        yield from _path(getattr(value, "file_like", None))
    elif is_of(value, "h5py", "Dataset"):
        yield from _of_h5py(value)
    elif is_of(value, "zarr", "Array"):
        yield from _of_zarr(value)
    elif is_of(value, "dask.array", "Array"):
        for task in dict(value.__dask_graph__()).values():
            yield from _of_task(task, mapped)


def files_of_metadata(metadata: Any) -> Iterator[str]:
    """The files that metadata name, of one image as in ``MetaTensor.meta``, or of several."""
    if isinstance(metadata, Mapping):
        for name in NAMES:
            given = metadata.get(name)
            for entry in given if isinstance(given, (list, tuple)) else [given]:
                yield from filterfalse(_is_of_results, _path(entry))
    elif isinstance(metadata, (list, tuple)):
        for entry in metadata:
            yield from files_of_metadata(entry)


def _is_of_results(path: str) -> bool:
    """Whether a path is a folder for results of the image of this name, and not what the image was read from."""
    folder = path.rstrip("/")
    if not os.path.isdir(folder):
        return False
    with os.scandir(folder) as entries:
        return all(entry.name.startswith(os.path.basename(folder)) for entry in entries)


def _path(value: Any) -> Iterator[str]:
    """A value that is a path, or the path of an open file."""
    value = getattr(value, "filename", getattr(value, "name", value)) if hasattr(value, "read") else value
    if isinstance(value, (str, bytes, os.PathLike)) and value:
        yield os.fsdecode(value)


def _of_tensor(tensor: torch.Tensor, mapped: MappedFiles) -> Iterator[str]:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.numel():
        return
    plain = tensor.detach().as_subclass(torch.Tensor)
    yield from _path(getattr(plain.untyped_storage(), "filename", None) or mapped.of(plain.data_ptr()))


def _of_h5py(dataset: Any) -> Iterator[str]:
    yield from _path(dataset.file.filename)
    folder = Path(os.fsdecode(dataset.file.filename)).parent
    sources = dataset.virtual_sources() if dataset.is_virtual else ()
    for name in [source.file_name for source in sources] + [source[0] for source in dataset.external or ()]:
        yield from _path(folder / os.fsdecode(name))


def _of_zarr(array: Any) -> Iterator[str]:
    store, path = array.store, array.path
    while hasattr(store, "_store") and not hasattr(store, "root"):
        store = store._store  # one store may wrap another
    if isinstance(getattr(store, "root", None), Path):
        yield str(store.root / path)
    elif hasattr(store, "fs"):
        schemes = store.fs.protocol
        for scheme in (schemes,) if isinstance(schemes, str) else schemes:
            yield f"{scheme}://{store.path}/{path}"
    else:
        yield from _path(getattr(store, "path", None))


def _of_task(task: Any, mapped: MappedFiles) -> Iterator[str]:
    """What a task of dask holds: arrays, and other tasks."""
    if isinstance(task, Mapping):
        parts: Iterable[Any] = task.values()
    elif isinstance(task, (list, tuple)):
        parts = task
    elif type(task).__module__ == "dask._task_spec":
        parts = [getattr(task, "value", None), getattr(task, "args", ()), getattr(task, "kwargs", {})]
    else:
        yield from files_under(task, mapped)
        return
    for part in parts:
        yield from _of_task(part, mapped)
