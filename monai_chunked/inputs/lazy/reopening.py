"""How arrays of other packages are opened again, in files that are as they were."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from nibabel.arrayproxy import ArrayProxy

from monai_chunked.inputs.lazy.lazy_array import LazyArray
from monai_chunked.machine.mapped import mapped_under
from monai_chunked.machine.optional import is_of

__all__ = ["Mark", "PrivateMap", "Way", "check_marks", "marks_of", "way_to"]


Way = tuple[Callable[..., Any], tuple[Any, ...]]
"""What opens an array, and what it is called with."""

Mark = tuple[int, int] | None
"""Size and time of change of a file, which differ if it has changed; ``None``: it is not there."""


FROM_PLACES = ("sec2", "windows")
"""Drivers of h5py that name the place with each read, so that it does not matter where others have read."""


class PrivateMap(np.memmap):
    """A file that nibabel maps as a private copy, which nobody changes, so that it shows the file."""


def file_of(array: Any) -> str | None:
    """The file that another process opens to read an array; ``None``: there is none, or it is not known."""
    if isinstance(array, LazyArray):
        return array.file
    if isinstance(array, np.ndarray):
        mapped = mapped_under(array)
        shows_file = isinstance(mapped, PrivateMap) or (mapped is not None and mapped.mode != "c")
        return str(mapped.filename) if mapped is not None and shows_file else None
    if isinstance(array, ArrayProxy):
        return os.path.abspath(array.file_like) if isinstance(array.file_like, (str, os.PathLike)) else None
    if is_of(array, "h5py", "Dataset"):
        return os.path.abspath(os.fsdecode(array.file.filename)) if array.file.driver in FROM_PLACES else None
    store: Any = getattr(array, "store", None)
    return os.path.abspath(store.path) if is_of(store, "zarr.storage", "ZipStore") else None


def way_to(array: Any) -> Way | None:
    """How to open an array; ``None``: its own pickle says it, or there is nothing to open.

    Raises:
        pickle.PicklingError: when it cannot be opened again.
    """
    path = file_of(array)
    if isinstance(array, np.ndarray) and path is not None:
        mapped: Any = mapped_under(array)
        memory = np.frombuffer(mapped._mmap, np.uint8)  # NumPy has no public name for it
        before = mapped.offset % mmap.ALLOCATIONGRANULARITY
        start = array.__array_interface__["data"][0] - memory.__array_interface__["data"][0] - before
        mode = "c" if mapped.mode == "c" else "r"
        size = len(memory) - before
        return _map, (path, mode, (mapped.offset, size), start, array.shape, array.dtype, array.strides)
    if isinstance(array, ArrayProxy) and path is not None:
        state = {name: value for name, value in vars(array).items() if name not in ("_lock", "_opener")}
        return _proxy, (type(array), {**state, "file_like": path})
    if is_of(array, "h5py", "Dataset"):
        file = array.file
        if file.mode != "r":
            raise pickle.PicklingError(f"its file was opened with mode={file.mode!r}; open it with 'r'")
        if path is None:
            raise pickle.PicklingError(f"its file was opened with driver={file.driver!r}; open it by its path alone")
        return _dataset, (path, array.name)
    return None


def _map(path: str, mode: Literal["c", "r"], place: tuple[int, int], start: int, *view: Any) -> np.ndarray:
    offset, size = place
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


def marks_of(array: Any) -> dict[str, Mark]:
    """The mark of the file that an array is in, by its path; empty if no file is known."""
    path = file_of(array)
    return {} if path is None else {path: _mark(path)}


def check_marks(marks: Mapping[str, Mark]) -> None:
    """Check that files are there and have not changed.

    Raises:
        FileNotFoundError: when a file is not there.
        OSError: when it has changed.
    """
    for path, mark in marks.items():
        now = _mark(path)
        if now is None:
            raise FileNotFoundError(
                errno.ENOENT,
                "an image that another process has opened is not there; put it where all processes find it, or "
                "give its voxels as an array in memory",
                path,
            )
        if now != mark:
            raise OSError(errno.ESTALE, "the file has changed since the image was opened; open it again", path)


def _mark(path: str) -> Mark:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns
