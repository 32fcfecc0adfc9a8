"""NIfTI files as images: a ``.nii`` is mapped to memory, a ``.nii.gz`` decompressed once from start to end."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from monai.data.image_reader import NibabelReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms.io.array import switch_endianness
from monai.utils import ImageMetaKey, MetaKeys, optional_import
from nibabel.arrayproxy import ArrayProxy

from monai_chunked.inputs.lazy.damage import naming
from monai_chunked.inputs.lazy.image_array import ImageArray
from monai_chunked.inputs.lazy.lazy_array import LazyArray
from monai_chunked.inputs.lazy.reopening import PrivateMap
from monai_chunked.inputs.lazy.scaled_array import scaled_by

__all__ = ["GzipStream", "open_nifti"]


class GzipStream(LazyArray):
    """What a ``.nii.gz`` stores, decompressed once as long as it is asked for in the order of the file.

    ``indexed_gzip`` decompresses what it has not come to yet twice: for its index, then to return it. So what lies
    ahead is read from a plain stream, and only what lies behind through the index. Another process has its own of both:
    the index, which would be the larger part of a pickle, is of use only where one reads backwards.

    Args:
        path: of the file.
        shape: of what is stored.
        dtype: of what is stored.
        offset: where that begins, in bytes of what is decompressed.
    """

    def __init__(self, path: str, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> None:
        self.path = self.file = os.path.abspath(path)
        self.behind = ArrayProxy(self.path, (shape, dtype, offset))  # without scaling
        self.shape = self.behind.shape
        self.dtype = self.behind.dtype
        self._stream: gzip.GzipFile | None = None

    def __reduce__(self) -> tuple[type[GzipStream], tuple[object, ...]]:
        return GzipStream, (self.path, self.shape, self.dtype, self.behind.offset)

    @property
    def stands_on(self) -> Mapping[str, Any]:
        return {"behind": self.behind}

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        bounds = [part.indices(size) for part, size in zip(index, self.shape)]
        lengths = [len(range(*bound)) for bound in bounds]
        last = max((d for d, length in enumerate(lengths) if length > 1), default=0)
        in_one_run = lengths[:last] == list(self.shape[:last]) and all(step == 1 for _, _, step in bounds)
        first = sum(start * prod(self.shape[:d]) for d, (start, _, _) in enumerate(bounds))
        with naming(self.path):
            if in_one_run and (first == 0 or (self._stream is not None and self._stream.tell() <= self._at(first))):
                return self._read(first, prod(lengths)).reshape(lengths, order="F")
            return np.asarray(self.behind[index])

    def _at(self, voxel: int) -> int:
        return int(self.behind.offset + voxel * self.dtype.itemsize)

    def _read(self, first: int, count: int) -> np.ndarray:
        if self._stream is None:
            self._stream = gzip.open(self.path)  # noqa: SIM115  stays open from read to read
        self._stream.seek(self._at(first))
        data = self._stream.read(count * self.dtype.itemsize)
        if len(data) < count * self.dtype.itemsize:
            raise OSError(errno.EIO, "the file ends before its last voxel", self.path)
        if first + count == prod(self.shape):
            self._check()
        return np.frombuffer(data, self.dtype)

    def _check(self) -> None:
        """Check what was read by the checksum behind the last voxel."""
        assert self._stream is not None
        try:
            self._stream.read(1)
        except gzip.BadGzipFile as error:
            if "Not a gzipped file" not in str(error):  # other bytes may follow
                raise


class _Header(NibabelReader):
    """MONAI's reader, for the metadata only."""

    def _get_array_data(self, img: Any, *_: Any) -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.uint8), img.shape)


def open_nifti(path: str) -> ImageArray:
    """A ``.nii`` or ``.nii.gz``, see :py:func:`open_image`."""
    compressed = path.lower().endswith(".gz")
    if compressed and not optional_import("indexed_gzip")[1]:
        raise ImportError("reading .nii.gz piece by piece needs indexed_gzip: pip install indexed_gzip")
    reader = _Header(squeeze_non_spatial_dims=True)
    with naming(path):
        image: Any = reader.read(path)
        shown, header = reader.get_data(image)
    header = switch_endianness(header, "<")
    header[ImageMetaKey.FILENAME_OR_OBJ] = path
    small: Any = MetaTensor.ensure_torch_and_prune_meta(np.zeros((1,) * shown.ndim), header)
    meta = dict(small.meta)

    proxy = image.dataobj
    dims = len(meta[MetaKeys.SPATIAL_SHAPE])
    behind = [axis for axis in range(dims, len(proxy.shape)) if proxy.shape[axis] > 1]
    if len(behind) > 1:
        raise ValueError(f"{path} of shape {proxy.shape} has more than one dimension behind the spatial ones")
    axes = (None, behind[0] if behind else None, *range(dims))
    if compressed:
        chunks = [size if axis < 2 else 1 for axis, size in enumerate(proxy.shape)]
        stream = GzipStream(path, proxy.shape, proxy.dtype, proxy.offset)
        return ImageArray(scaled_by(proxy, stream), axes, meta, chunks)
    with naming(path):
        stored = proxy.get_unscaled()
    if isinstance(stored, np.memmap):
        stored = stored.view(PrivateMap)
        stored.flags.writeable = False
    return ImageArray(scaled_by(proxy, stored), axes, meta)
