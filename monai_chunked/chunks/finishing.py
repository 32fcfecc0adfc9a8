"""From the predictions of one output of the network to its result."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from monai_chunked.chunks.blending import OpenChunks
from monai_chunked.chunks.postprocessing import Postprocessing, argmax, label_dtype
from monai_chunked.outputs.base import OutputWriter
from monai_chunked.outputs.write_behind import WriteBehind
from monai_chunked.plan.boxes import Box, box_text
from monai_chunked.plan.window_grid import Window

__all__ = ["ResultStitching", "known_result"]


class ResultStitching:
    """Stitches one output of the network.

    Args:
        name: of the output in messages and file names.
        chunks: the open chunks, none so far.
        images: number of images in the input batch.
        postprocessing: applied to finished chunks, or ``None``.
        dtype: of the result if there is no postprocessing.
        create: starts the result, called with its channels and dtype as soon as they are known.
        known: channels and dtype, where they are known before a chunk is finished.

    Attributes:
        finished: number of chunks that are finished.
    """

    def __init__(
        self,
        name: str,
        chunks: OpenChunks,
        images: int,
        postprocessing: Postprocessing | None,
        dtype: torch.dtype,
        create: Callable[[int, torch.dtype], OutputWriter],
        known: tuple[int, torch.dtype] | None,
    ) -> None:
        self.name = name
        self.chunks = chunks
        self.images = images
        self.postprocessing = postprocessing
        self.dtype = dtype
        self.create = create
        self.finished = 0
        self._writer: WriteBehind | None = None
        self._result: tuple[int, torch.dtype] | None = None
        # what a callable returns is known when the first chunk is finished; all else is created, or refused, now
        if known is not None:
            self._create(*known)

    @property
    def in_memory(self) -> bool:
        """Whether finished chunks stay in memory, so that the result can be differentiated."""
        return self._writer is not None and self._writer.writer.in_memory

    def add_in_place(self) -> bool:
        """Let predictions be added up in the result where it is in memory, if that is possible; whether it is."""
        memory = None if self._writer is None else self._writer.writer.memory
        if self.postprocessing is None and memory is not None and not self.chunks.differentiable:
            weights = self.chunks.weights.get(memory.device.type)
            if weights is not None and (memory.device, memory.dtype) == (weights.device, weights.dtype):
                self.chunks.result = memory
        return self.chunks.result is not None

    def add(self, window: Window, prediction: torch.Tensor, weights: torch.Tensor) -> None:
        """Add the prediction of a window, and write the chunks that it finishes."""
        if self._writer is not None:
            self._writer.poll()
        self.chunks.add(window, prediction, weights)
        self.finish_chunks(window)

    def finish_chunks(self, window: Window) -> None:
        """Write the chunks that end with a window, but for those that an earlier run has written."""
        for box, chunk in self.chunks.finish(window):
            self.finished += 1
            if chunk is not None and self.chunks.result is None:
                self._write(window.image, box, chunk)

    def finish(self) -> Any:
        """The result, ``(B, C', *spatial)``, when all windows are in."""
        assert self._writer is not None
        assert self.finished == self.images * len(self.chunks.grid)
        return self._writer.finish()

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._writer is not None:
            self._writer.abandon()

    def _create(self, channels: int, dtype: torch.dtype) -> WriteBehind:
        writer = self.create(channels, dtype)
        on_accelerator = self.chunks.device.type != "cpu"
        threaded = (on_accelerator or not writer.in_memory) and not self.chunks.differentiable
        self._writer = WriteBehind(writer, threaded)
        self._result = (channels, dtype)
        return self._writer

    def _write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        result = chunk.to(self.dtype) if self.postprocessing is None else self._postprocess(chunk, box)
        writer = self._writer or self._create(result.shape[0], result.dtype)
        if (result.shape[0], result.dtype) != self._result:
            raise ValueError(
                f"postprocessing must return the same channels and dtype for every chunk: {self._result} before, "
                f"{(result.shape[0], result.dtype)} for the {self.name} at {box_text(box)}"
            )
        recycle = partial(self.chunks.placement.recycle, chunk)
        if writer.threaded and self.postprocessing not in (None, argmax):
            result = result.clone()  # a callable may return the same memory every time
        if result.untyped_storage().data_ptr() == chunk.untyped_storage().data_ptr():
            writer.put(image, box, result, recycle)
        else:
            recycle()
            writer.put(image, box, result, lambda: None)

    def _postprocess(self, chunk: torch.Tensor, box: Box) -> torch.Tensor:
        assert self.postprocessing is not None
        shape = tuple(chunk.shape)
        result = self.postprocessing(chunk)
        if not isinstance(result, (torch.Tensor, np.ndarray)):
            raise TypeError(
                f"postprocessing must return a tensor, got {type(result).__name__} for the {self.name} at "
                f"{box_text(box)}"
            )
        result = torch.as_tensor(result)
        if isinstance(result, MetaTensor):
            result = result.as_tensor()
        if result.dim() != len(shape) or tuple(result.shape[1:]) != shape[1:]:
            raise ValueError(
                f"postprocessing must keep the spatial size of a chunk: it got {shape} and returned "
                f"{tuple(result.shape)} for the {self.name} at {box_text(box)}"
            )
        return result


def known_result(
    channels: int, dtype: torch.dtype, postprocessing: Postprocessing | None
) -> tuple[int, torch.dtype] | None:
    """Channels and dtype of a result where they are known before a chunk is finished."""
    if postprocessing is None:
        return channels, dtype
    return (1, label_dtype(channels)) if postprocessing is argmax else None
