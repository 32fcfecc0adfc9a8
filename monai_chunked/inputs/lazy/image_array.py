"""An image in a file, as an array ``(B, C, *spatial)`` that is read where it is sliced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_chunked.inputs.lazy.damage import read_stored
from monai_chunked.inputs.lazy.lazy_array import Array, LazyArray, is_mapped
from monai_chunked.inputs.lazy.owned import Owned
from monai_chunked.inputs.lazy.scaled_array import readable

__all__ = ["ImageArray"]


class ImageArray(LazyArray):
    """An image ``(B, C, *spatial)`` in a file, read where it is sliced, by any thread and process.

    Another process opens the source again. A pickle says where it is, and has no voxels of files.

    Args:
        source: anything with ``shape``, ``dtype`` and slicing. That of a class of your own needs a ``__reduce__`` that
            opens it, if other processes are to read it.
        axes: for each dimension of the image, the dimension of the source, or ``None`` if the source has none. Other
            dimensions of the source have size one.
        meta: as ``MetaTensor.meta``, one for each image of a batch.
        chunks: for each dimension of the source, the length of its storage chunks; ``None``: it has none.
        scaled: whether the source gives other numbers than its ``dtype`` says; for nibabel's ``dataobj`` it is known.
        time: dimension of the source and the index in it, for one point of a time series.

    Attributes:
        shape: ``(B, C, *spatial)``.
        dtype: that of the file if it holds integers, otherwise float32.
        chunks: lengths of storage chunks, for each dimension of the image; ``None``: there are none.
        mapped: whether the operating system keeps in memory what is read again and again.
    """

    def __init__(
        self,
        source: Array,
        axes: Sequence[int | None],
        meta: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        chunks: Sequence[int] | None = None,
        scaled: bool = False,
        time: tuple[int, int] | None = None,
    ) -> None:
        source = readable(source)
        self._owned = Owned(source)
        dtype = np.dtype(source.dtype)
        if dtype.kind not in "biuf":
            raise TypeError(f"the image must hold integers or floats, got dtype {dtype}")
        self.axes = tuple(axes)
        self.time = time
        self.meta = meta
        self.shape = tuple(1 if axis is None else int(source.shape[axis]) for axis in axes)
        self.dtype = np.dtype(np.float32) if scaled or dtype.kind == "f" else dtype
        self.chunks = None if chunks is None else tuple(1 if axis is None else int(chunks[axis]) for axis in axes)
        self.mapped = is_mapped(source)

    @property
    def source(self) -> Array:
        """The source as this process may read it."""
        return self._owned.array

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def stands_on(self) -> Mapping[str, Any]:
        return {
            "source": self.source,
            "axes": self.axes,
            "time": self.time,
            "dtype": str(self.dtype),
            "shape": self.shape,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, chunks={self.chunks})"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The voxels at integers, slices and ``...``, as in NumPy."""
        given = index if isinstance(index, tuple) else (index,)
        at = given.index(...) if ... in given else len(given)
        behind = given[at + 1 :]
        full = (*given[:at], *(slice(None),) * (self.ndim - at - len(behind)), *behind)
        if len(full) != self.ndim:
            raise IndexError(f"too many indices for an image of shape {self.shape}: {index}")
        data = self._read(tuple(part if isinstance(part, slice) else slice(part, part + 1 or None) for part in full))
        return data[tuple(slice(None) if isinstance(part, slice) else 0 for part in full)]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All voxels."""
        data = np.asarray(self[...], dtype)
        return data.copy() if copy else data

    def _read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part of the image, given a slice for each of its dimensions."""
        with self._owned.reading() as source:
            data = read_stored(source, self._of_source(len(source.shape), index))
        named = [axis for axis in self.axes if axis is not None]
        unnamed = [axis for axis in range(data.ndim) if axis not in named]
        data = data.transpose(*named, *unnamed)
        data = data.reshape(data.shape[: len(named)])
        for d, (axis, part) in enumerate(zip(self.axes, index)):
            if axis is None:
                data = np.expand_dims(data, d)[(slice(None),) * d + (part,)]
        return data.astype(self.dtype, copy=False)

    def _of_source(self, dims: int, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """What to read of the source for a part of the image."""
        of_source = [slice(0, 1)] * dims
        if self.time is not None:
            of_source[self.time[0]] = slice(self.time[1], self.time[1] + 1)
        for axis, part in zip(self.axes, index):
            if axis is not None:
                of_source[axis] = part
        return tuple(of_source)
