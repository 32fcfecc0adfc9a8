"""
Reading windows from the input, without ever handing the network memory that belongs to the caller.

The input is a tensor, or any array that is read piece by piece: nothing here ever asks for the whole of it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import convert_data_type

from monai_chunked.inputs.kept_rows import inside
from monai_chunked.inputs.source import _box_reader
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.window_grid import Window, WindowGrid, padding
from monai_chunked.windows.strides import ALIGNMENT, _copy_with_layout, _memory_like, _views

__all__ = ["Image", "_dense_layout", "image_of", "read_windows"]


class Image(ABC):
    """What windows are read from."""

    @abstractmethod
    def read(self, batch: Sequence[Window]) -> torch.Tensor:
        """A batch of windows as the network gets them, ``(windows, C, *roi_size)``."""


class TensorImage(Image):
    """A tensor in memory.

    Args:
        tensor: ``(B, C, *spatial)``, padded where it is smaller than a window.
        device: where the network wants windows.
        gather: whether MONAI would concatenate the windows (``sw_batch_size`` > 1) or pass a view of the image.
    """

    def __init__(self, tensor: torch.Tensor, device: torch.device, gather: bool) -> None:
        self.tensor = tensor
        self.device = device
        self.gather = gather

    def read(self, batch: Sequence[Window]) -> torch.Tensor:
        return read_windows(self.tensor, batch, self.device, self.gather)


class WindowedImage(Image):
    """Windows that are read, preprocessed and padded one by one.

    They are laid out in memory as MONAI would lay out those of a contiguous tensor with the same voxels.

    Args:
        read_box: called with the number of an image and a box in it; returns new memory, ``(C, *box)``.
        windows: the windows over an image.
        image_size: spatial size of an image in voxels.
        images: how many there are.
        padding_mode, cval: as in MONAI.
        preprocessing: ``(C, *box)`` to ``(C', *box)``, or ``None``.
        device, gather: as for :py:class:`TensorImage`.
    """

    def __init__(
        self,
        read_box: Callable[[int, Box], torch.Tensor],
        windows: WindowGrid,
        image_size: Sequence[int],
        images: int,
        padding_mode: str,
        cval: float,
        preprocessing: Callable[..., Any] | None,
        device: torch.device,
        gather: bool,
    ) -> None:
        self.read_box = read_box
        self.windows = windows
        self.image_size = tuple(image_size)
        self.images = images
        self.padding_mode = padding_mode
        self.cval = cval
        self.preprocessing = preprocessing
        self.device = device
        self.gather = gather
        # what cannot be padded is refused before anything is read
        pad(torch.empty((1, 1, *self.image_size), device="meta"), windows.roi_size, padding_mode, cval)

    def read(self, batch: Sequence[Window]) -> torch.Tensor:
        result = None
        for k, window in enumerate(batch):
            data = self._read(window)
            if result is None and data.device == self.device:
                result = self._memory(batch, data)
            elif result is None:
                result = torch.empty((len(batch), *data.shape), dtype=data.dtype, device=data.device)
            result[k : k + 1] = data[None]
        assert result is not None
        return _send(result, self.device)

    def _read(self, window: Window) -> torch.Tensor:
        box = tuple(map(inside, window.box, self.image_size, self.windows.roi_size))
        data = self.read_box(window.image, box)
        if self.preprocessing is not None:
            size, processed = tuple(data.shape[1:]), self.preprocessing(data)
            shape = tuple(getattr(processed, "shape", ()))
            if len(shape) != 1 + len(size) or shape[1:] != size:
                returned = f"shape {shape}" if shape else type(processed).__name__
                raise ValueError(
                    f"preprocessing={self.preprocessing!r} must keep the spatial size of the data {tuple(size)} and "
                    f"return (C, *spatial), got {returned}"
                )
            data = convert_data_type(processed, torch.Tensor)[0]
        return pad(data[None], self.windows.roi_size, self.padding_mode, self.cval)[0]

    def _memory(self, batch: Sequence[Window], data: torch.Tensor) -> torch.Tensor:
        """Empty, laid out as MONAI would hand these windows of the whole image to the network."""
        shape = (self.images, len(data), *self.windows.image_size)
        image = torch.empty(shape, dtype=data.dtype, device="meta")
        views = _views(image, batch)
        if self.gather:
            gathered = torch.cat(views)
            return torch.empty_strided(gathered.shape, gathered.stride(), dtype=data.dtype, device=data.device)
        memory = _memory_like(views[0], int(views[0].storage_offset()) * data.element_size(), data.device)
        assert memory is not None
        return memory


def image_of(
    windows: WindowGrid,
    padding_mode: str,
    cval: float,
    device: torch.device,
    gather: bool,
    scratch_dir: str | os.PathLike[str] | None,
    inputs: Any,
    preprocessing: Callable[..., Any] | None = None,
) -> Image:
    """What the windows of an input are read from.

    Args:
        windows: the windows over an image.
        padding_mode, cval: as in MONAI.
        device: where the network wants windows.
        gather: whether MONAI would concatenate the windows (``sw_batch_size`` > 1) or pass a view of the image.
        scratch_dir: the folder for rows of an array that are kept and do not fit in memory.
        inputs: ``(B, C, *spatial)``, a tensor or an array.
        preprocessing: ``(C, *box)`` to ``(C', *box)``, or ``None``.

    Raises:
        ValueError: when the image cannot be padded to the size of a window.
        OSError: when rows do not fit in ``scratch_dir``.
    """
    if isinstance(inputs, torch.Tensor) and preprocessing is None:
        return TensorImage(pad(inputs, windows.roi_size, padding_mode, cval), device, gather)
    return WindowedImage(
        _box_reader(inputs, windows, scratch_dir),
        windows=windows,
        image_size=inputs.shape[2:],
        images=inputs.shape[0],
        padding_mode=padding_mode,
        cval=cval,
        preprocessing=preprocessing,
        device=device,
        gather=gather,
    )


def pad(tensor: torch.Tensor, roi_size: Sequence[int], padding_mode: str, cval: float) -> torch.Tensor:
    """The tensor without metadata, padded where it is smaller than a window.

    Raises:
        ValueError: when the mode cannot pad that much, or in that many dimensions.
    """
    tensor = convert_data_type(tensor, torch.Tensor)[0]
    before_and_after = padding(tensor.shape[2:], roi_size)
    if not any(map(any, before_and_after)):
        return tensor
    value = cval if padding_mode == "constant" else 0.0  # PyTorch refuses others, and so does MONAI
    try:
        return F.pad(tensor, [n for pair in reversed(before_and_after) for n in pair], mode=padding_mode, value=value)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"padding_mode={padding_mode!r} cannot pad {tuple(tensor.shape[2:])} voxels to windows of "
            f"{tuple(roi_size)}: {error}"
        ) from error


def read_windows(image: torch.Tensor, batch: Sequence[Window], device: torch.device, gather: bool) -> torch.Tensor:
    """A batch of windows on ``device``, shape ``(windows, C, *roi_size)``.

    Args:
        image: ``(B, C, *spatial)``, padded where it is smaller than a window.
        batch: the windows to read.
        device: where the network wants them.
        gather: whether MONAI would concatenate the windows (``sw_batch_size`` > 1) or pass a view of the image.
    """
    views = _views(image, batch)
    if gather:
        return _send(torch.cat(views), device)
    (view,) = views
    return _copy_with_layout(view) if view.device == device else _send(view, device)


def _send(windows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Windows on a device; to CUDA from pinned memory, from which it copies while other things go on."""
    if device.type == "cuda" and windows.device.type == "cpu":
        pinned = torch.empty_like(windows, pin_memory=True)  # as dense as the copy will be, unlike pin_memory()
        return pinned.copy_(windows).to(device, non_blocking=True)
    return windows.to(device)


@lru_cache
def _dense_layout(
    view_shape: tuple[int, ...], view_strides: tuple[int, ...]
) -> tuple[list[int], list[int], int] | None:
    """Shape, strides and elements of :py:func:`_memory_like`, which are the same for nearly all windows."""
    strides = [0] * len(view_shape)
    borders = [(1, 1)]  # where dimensions begin and end, in the view and in the copy
    for d in sorted(range(len(view_shape)), key=lambda d: (view_strides[d], view_shape[d] == 1, -d)):
        stride, size = view_strides[d], view_shape[d]
        if stride == 0:  # an expanded dimension: copied once, expanded again
            continue
        if size > 1 and stride < max(borders)[0]:  # one element is several voxels, as after unfold
            return None
        before, packed = max(border for border in borders if border[0] <= stride)
        strides[d] = packed if stride == before else packed + 1 + (stride - packed - 1) % ALIGNMENT
        borders += [(stride, strides[d]), (stride * size, strides[d] * size)]
    shape = [1 if stride == 0 else size for size, stride in zip(view_shape, strides)]
    return shape, strides, 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
