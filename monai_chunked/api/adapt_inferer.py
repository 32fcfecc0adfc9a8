"""The class that does with less of a device when its memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from math import prod
from typing import Any

import torch
from monai.inferers import SlidingWindowInfererAdapt

from monai_chunked.api.inferer import ChunkedSlidingWindowInferer, Network
from monai_chunked.inputs.lazy.lazy_array import Array
from monai_chunked.inputs.source import check_inputs
from monai_chunked.plan.chunk_plan import ChunkPlan

__all__ = ["ChunkedSlidingWindowInfererAdapt"]


logger = logging.getLogger("monai_chunked")


class ChunkedSlidingWindowInfererAdapt(SlidingWindowInfererAdapt, ChunkedSlidingWindowInferer):
    """
    MONAI's ``SlidingWindowInfererAdapt``, which goes on in CPU memory when that of a device runs out, in chunks.

    Where MONAI begins to buffer, which adds up in another order, here open chunks move to CPU memory, and the answer
    keeps its bits. First the result is on the device of the input, and open chunks as far as they fit. If the network
    finds no room then, the volume is begun again with the result in CPU memory, and at last with open chunks there
    too; larger images begin so from then on. With a ``device``, or a ``process_group``, nothing adapts.

    Args:
        args, kwargs: of :py:class:`ChunkedSlidingWindowInferer`. ``buffer_steps`` counts only with a ``device``: MONAI
            begins with so many when memory runs out.

    Raises:
        torch.OutOfMemoryError: when the network has no room even so.

    Example::

        inferer = ChunkedSlidingWindowInfererAdapt(roi_size=(96, 96, 96), mode="gaussian", postprocessing="argmax")
        labels = inferer(image, network)
    """

    def __call__(self, inputs: Array, network: Network, *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs, network, args, kwargs: as in :py:class:`ChunkedSlidingWindowInferer`.

        Raises:
            ValueError, TypeError, OSError: see :py:func:`chunked_sliding_window_inference`.
        """
        if self.device is not None or "device" in kwargs or self.process_group is not None:
            return ChunkedSlidingWindowInferer.__call__(self, inputs, network, *args, **kwargs)
        check_inputs(inputs)
        ways = self._ways(inputs)
        for way in ways:
            try:
                return ChunkedSlidingWindowInferer.__call__(way, inputs, network, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                if way is ways[-1]:
                    raise
                logger.warning(
                    "an image of %s is begun again, with more in CPU memory: %s", (*inputs.shape,), str(error)
                )
                self.cpu_thresh = prod(inputs.shape[2:]) - 1
        raise AssertionError

    def plan(
        self,
        inputs_or_shape: Array | Sequence[int],
        out_channels: int | Sequence[int],
        prediction_size: Sequence[int] | None = None,
        workers: int | None = None,
    ) -> ChunkPlan:
        """What a call would take before memory runs out, see :py:meth:`ChunkedSlidingWindowInferer.plan`."""
        way = self if self.device is not None else self._with(None)
        return ChunkedSlidingWindowInferer.plan(way, inputs_or_shape, out_channels, prediction_size, workers)

    def _ways(self, inputs: Array) -> list[ChunkedSlidingWindowInferer]:
        """The inferers that are tried in turn, each with more in CPU memory than the one before."""
        source = getattr(inputs, "device", torch.device("cpu"))
        is_large = self.cpu_thresh is not None and prod(inputs.shape[2:]) > self.cpu_thresh
        ways = [] if is_large or source.type == "cpu" else [self._with(source)]
        ways.append(self._with("cpu"))
        on_device = torch.device(self.sw_device or source).type != "cpu"
        if on_device and not torch.is_grad_enabled():  # a limit ends gradients
            ways.append(self._with("cpu", device_memory=0))
        return ways

    def _with(self, device: torch.device | str | None, **parameters: Any) -> ChunkedSlidingWindowInferer:
        way = copy(self)
        vars(way).update(parameters, device=device, buffer_steps=None)
        return way
