"""Arrays that are read where they are sliced: what ours have in common, and what is asked of those of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.volumeutils import apply_read_scaling

__all__ = ["LazyArray", "ScaledArray", "is_mapped", "readable", "scaled_by", "storage_chunks"]


class LazyArray(ABC):
    """An array over another one, or over a file.

    Attributes:
        shape: of the array.
        dtype: of what slicing gives.
        mapped: whether the operating system keeps in memory what is read again and again.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    mapped: bool = False

    @abstractmethod
    def __getitem__(self, index: Any) -> np.ndarray:
        """What is read from the file now."""

    @property
    @abstractmethod
    def stands_on(self) -> Mapping[str, Any]:
        """All that its voxels follow from: arrays and plain values, by the names of the attributes that hold them."""


class ScaledArray(LazyArray):
    """What a file stores, scaled as nibabel does it, in float32.

    Args:
        array: what is stored; what scales by itself comes with a slope of 1 and an intercept of 0.
        slope: of the file.
        inter: of the file.
    """

    def __init__(self, array: Any, slope: float = 1.0, inter: float = 0.0) -> None:
        self.array = array
        self.slope = slope
        self.inter = inter
        self.shape = tuple(array.shape)
        stored = np.dtype(array.dtype)
        self.dtype = np.dtype(np.float32) if stored.kind in "biuf" else stored  # others are refused as they are
        self.mapped = is_mapped(array)

    def __getitem__(self, index: Any) -> np.ndarray:
        scaled = apply_read_scaling(np.asarray(self.array[index]), np.float64(self.slope), np.float64(self.inter))
        return np.asarray(scaled, self.dtype)

    @property
    def stands_on(self) -> Mapping[str, Any]:
        return {"array": self.array, "slope": float(self.slope), "inter": float(self.inter)}


def scaled_by(proxy: Any, stored: Any) -> Any:
    """What a file stores, with the scaling that it asks for if there is one.

    Args:
        proxy: the ``dataobj`` of nibabel, which knows the scaling.
        stored: an array over what is stored.
    """
    plain = (proxy.slope, proxy.inter) == (1, 0)
    return stored if plain else ScaledArray(stored, proxy.slope, proxy.inter)


def readable(array: Any) -> Any:
    """An array that gives what its dtype says: a ``dataobj`` of nibabel has that of its file, even where it scales."""
    if not nibabel.is_proxy(array) or (type(array) is ArrayProxy and (array.slope, array.inter) == (1, 0)):
        return array
    return ScaledArray(array)


def is_mapped(array: Any) -> bool:
    """Whether reading it again costs nothing: it is in memory, or the operating system keeps what was read there."""
    return isinstance(array, np.ndarray) or (isinstance(array, LazyArray) and array.mapped)


def storage_chunks(array: Any) -> tuple[int | Sequence[int], ...] | None:
    """For each dimension the length of a storage chunk, or the lengths of all; ``None``: it can be read from anywhere.

    Zarr, h5py and dask call them ``chunks``; h5py says ``None`` and other libraries something else if there are none.
    """
    chunks = getattr(array, "chunks", None)
    return chunks if isinstance(chunks, tuple) and len(chunks) == len(array.shape) else None
