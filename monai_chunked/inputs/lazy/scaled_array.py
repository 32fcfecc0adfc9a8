"""Arrays whose file asks for a scaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.volumeutils import apply_read_scaling

from monai_chunked.inputs.lazy.lazy_array import Array, LazyArray, is_mapped
from monai_chunked.inputs.lazy.owned import Owned

__all__ = ["ScaledArray", "readable", "scaled_by"]


class ScaledArray(LazyArray):
    """What a file stores, scaled as nibabel does it, in float32.

    Args:
        array: what is stored. An array that scales by itself comes with a slope of 1 and an intercept of 0.
        slope: of the file.
        inter: of the file.
    """

    def __init__(self, array: Array, slope: float = 1.0, inter: float = 0.0) -> None:
        self._owned = Owned(array)
        self.slope = slope
        self.inter = inter
        self.shape = tuple(array.shape)
        stored = np.dtype(array.dtype)
        self.dtype = np.dtype(np.float32) if stored.kind in "biuf" else stored  # others are refused later, as they are
        self.mapped = is_mapped(array)

    @property
    def array(self) -> Array:
        """What is stored."""
        return self._owned.array

    def __getitem__(self, index: Any) -> np.ndarray:
        with self._owned.reading() as array:
            stored = np.asarray(array[index])
        return np.asarray(apply_read_scaling(stored, np.float64(self.slope), np.float64(self.inter)), self.dtype)

    @property
    def stands_on(self) -> Mapping[str, Any]:
        return {"array": self.array, "slope": float(self.slope), "inter": float(self.inter)}


def scaled_by(proxy: ArrayProxy, stored: Array) -> Array:
    """What a file stores, with the scaling that it asks for if there is one.

    Args:
        proxy: the ``dataobj`` of nibabel, which knows the scaling.
        stored: an array over what is stored.
    """
    plain = (proxy.slope, proxy.inter) == (1, 0)
    return stored if plain else ScaledArray(stored, proxy.slope, proxy.inter)


def readable(array: Array) -> Array:
    """An array that gives the dtype that it says: that of a scaling ``dataobj`` is of its file, so it is wrapped."""
    if not nibabel.is_proxy(array) or (type(array) is ArrayProxy and (array.slope, array.inter) == (1, 0)):
        return array
    return ScaledArray(array)
