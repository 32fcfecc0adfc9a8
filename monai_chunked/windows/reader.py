"""
Reading windows from the input, without ever handing the network memory that belongs to the caller.

The input is a tensor, or any array that is read piece by piece: nothing here ever asks for the whole of it.
"""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import convert_data_type

from monai_chunked.inputs.source import Read, Source, TensorSource
from monai_chunked.machine.accelerator import send
from monai_chunked.plan.window_grid import Window, WindowGrid, inside, padding
from monai_chunked.windows.strides import copy_with_layout, memory_like, views_of

__all__ = ["Image", "Reading", "TensorImage", "image_of"]


@dataclass(frozen=True)
class Reading:
    """How windows are made of what is read.

    Attributes:
        padding_mode, cval: as in MONAI.
        device: where the network wants windows.
        gather: whether MONAI would concatenate the windows (``sw_batch_size`` > 1) or pass a view of the image.
        preprocessing: ``(C, *box)`` to ``(C', *box)``, or ``None``.
    """

    padding_mode: str
    cval: float
    device: torch.device
    gather: bool
    preprocessing: Callable[..., Any] | None = None


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
        views = views_of(self.tensor, batch)
        if self.gather:
            return send(torch.cat(views), self.device)
        (view,) = views
        return copy_with_layout(view) if view.device == self.device else send(view, self.device)


class WindowedImage(Image):
    """Windows that are read, preprocessed and padded one by one.

    They are laid out in memory as MONAI would lay out those of a contiguous tensor with the same voxels.

    Args:
        read: of the source.
        source: what is read.
        windows: the windows over an image.
        reading: how windows are made.
    """

    def __init__(self, read: Read, source: Source, windows: WindowGrid, reading: Reading) -> None:
        self.read_box = read
        self.windows = windows
        self.images = source.shape[0]
        self.image_size = source.shape[2:]
        self.reading = reading
        # what cannot be padded is refused before anything is read
        pad(torch.empty((1, 1, *self.image_size), device="meta"), windows.least_size, reading)

    def read(self, batch: Sequence[Window]) -> torch.Tensor:
        result = None
        for k, window in enumerate(batch):
            data = self._read(window)
            if result is None and data.device == self.reading.device:
                result = self._memory(batch, data)
            elif result is None:
                result = torch.empty((len(batch), *data.shape), dtype=data.dtype, device=data.device)
            result[k : k + 1] = data[None]
        assert result is not None
        return send(result, self.reading.device)

    def _read(self, window: Window) -> torch.Tensor:
        box = tuple(map(inside, window.box, self.image_size, self.windows.least_size))
        data = self.read_box(window.image, box)
        if self.reading.preprocessing is not None:
            size, processed = tuple(data.shape[1:]), self.reading.preprocessing(data)
            shape = tuple(getattr(processed, "shape", ()))
            if len(shape) != 1 + len(size) or shape[1:] != size:
                returned = f"shape {shape}" if shape else type(processed).__name__
                raise ValueError(
                    f"preprocessing={self.reading.preprocessing!r} must keep the spatial size of the data {size} "
                    f"and return (C, *spatial), got {returned}"
                )
            data = convert_data_type(processed, torch.Tensor)[0]
        return pad(data[None], self.windows.least_size, self.reading)[0]

    def _memory(self, batch: Sequence[Window], data: torch.Tensor) -> torch.Tensor:
        """Empty memory, laid out as MONAI would hand these windows of the whole image to the network."""
        shape = (self.images, len(data), *self.windows.image_size)
        image = torch.empty(shape, dtype=data.dtype, device="meta")
        views = views_of(image, batch)
        if self.reading.gather:
            gathered = torch.cat(views)
            return torch.empty_strided(gathered.shape, gathered.stride(), dtype=data.dtype, device=data.device)
        memory = memory_like(views[0], int(views[0].storage_offset()) * data.element_size(), data.device)
        assert memory is not None
        return memory


def image_of(
    source: Source, windows: WindowGrid, reading: Reading, scratch_dir: str | os.PathLike[str] | None
) -> Image:
    """What the windows of a source are read from.

    Args:
        source: ``(B, C, *spatial)``.
        windows: the windows over an image.
        reading: how windows are made.
        scratch_dir: the folder for rows of an array that are kept and do not fit in memory.

    Raises:
        ValueError: when the image cannot be padded to the size of a window.
        OSError: when rows do not fit in ``scratch_dir``.
    """
    if isinstance(source, TensorSource) and reading.preprocessing is None:
        return TensorImage(pad(source.tensor, windows.least_size, reading), reading.device, reading.gather)
    return WindowedImage(source.reader(windows, scratch_dir), source, windows, reading)


def pad(tensor: torch.Tensor, roi_size: Sequence[int], reading: Reading) -> torch.Tensor:
    """The tensor, padded where it is smaller than a window.

    Raises:
        ValueError: when the mode cannot pad that much, or in that many dimensions.
    """
    added = padding(tensor.shape[2:], roi_size)
    if not any(map(any, added)):
        return tensor
    value = reading.cval if reading.padding_mode == "constant" else 0.0  # PyTorch refuses others, and so does MONAI
    try:
        return F.pad(tensor, list(itertools.chain(*reversed(added))), mode=reading.padding_mode, value=value)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"padding_mode={reading.padding_mode!r} cannot pad {tuple(tensor.shape[2:])} voxels to windows of "
            f"{tuple(roi_size)}: {error}"
        ) from error
