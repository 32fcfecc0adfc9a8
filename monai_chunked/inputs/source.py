"""Where windows are read from: one contract for tensors, arrays and files; only here is asked what the input is."""

from __future__ import annotations

import numbers
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import collate_meta_tensor_fn
from monai.utils import convert_data_type

from monai_chunked.inputs.kept_rows import KeptRows, RowsPlan, plan_rows, read_array
from monai_chunked.inputs.lazy.lazy_array import Array, is_mapped, storage_chunks
from monai_chunked.inputs.lazy.owned import Owned
from monai_chunked.inputs.lazy.scaled_array import readable
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.window_grid import WindowGrid

__all__ = ["ArraySource", "Read", "Source", "TensorSource", "check_inputs", "source_of"]

Read = Callable[[int, Box], torch.Tensor]
"""From the number of an image and a box in it to new memory with its voxels, ``(C, *box)``."""


class Source(ABC):
    """A batch of images, read a box at a time.

    Attributes:
        shape: ``(B, C, *spatial)``.
        dtype: of what is read.
        device: of what is read.
        metadata: of each image, as ``MetaTensor.meta``; empty where there is none.
        templates: for each image a tensor without voxels that has its metadata; empty if there is none.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    metadata: tuple[Mapping[str, Any], ...]
    templates: tuple[MetaTensor, ...]

    @property
    @abstractmethod
    def origin(self) -> Array:
        """The tensor or array that voxels come from; a later run compares it with its own."""

    @property
    def template(self) -> MetaTensor | None:
        """A tensor without voxels that has the metadata of the batch; ``None`` if there is none."""
        if len(self.templates) < 2:
            return self.templates[0] if self.templates else None
        return collate_meta_tensor_fn(list(self.templates))

    @abstractmethod
    def read(self, image: int, box: Box) -> torch.Tensor:
        """New memory with the voxels of a box, ``(C, *box)``.

        Args:
            image: index in the batch.
            box: within the image.
        """

    def is_far(self, device: torch.device) -> bool:
        """Whether it takes a while until windows are on a device."""
        return self.device != device

    def rows(self, windows: WindowGrid) -> RowsPlan | None:
        """The rows that are kept so that each voxel is read once; ``None``: reading again costs nothing."""
        return None

    def reader(self, windows: WindowGrid, scratch_dir: str | os.PathLike[str] | None) -> Read:
        """Reads boxes in the order of windows, each voxel once where reading costs something.

        Args:
            windows: the windows over an image.
            scratch_dir: the folder for rows that do not fit in memory.

        Raises:
            OSError: when they do not fit there either.
        """
        return self.read


class TensorSource(Source):
    """A tensor.

    Args:
        tensor: ``(B, C, *spatial)``.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self.device = tensor.device
        self.tensor = convert_data_type(tensor, torch.Tensor)[0]
        self.metadata = tuple({} for _ in range(len(tensor)))
        self.templates = ()
        self._batch = tensor if isinstance(tensor, MetaTensor) else None
        if isinstance(tensor, MetaTensor):
            images = list(tensor[:, :1])
            self.metadata = tuple(dict(image.meta) for image in images)
            self.templates = tuple(MetaTensor([]).copy_meta_from(image, copy_attr=False) for image in images)

    @property
    def origin(self) -> torch.Tensor:
        return self.tensor

    @property
    def template(self) -> MetaTensor | None:
        return None if self._batch is None else MetaTensor([]).copy_meta_from(self._batch, copy_attr=False)

    def read(self, image: int, box: Box) -> torch.Tensor:
        return self.tensor[(slice(image, image + 1), slice(None), *box)][0].clone()


