"""
An array belongs to the process that opened it.

Forked processes share the place in an open file, and read from where another one has left it. So another process opens
an array again, and does not read one that it cannot open. What is pickled says how to open it, and has voxels only of
what lies in memory.
"""

from __future__ import annotations

import io
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch

from monai_chunked.inputs.lazy.lazy_array import Array, LazyArray
from monai_chunked.inputs.lazy.reopening import Way, check_marks, marks_of, way_to
from monai_chunked.machine.mapped import map_for_writing
from monai_chunked.machine.optional import is_of

__all__ = ["Owned"]


Result = TypeVar("Result")

THREAD_SAFE = ("dask", "h5py", "nibabel", "zarr")
"""Packages whose arrays several threads may read."""


LOCKS: dict[type, Callable[[], object]] = {type(make()): make for make in (threading.Lock, threading.RLock)}
"""Types of locks, and what makes a new one."""


class Owned:
    """An array, or a tensor, for any process and thread.

    Another process than that of its owner opens it again when it first asks for it.

    Args:
        array: with ``shape``, ``dtype`` and slicing, or ``None``.

    Attributes:
        array: as this process may read it.

    Raises:
        TypeError: when it is pickled, or asked for in another process, and cannot be opened again.
        FileNotFoundError: when it is asked for in another process, and its file is not there.
        OSError: when the file has changed since.
    """

    def __init__(self, array: Array | None) -> None:
        self._marks = {} if map_for_writing(array) is not None else marks_of(array)
        self._way: Way | None = None
        self._held: tuple[int, Any, AbstractContextManager[object]] | None = (os.getpid(), array, _lock_for(array))

    @property
    def array(self) -> Any:
        return self._here()[1]

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """The array, which no other thread reads meanwhile unless several may."""
        _, array, lock = self._here()
        with lock:
            yield array

    def __getstate__(self) -> dict[str, Any]:
        if self._held is None:
            return self.__dict__
        array, marks = self.array, self._marks
        if (mapped := map_for_writing(array)) is not None:
            mapped.flush()
            marks = marks_of(array)
        return {"_marks": marks, "_way": _unless_refused(_way_from_here, array), "_held": None}

    def _here(self) -> tuple[int, Any, AbstractContextManager[object]]:
        held, process = self._held, os.getpid()
        if held is None or held[0] != process:
            array = self._opened() if held is None else held[1] if _is_of_any_process(held[1]) else self._again(held[1])
            held = self._held = process, array, _lock_for(array)
        return held

    def _opened(self) -> Any:
        """Open the array in a process that was not forked."""
        check_marks(self._marks)
        assert self._way is not None
        function, arguments = self._way
        return function(*arguments)

    def _again(self, array: Array) -> Any:
        """Open the array in a forked process."""
        check_marks(self._marks)
        pickler = _Reopening()
        _unless_refused(pickler.dump, array)
        array = _Unpickler(pickler).load()
        return _InOneThread(array) if is_of(array, "dask.array", "Array") else array


class _Pickler(pickle.Pickler):
    """Finds what cannot be pickled, and keeps aside what always can be: voxels in memory and what is known by name."""

    def __init__(self) -> None:
        self.file = io.BytesIO()
        self.kept: list[object] = []
        super().__init__(self.file, 5)

    def persistent_id(self, value: Any) -> int | None:
        always_kept = isinstance(value, (type, ModuleType, torch.Tensor, np.ndarray))
        if not always_kept and not (isinstance(value, FunctionType) and _holds_nothing(value)):
            return None
        self.kept.append(value)
        return len(self.kept) - 1

    def reducer_override(self, value: Any) -> Any:
        if is_of(value, "zarr.storage", "ZipStore") and not value.read_only:  # it would be emptied
            raise pickle.PicklingError("its ZipStore was opened for writing; open it with mode='r'")
        return NotImplemented


class _Reopening(_Pickler):
    """For a forked process, which has a copy of all memory."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) in LOCKS:  # another thread may have held it when the process was forked
            return LOCKS[type(value)], ()
        return way_to(value) or super().reducer_override(value)


class _Unpickler(pickle.Unpickler):
    """Makes what a pickler has pickled, from what it has kept."""

    def __init__(self, pickler: _Pickler) -> None:
        super().__init__(io.BytesIO(pickler.file.getvalue()))
        self.kept = pickler.kept

    def persistent_load(self, number: int) -> Any:
        return self.kept[number]


class _InOneThread:
    """An array of dask in a forked process, where the threads that dask has started before never answer.

    Args:
        array: of dask.
    """

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.chunks = array.chunks

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.array[index].compute(scheduler="synchronous"))


def _is_of_any_process(array: object) -> bool:
    """Whether forked processes may read it as it is: memory, and what opens again by itself what it stands on."""
    return isinstance(array, (np.ndarray, torch.Tensor)) or (isinstance(array, LazyArray) and array.file is None)


def _holds_nothing(function: FunctionType) -> bool:
    return not (function.__closure__ or function.__defaults__ or function.__kwdefaults__)


def _lock_for(array: object) -> AbstractContextManager[object]:
    """What a thread holds while it reads."""
    safe = _is_of_any_process(array) or type(array).__module__.partition(".")[0] in THREAD_SAFE
    return nullcontext() if safe else threading.RLock()


def _way_from_here(array: Array) -> Way:
    """How another process opens an array, or gets it.

    Raises:
        Exception: of any type, when it cannot.
    """
    way = way_to(array)
    if way is None and not _is_of_any_process(array):
        _Pickler().dump(array)
    return way or (_as_it_is, (array,))


def _as_it_is(array: Array) -> Array:
    return array


def _unless_refused(attempt: Callable[[Array], Result], array: Array) -> Result:
    """What is made of an array.

    Raises:
        TypeError: when that fails.
    """
    try:
        return attempt(array)
    except Exception as error:  # any type may raise anything here
        kind = f"{type(array).__module__.partition('.')[0]}.{type(array).__qualname__}"
        raise TypeError(
            f"an array of type {kind} cannot be opened again in another process ({error}): read it in the process that "
            f"has opened it (num_workers=0), give its class a __reduce__ that opens it, or store it in a file that "
            f"open_image opens"
        ) from error
