"""The worker before the network: windows of an input, for a loop of one's own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset

from monai_chunked.call.settings import PerDimension, Settings, Sizes
from monai_chunked.inputs.lazy.lazy_array import Array
from monai_chunked.inputs.lazy.owned import Owned
from monai_chunked.inputs.source import check_inputs, source_of
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.errors import name_windows
from monai_chunked.windows.reader import Image, Reading, image_of

__all__ = ["OPTIONS", "WindowSampler", "tensor_of"]


OPTIONS = ("min_size", "padding_mode", "cval", "buffer_steps", "buffer_dim", "scratch_dir")
"""Parameters of the inferer that say where windows lie and how they are read, beside those that are named."""


class WindowSampler(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """
    The windows of an input in scan order, as a map-style ``Dataset``.

    Windows, padding and preprocessing are those of :py:class:`ChunkedSlidingWindowInferer`, and so are the parameters.
    Each item is the data of a window, ``(C, *roi_size)``, and which window it is, int64 ``(1 + 2 * dims,)``: the number
    of the image, where the window starts in each spatial dimension, and where it stops, in voxels of the padded image.
    A ``DataLoader`` reads them in as many processes (or threads) as one likes; each of them opens an array or file
    again, keeps the rows of it that its current window needs, and reads a voxel once. What comes out goes to a
    :py:class:`ChunkAggregator` in the same order.

    Args:
        inputs: ``(B, C, *spatial)``, a tensor, or an array that is read piece by piece, as for the inferer. An array of
            a class of your own over an open file needs a ``__reduce__`` that opens it, for processes to read it.
        roi_size: spatial size of a window in voxels.
        overlap: of neighbouring windows, as a part of ``roi_size``.
        border: what becomes of windows that would reach over the end of the image.
        mask: an array of the spatial size of the input: windows in which it is zero are left out.
        preprocessing: applied to the data of each window.
        options: further parameters of the inferer: ``min_size``, ``padding_mode``, ``cval``, ``buffer_steps``,
            ``buffer_dim``, ``scratch_dir``.

    Raises:
        ValueError, TypeError: when a parameter does not fit, or no window is left by the mask; in another process, when
            the input cannot be opened again there.
        OSError: in another process, when a file is not there, or has changed since.

    Example::

        sampler = WindowSampler(open_image("ct.nii.gz"), roi_size=96, overlap=0.5)
        aggregator = ChunkAggregator(sampler, mode="gaussian", postprocessing="argmax")
        for data, windows in DataLoader(sampler, batch_size=4, num_workers=2):
            aggregator.add_batch(session.run(None, {"image": data.numpy()}), windows)
        labels = aggregator.finish()
    """

    def __init__(
        self,
        inputs: Array,
        roi_size: Sizes,
        overlap: PerDimension = 0.25,
        border: Sequence[str] | str = "edge",
        mask: Array | None = None,
        preprocessing: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        check_inputs(inputs)
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise TypeError(
                f"WindowSampler has no parameter {unknown[0]!r}; beside roi_size, overlap, border, mask and "
                f"preprocessing it takes {', '.join(OPTIONS)}"
            )
        self._mask = Owned(mask)
        named = {"roi_size": roi_size, "overlap": overlap, "border": border, "preprocessing": preprocessing}
        self._parameters = {**named, **options}
        self.source = source_of(inputs)
        settings = Settings.check(inputs.shape, **self.parameters)
        self.skipped = settings.skipped()
        self.settings = replace(settings, mask=None)  # which is read now
        runs = self.settings.windows.runs(self.source.shape[0])
        self._runs = [[window for window in run if not self._is_skipped(window)] for run in runs]
        self.windows = [window for run in self._runs for window in run]
        if not self.windows:
            raise ValueError("mask is zero in every window, so there is nothing to predict")
        self._reader = threading.local()

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that were given, by name."""
        return {**self._parameters, "mask": self._mask.array}

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The data of a window, ``(C, *roi_size)``, and which one it is, ``(1 + 2 * dims,)``.

        Args:
            index: its number in scan order, without those that the mask leaves out.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} windows, and none has the number {index}")
        window = self.windows[index]
        with name_windows([window], "reading"):
            return self._image().read([window])[0], tensor_of(window)

    def batches(self, batch_size: int) -> list[list[int]]:
        """The batches that the inferer makes, for ``DataLoader(sampler, batch_sampler=sampler.batches(4))``.

        They are those of ``DataLoader(sampler, batch_size=4)``, but where windows are of several sizes
        (``border="adaptive"``) or ``buffer_steps`` end them.

        Args:
            batch_size: how many windows are in one, at most.
        """
        first, batches = 0, []
        for run in self._runs:
            numbers = list(range(first, first + len(run)))
            batches += [numbers[k : k + batch_size] for k in range(0, len(numbers), batch_size)]
            first += len(run)
        return batches

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads for itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reader = threading.local()

    def _is_skipped(self, window: Window) -> bool:
        return self.skipped is not None and self.skipped.window(window.image, window.position)

    def _image(self) -> Image:
        """What this thread of this process reads from: each keeps rows of its own."""
        process, image = getattr(self._reader, "image", (None, None))
        if image is None or process != os.getpid():
            settings = self.settings
            reading = Reading(settings.padding_mode, settings.cval, self.source.device, True, settings.preprocessing)
            image = image_of(self.source, settings.windows, reading, settings.scratch_dir)
            self._reader.image = os.getpid(), image
        return image


def tensor_of(window: Window) -> torch.Tensor:
    """Which window it is, as int64 ``(1 + 2 * dims,)``: the number of the image, starts, and stops.

    >>> tensor_of(Window(0, (0, 1), (slice(0, 8), slice(4, 12)))).tolist()
    [0, 0, 4, 8, 12]
    """
    return torch.tensor([window.image, *(side.start for side in window.box), *(side.stop for side in window.box)])