class ArraySource(Source):
    """Anything with ``shape``, ``dtype`` and slicing.

    What Zarr, h5py and dask call ``chunks`` says where its storage chunks end; one that holds several images of a batch
    is read once for each. Any thread and process may read; another process opens the array again.

    Args:
        array: ``(B, C, *spatial)``.

    Raises:
        ValueError: when it has metadata (``meta``) of another number of images.
        TypeError: when another process is to read it, and cannot open it again.
    """

    device = torch.device("cpu")

    def __init__(self, array: Array) -> None:
        self.shape = tuple(map(int, array.shape))
        self._owned = Owned(array)
        self._native = np.dtype(self.array.dtype)
        self.dtype = _torch_dtype(self._native)
        self.metadata = _metadata_of(array, self.shape[0])
        stated = self.metadata if any(self.metadata) else ()
        self.templates = tuple(MetaTensor(torch.zeros(0), meta=dict(meta)) for meta in stated)

    @property
    def origin(self) -> Array:
        return self._owned.array

    @property
    def array(self) -> Array:
        """The array, wrapped if it would give another dtype than it says."""
        return readable(self.origin)

    def read(self, image: int, box: Box) -> torch.Tensor:
        index = (slice(image, image + 1), slice(0, self.shape[1]), *box)
        with self._owned.reading() as array:
            return self._tensor(read_array(readable(array), index, self._native)[0])

    def is_far(self, device: torch.device) -> bool:
        return True

    def rows(self, windows: WindowGrid) -> RowsPlan | None:
        if is_mapped(self.array):
            return None
        return plan_rows(self.shape, self._native, storage_chunks(self.array), windows)

    def reader(self, windows: WindowGrid, scratch_dir: str | os.PathLike[str] | None) -> Read:
        rows = self.rows(windows)
        if rows is None:
            return self.read
        kept = KeptRows(self.array, rows, scratch_dir)

        def read(image: int, box: Box) -> torch.Tensor:
            with self._owned.reading():
                return self._tensor(kept.read(image, box))

        return read

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        """A copy in a dtype and byte order that PyTorch has."""
        return torch.from_numpy(array.astype(torch.empty(0, dtype=self.dtype).numpy().dtype, order="C"))


def source_of(inputs: Array) -> Source:
    """The source for an input, see :py:func:`chunked_sliding_window_inference`."""
    return TensorSource(inputs) if isinstance(inputs, torch.Tensor) else ArraySource(inputs)


def check_inputs(inputs: Any, name: str = "inputs") -> None:
    """Check that this is a tensor or array ``(B, C, *spatial)`` of real numbers, and not empty."""
    shape, dtype = getattr(inputs, "shape", None), getattr(inputs, "dtype", None)
    if shape is None or dtype is None or not hasattr(inputs, "__getitem__"):
        raise TypeError(
            f"{name} must be a torch.Tensor of shape (B, C, *spatial), or an array with shape, dtype and slicing, "
            f"got {type(inputs).__name__}"
        )
    if len(shape) < 3 or not all(isinstance(size, numbers.Integral) and int(size) > 0 for size in shape):
        raise ValueError(
            f"{name} must have shape (B, C, *spatial) with at least one spatial dimension and nothing empty, "
            f"got {tuple(shape)}{'; an image without batch and channel is inputs[None, None]' * (len(shape) == 2)}"
        )
    if isinstance(inputs, torch.Tensor):
        is_complex, is_real = inputs.is_complex(), True
    else:
        kind = getattr(dtype, "kind", "")
        is_complex, is_real = kind == "c", kind in "biuf" and kind != ""
    if is_complex:
        raise TypeError(f"{name} must be real, got {dtype}; pass real and imaginary part as channels")
    if not is_real:
        raise TypeError(f"{name} must be numbers, got dtype {dtype}; accepted are bool, integers and floats")


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    """The dtype of what is read: float32, or that of the array if it is a float that PyTorch has."""
    if dtype.kind != "f":
        return torch.float32
    return {2: torch.float16, 4: torch.float32}.get(dtype.itemsize, torch.float64)


def _metadata_of(array: Array, images: int) -> tuple[Mapping[str, Any], ...]:
    meta = getattr(array, "meta", ())
    metadata = (meta,) if isinstance(meta, Mapping) else tuple(meta) if isinstance(meta, (list, tuple)) else ()
    if metadata and (len(metadata) != images or not all(isinstance(image, Mapping) for image in metadata)):
        raise ValueError(f"inputs.meta must be a dict for each of {images} image(s), got {len(metadata)}")
    return tuple(map(dict, metadata)) or tuple({} for _ in range(images))
