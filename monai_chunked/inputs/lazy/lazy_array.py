"""Arrays that are read where they are sliced: what ours have in common, and what is asked of those of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

__all__ = ["Array", "LazyArray", "is_mapped", "storage_chunks"]


class Array(Protocol):
    """What is asked of an array, whoever made it: a tensor, and arrays of NumPy, Zarr, h5py and dask have it."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class LazyArray(ABC):
    """An array over another one, or over a file.

    Attributes:
        shape: of the array.
        dtype: of what slicing gives.
        mapped: whether the operating system keeps in memory what is read again and again.
        file: that the array has open itself; another process opens it again, by the pickle of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    mapped: bool = False
    file: str | None = None

    @abstractmethod
    def __getitem__(self, index: Any) -> np.ndarray:
        """What is read from the file now."""

    @property
    @abstractmethod
    def stands_on(self) -> Mapping[str, Any]:
        """All that its voxels follow from: arrays and plain values, by the names of the attributes that hold them."""


def is_mapped(array: Array) -> bool:
    """Whether reading it again costs nothing: it is in memory, or the operating system keeps what was read there."""
    return isinstance(array, np.ndarray) or (isinstance(array, LazyArray) and array.mapped)


def storage_chunks(array: Array) -> tuple[int | Sequence[int], ...] | None:
    """For each dimension the length of a storage chunk, or the lengths of all; ``None``: it can be read from anywhere.

    Zarr, h5py and dask call them ``chunks``. Where there are none, h5py says ``None``, and others something else.
    """
    chunks = getattr(array, "chunks", None)
    return chunks if isinstance(chunks, tuple) and len(chunks) == len(array.shape) else None
