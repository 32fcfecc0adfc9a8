"""NIfTI files."""

from __future__ import annotations

import errno
import gzip
import threading
from math import prod
from typing import Any

import numpy as np
from monai.data.image_reader import NibabelReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms.io.array import switch_endianness
from monai.utils import ImageMetaKey, MetaKeys, optional_import
from nibabel.volumeutils import apply_read_scaling

from monai_chunked.inputs.image_array import ImageArray, _Scaled

__all__ = ["_GzipStream", "_open_nifti"]


class _GzipStream:
    """The voxels of a ``.nii.gz``, decompressed once as long as they are asked for in the order of the file.

    ``indexed_gzip`` decompresses what it has not come to yet twice: for its index, then to return it. So what lies
    ahead is read from a plain stream, and only what lies behind through the index.

    Args:
        path: of the file.
        proxy: the ``dataobj`` of nibabel, which goes through the index.
    """

    def __init__(self, path: str, proxy: Any) -> None:
        self.path = path
        self.proxy = proxy
        self.shape = proxy.shape
        self.dtype = proxy.dtype
        self._stream: gzip.GzipFile | None = None
        self._lock = threading.Lock()

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        bounds = [part.indices(n) for part, n in zip(index, self.shape)]
        lengths = [len(range(*bound)) for bound in bounds]
        last = max((d for d, length in enumerate(lengths) if length > 1), default=0)
        in_one_run = list(lengths[:last]) == list(self.shape[:last]) and all(step == 1 for _, _, step in bounds)
        first = sum(start * prod(self.shape[:d]) for d, (start, _, _) in enumerate(bounds))
        with self._lock:
            if in_one_run and (first == 0 or (self._stream is not None and self._stream.tell() <= self._at(first))):
                data = self._read(first, prod(lengths)).reshape(lengths, order="F")
                if (self.proxy.slope, self.proxy.inter) == (1, 0):
                    return data
                scaling = np.float64(self.proxy.slope), np.float64(self.proxy.inter)
                return np.asarray(apply_read_scaling(data, *scaling))
            return np.asarray(self.proxy[index])

    def _at(self, voxel: int) -> int:
        return int(self.proxy.offset + voxel * self.dtype.itemsize)

    def _read(self, first: int, count: int) -> np.ndarray:
        if self._stream is None:
            self._stream = gzip.open(self.path)  # noqa: SIM115  stays open from read to read
        self._stream.seek(self._at(first))
        data = self._stream.read(count * self.dtype.itemsize)
        if len(data) < count * self.dtype.itemsize:
            raise OSError(errno.EIO, "the file ends before its last voxel", self.path)
        return np.frombuffer(data, self.dtype)


class _Header(NibabelReader):
    """MONAI's reader, for the metadata only."""

    def _get_array_data(self, img: Any, *_: Any) -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.uint8), img.shape)


def _open_nifti(path: str) -> ImageArray:
    compressed = path.lower().endswith(".gz")
    if compressed and not optional_import("indexed_gzip")[1]:
        raise ImportError("reading .nii.gz piece by piece needs indexed_gzip: pip install indexed_gzip")
    reader = _Header(squeeze_non_spatial_dims=True)
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
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    if compressed:
        chunks = [n if axis < 2 else 1 for axis, n in enumerate(proxy.shape)]
        return ImageArray(_GzipStream(path, proxy), axes, meta, chunks, scaled)
    mapped = proxy.get_unscaled()
    return ImageArray(_Scaled(mapped, proxy.slope, proxy.inter) if scaled else mapped, axes, meta, scaled=scaled)
