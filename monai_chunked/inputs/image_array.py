"""An image in a file, as an array that is read where it is sliced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from nibabel.volumeutils import apply_read_scaling

__all__ = ["ImageArray", "_Scaled", "_arrange"]


class ImageArray:
    """An image ``(B, C, *spatial)`` in a file, read where it is sliced.

    Args:
        source: anything with ``shape``, ``dtype`` and slicing.
        axes: for each dimension of the image that of the source, or ``None`` if it has none. Dimensions of the source
            that are not named have size one.
        meta: as ``MetaTensor.meta``, one for each image of a batch.
        chunks: for each dimension of the source, the length of its storage chunks; ``None``: it has none.
        scaled: whether the source gives other numbers than its ``dtype`` says.
        time: dimension of the source and the index in it, for one point of a time series.

    Attributes:
        shape: ``(B, C, *spatial)``.
        dtype: that of the file if it holds integers, otherwise float32.
        chunks: lengths of storage chunks, for each dimension of the image; ``None``: there are none.
        mapped: whether the operating system keeps in memory what is read again and again.
    """

    def __init__(
        self,
        source: Any,
        axes: Sequence[int | None],
        meta: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        chunks: Sequence[int] | None = None,
        scaled: bool = False,
        time: tuple[int, int] | None = None,
    ) -> None:
        dtype = np.dtype(source.dtype)
        if dtype.kind not in "biuf":
            raise TypeError(f"the image must hold integers or floats, got dtype {dtype}")
        self.source = source
        self.axes = tuple(axes)
        self.time = time
        self.meta = meta
        self.shape = tuple(1 if a is None else int(source.shape[a]) for a in axes)
        self.dtype = np.dtype(np.float32) if scaled or dtype.kind == "f" else dtype
        self.chunks = None if chunks is None else tuple(1 if a is None else int(chunks[a]) for a in axes)
        self.mapped = isinstance(source, (np.ndarray, _Scaled))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, chunks={self.chunks})"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """With integers, slices and ``...``, as in NumPy."""
        given = index if isinstance(index, tuple) else (index,)
        at = given.index(...) if ... in given else len(given)
        behind = given[at + 1 :]
        full = (*given[:at], *(slice(None),) * (self.ndim - at - len(behind)), *behind)
        if len(full) != self.ndim:
            raise IndexError(f"too many indices for an image of shape {self.shape}: {index}")
        data = self._read(tuple(s if isinstance(s, slice) else slice(s, s + 1 or None) for s in full))
        return data[tuple(slice(None) if isinstance(s, slice) else 0 for s in full)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        data = np.asarray(self[...], dtype)
        return data.copy() if copy else data

    def _read(self, index: tuple[slice, ...]) -> np.ndarray:
        of_source = [slice(0, 1)] * len(self.source.shape)
        if self.time is not None:
            of_source[self.time[0]] = slice(self.time[1], self.time[1] + 1)
        for axis, part in zip(self.axes, index):
            if axis is not None:
                of_source[axis] = part
        data = np.asarray(self.source[tuple(of_source)])
        named = [axis for axis in self.axes if axis is not None]
        unnamed = [axis for axis in range(data.ndim) if axis not in named]
        data = data.transpose(*named, *unnamed)
        data = data.reshape(data.shape[: len(named)])
        for d, (axis, part) in enumerate(zip(self.axes, index)):
            if axis is None:
                data = np.expand_dims(data, d)[(slice(None),) * d + (part,)]
        return data.astype(self.dtype, copy=False)


class _Scaled:
    """A map of a NIfTI file, scaled as nibabel does it."""

    def __init__(self, array: np.ndarray, slope: float, inter: float) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.slope = slope
        self.inter = inter

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(apply_read_scaling(self.array[index], np.float64(self.slope), np.float64(self.inter)))


def _arrange(
    array: Any, axes: str | None, path: str, affine: np.ndarray, known: Mapping[str, Any], time: int | None
) -> ImageArray:
    """An array with named dimensions, and what is known of it besides."""
    shape = tuple(array.shape)
    if axes is None:
        raise ValueError(f"axes must say what the dimensions of {path} of shape {shape} are, for instance 'czyx'")
    if (
        len(axes) != len(shape)
        or len(set(axes)) != len(axes)
        or not set(axes) <= set("tcxyz")
        or not set(axes) & set("xyz")
    ):
        raise ValueError(
            f"axes={axes!r} must be a letter for each dimension of {path} of shape {shape}: out of t, c, x, y and z, "
            f"none twice, and at least one of x, y and z"
        )
    spatial = [letter for letter in "xyz" if letter in axes]
    order = tuple(axes.index(letter) if letter in axes else None for letter in ["t", "c", *spatial])
    meta = {
        MetaKeys.AFFINE: torch.as_tensor(affine, dtype=torch.float64),
        MetaKeys.ORIGINAL_AFFINE: np.array(affine),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.array([shape[axes.index(letter)] for letter in spatial]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: axes.index("c") if "c" in axes else float("nan"),
        ImageMetaKey.FILENAME_OR_OBJ: path,
        **known,
    }
    chunks = getattr(array, "chunks", None)
    points = shape[axes.index("t")] if "t" in axes else 1
    if time is not None and not 0 <= time < points:
        raise ValueError(f"time={time} must be at least 0 and less than {points}, the time points of {path}")
    digits = max(3, len(str(points - 1)))
    names = [{ImageMetaKey.PATCH_INDEX: f"t{point:0{digits}}"} if points > 1 else {} for point in range(points)]
    if time is None or "t" not in axes:
        return ImageArray(array, order, [{**meta, **name} for name in names], chunks)
    meta.update(names[time])
    return ImageArray(array, (None, *order[1:]), [meta], chunks, time=(axes.index("t"), time))
