"""What the input is read from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import collate_meta_tensor_fn
from monai.utils import convert_data_type

from monai_chunked.inputs.kept_rows import KeptRows, RowsPlan, plan_rows, read_array
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.window_grid import WindowGrid

__all__ = ["_box_reader", "_is_far", "device_of", "dtype_of", "metadata_of", "rows_of", "template_of", "templates_of"]


def _is_far(inputs: Any, device: torch.device) -> bool:
    """Whether it takes a while until windows are on the device: they are read from an array, or copied there."""
    return not isinstance(inputs, torch.Tensor) or inputs.device != device


def _box_reader(
    inputs: Any, windows: WindowGrid, scratch_dir: str | os.PathLike[str] | None
) -> Callable[[int, Box], torch.Tensor]:
    if isinstance(inputs, torch.Tensor):
        tensor = convert_data_type(inputs, torch.Tensor)[0]
        return lambda image, box: tensor[(slice(image, image + 1), slice(None), *box)][0].clone()
    array, dtype = _unscaled_or_float(inputs), dtype_of(inputs)
    rows = rows_of(inputs, windows)
    if rows is not None:
        kept = KeptRows(array, rows, scratch_dir)
        return lambda image, box: _tensor(kept.read(image, box), dtype)

    def read(image: int, box: Box) -> torch.Tensor:
        index = (slice(image, image + 1), slice(0, inputs.shape[1]), *box)
        return _tensor(read_array(array, index, np.dtype(array.dtype))[0], dtype)

    return read


def _tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A copy in a dtype and byte order that PyTorch has."""
    return torch.from_numpy(array.astype(torch.empty(0, dtype=dtype).numpy().dtype, order="C"))


class _ScaledProxy:
    """A ``dataobj`` of nibabel that scales what it reads; its own ``dtype`` is that of the file."""

    dtype = np.dtype(np.float32)

    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.proxy[index], self.dtype)


def _unscaled_or_float(array: Any) -> Any:
    if nibabel.is_proxy(array) and (array.slope, array.inter) != (1, 0):
        return _ScaledProxy(array)
    return array


def rows_of(inputs: Any, windows: WindowGrid) -> RowsPlan | None:
    """The rows of an array that are kept; ``None`` if it is in memory, or mapped to memory, anyway.

    What Zarr, h5py and dask call ``chunks`` says where its storage chunks end; one that holds several images of a batch
    is read once for each.
    """
    if isinstance(inputs, (torch.Tensor, np.ndarray)) or getattr(inputs, "mapped", False):
        return None
    shape, chunks = tuple(map(int, inputs.shape)), getattr(inputs, "chunks", None)
    if not (isinstance(chunks, tuple) and len(chunks) == len(shape)):
        chunks = None
    return plan_rows(shape, np.dtype(_unscaled_or_float(inputs).dtype), chunks, windows)


def dtype_of(inputs: Any) -> torch.dtype:
    """Of the windows before preprocessing: for an array float32, or what the array has if that is a float."""
    if isinstance(inputs, torch.Tensor):
        return inputs.dtype
    dtype = np.dtype(_unscaled_or_float(inputs).dtype)
    if dtype.kind != "f":
        return torch.float32
    return {2: torch.float16, 4: torch.float32}.get(dtype.itemsize, torch.float64)


def device_of(inputs: Any) -> torch.device:
    """Where the data is; an array is in CPU memory when it has been read."""
    return inputs.device if isinstance(inputs, torch.Tensor) else torch.device("cpu")


def metadata_of(inputs: Any) -> tuple[Mapping[str, Any], ...]:
    """Of each image; empty where there is none.

    Raises:
        ValueError: when an array has metadata (``meta``) of another number of images.
    """
    if isinstance(inputs, MetaTensor):
        return tuple(dict(image.meta) for image in inputs[:, :1])
    images = inputs.shape[0]
    meta = () if isinstance(inputs, torch.Tensor) else getattr(inputs, "meta", ())
    each = (meta,) if isinstance(meta, Mapping) else tuple(meta) if isinstance(meta, (list, tuple)) else ()
    if each and (len(each) != images or not all(isinstance(m, Mapping) for m in each)):
        raise ValueError(f"inputs.meta must be a dict for each of {images} image(s), got {len(each)}")
    return tuple(map(dict, each)) or tuple({} for _ in range(images))


def template_of(inputs: Any) -> MetaTensor | None:
    """A tensor without voxels that has the metadata of the input; ``None`` if there is none."""
    if isinstance(inputs, MetaTensor):
        return MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
    each = metadata_of(inputs)
    if not any(each):
        return None
    tensors = [MetaTensor(torch.zeros(0), meta=dict(meta)) for meta in each]
    return tensors[0] if len(tensors) == 1 else collate_meta_tensor_fn(tensors)


def templates_of(inputs: Any) -> list[MetaTensor]:
    """As :py:func:`template_of`, but one for each image."""
    if isinstance(inputs, MetaTensor):
        return [MetaTensor([]).copy_meta_from(image, copy_attr=False) for image in inputs[:, :1]]
    return [MetaTensor(torch.zeros(0), meta=dict(meta)) for meta in metadata_of(inputs)]
