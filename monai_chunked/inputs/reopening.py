"""How arrays of other packages are opened again, in files that are as they were."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from nibabel.arrayproxy import ArrayProxy

from monai_chunked.inputs.lazy_array import LazyArray
from monai_chunked.machine.mapped import mapped_under

__all__ = ["Mark", "PrivateMap", "Way", "check_marks", "is_of", "marks_of", "way_to"]


Way = tuple[Callable[..., Any], tuple[Any, ...]]
"""What opens an array, and what it is called with."""

Mark = tuple[int, int] | None
"""Size and time of change of a file, by which it is seen that it is another one; ``None``: it is not there."""


FROM_PLACES = ("sec2", "windows")
"""Drivers of h5py that name the place with each read, so that it does not matter who has read elsewhere."""


class PrivateMap(np.memmap):
    """A file that is mapped as nibabel does it: a process may change its own copy, which nobody does of this one."""


def way_to(array: Any) -> Way | None:
    """How to open an array; ``None``: it knows that itself, or there is nothing to open.

    Raises:
        pickle.PicklingError: when it cannot be opened again.
    """
    if isinstance(array, np.ndarray) and (mapped := _file_under(array)) is not None:
        memory = np.frombuffer(mapped._mmap, np.uint8)  # type: ignore[attr-defined]  # NumPy has no public name for it
        before = mapped.offset % mmap.ALLOCATIONGRANULARITY
        start = array.__array_interface__["data"][0] - memory.__array_interface__["data"][0] - before
        how = (str(mapped.filename), "c" if mapped.mode == "c" else "r", mapped.offset, len(memory) - before)
        return _map, (*how, start, array.shape, array.dtype, array.strides)
    if isinstance(array, ArrayProxy) and isinstance(array.file_like, (str, os.PathLike)):
        state = {name: value for name, value in vars(array).items() if name not in ("_lock", "_opener")}
        return _proxy, (type(array), {**state, "file_like": os.path.abspath(array.file_like)})
    if is_of(array, "h5py", "Dataset"):
        file = array.file
        if file.mode != "r":
            raise pickle.PicklingError(f"its file was opened with mode={file.mode!r}; open it with 'r'")
        if file.driver not in FROM_PLACES:
            raise pickle.PicklingError(f"its file was opened with driver={file.driver!r}; open it by its path alone")
        return _dataset, (os.path.abspath(os.fsdecode(file.filename)), array.name)
    return None


def _map(path: str, mode: Literal["c", "r"], offset: int, size: int, start: int, *view: Any) -> np.ndarray:
    memory = np.memmap(path, np.uint8, mode, offset, (size,))
    if mode == "c":
        memory = memory.view(PrivateMap)
        memory.flags.writeable = False
    shape, dtype, strides = view
    return np.ndarray(shape, dtype, memory, start, strides)


def _proxy(kind: type[ArrayProxy], state: dict[str, Any]) -> ArrayProxy:
    proxy = kind.__new__(kind)
    proxy.__setstate__(state)
    return proxy


def _dataset(path: str, name: str) -> Any:
    import h5py

    return h5py.File(path, "r")[name]


def _files_of(array: Any) -> tuple[str, ...]:
    if isinstance(array, LazyArray):
        return array.files
    if isinstance(array, np.ndarray):
        mapped = _file_under(array)
        return () if mapped is None else (str(mapped.filename),)
    if isinstance(array, ArrayProxy):
        return (os.path.abspath(array.file_like),) if isinstance(array.file_like, (str, os.PathLike)) else ()
    if is_of(array, "h5py", "Dataset") and array.file.driver in FROM_PLACES:
        return (os.path.abspath(os.fsdecode(array.file.filename)),)
    store: Any = getattr(array, "store", None)
    return (os.path.abspath(store.path),) if is_of(store, "zarr.storage", "ZipStore") else ()


def marks_of(array: Any) -> dict[str, Mark]:
    """By their paths, of the files that an array is in, as far as is known."""
    return {path: _mark(path) for path in _files_of(array)}


def check_marks(marks: Mapping[str, Mark]) -> None:
    """
    Raises:
        FileNotFoundError: when a file is not there.
        OSError: when it has changed.
    """
    for path, mark in marks.items():
        found = _mark(path)
        if found is None:
            raise FileNotFoundError(
                errno.ENOENT,
                "an image that another process has opened is not there; put it where all processes find it, or "
                "give its voxels as an array in memory",
                path,
            )
        if found != mark:
            raise OSError(errno.ESTALE, "the file has changed since the image was opened; open it again", path)


def _mark(path: str) -> Mark:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def is_of(value: Any, module: str, name: str) -> bool:
    """Whether it is of a type of a package that may not be there."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def _file_under(array: np.ndarray) -> np.memmap | None:
    """The mapped file that has the voxels of an array."""
    mapped = mapped_under(array)
    return mapped if isinstance(mapped, PrivateMap) or (mapped is not None and mapped.mode != "c") else None
