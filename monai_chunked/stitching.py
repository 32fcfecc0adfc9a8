"""One output of the network on its way: predictions go into open chunks, finished chunks to the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data.meta_tensor import MetaTensor

from monai_chunked.chunks import OpenChunks
from monai_chunked.outputs import Output, OutputWriter
from monai_chunked.plan import Box, Window
from monai_chunked.postprocessing import Postprocessing, argmax, label_dtype

__all__ = ["Stitching"]


class Stitching:
    """Stitches one output of the network.

    Args:
        name: of the output in messages and file names.
        chunks: the open chunks, none so far.
        images: number of images in the input batch.
        postprocessing: applied to finished chunks, or ``None``.
        dtype: of the result if there is no postprocessing.
        output: where finished chunks go.

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
        output: Output,
    ) -> None:
        self.name = name
        self.chunks = chunks
        self.images = images
        self.postprocessing = postprocessing
        self.dtype = dtype
        self.output = output
        self.finished = 0
        self._writer: OutputWriter | None = None
        # what a callable returns is known when the first chunk is finished; everything else is created, or refused, now
        if postprocessing is None:
            self._create(chunks.channels, dtype)
        elif postprocessing is argmax:
            self._create(1, label_dtype(chunks.channels))
        self.chunks.differentiable = torch.is_grad_enabled() and self.in_memory

    @property
    def in_memory(self) -> bool:
        """Whether finished chunks stay in memory, so that the result can be differentiated."""
        return self._writer is not None and self._writer.in_memory

    @property
    def total(self) -> int:
        """Number of chunks in all."""
        return self.images * len(self.chunks.grid)

    def add(self, batch: Sequence[Window], predictions: torch.Tensor, weights: torch.Tensor) -> None:
        """Add the predictions of a batch of windows, and write the chunks that they finish."""
        for window, prediction in zip(batch, predictions):
            self.chunks.add(window, prediction, weights)
            for box, chunk in self.chunks.finish(window):
                self._write(window.image, box, chunk)

    def finish(self) -> torch.Tensor:
        """The result, ``(B, C', *spatial)``, when all windows are in."""
        assert self._writer is not None
        assert self.finished == self.total
        return self._writer.finish()

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._writer is not None:
            self._writer.abandon()

    def _create(self, channels: int, dtype: torch.dtype) -> OutputWriter:
        shape = (self.images, channels, *self.chunks.grid.size)
        self._writer = self.output.create(self.name, shape, dtype)
        self._result = (channels, dtype)
        return self._writer

    def _write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        result = chunk.to(self.dtype) if self.postprocessing is None else self._postprocess(chunk, box)
        writer = self._writer or self._create(result.shape[0], result.dtype)
        if (result.shape[0], result.dtype) != self._result:
            raise ValueError(
                f"postprocessing must return the same channels and dtype for every chunk: {self._result} before, "
                f"{(result.shape[0], result.dtype)} for the {self.name} at {_voxels(box)}"
            )
        writer.write(image, box, result)
        self.finished += 1

    def _postprocess(self, chunk: torch.Tensor, box: Box) -> torch.Tensor:
        assert self.postprocessing is not None
        shape = tuple(chunk.shape)
        result = torch.as_tensor(self.postprocessing(chunk))
        if isinstance(result, MetaTensor):
            result = result.as_tensor()
        if result.dim() != len(shape) or tuple(result.shape[1:]) != shape[1:]:
            raise ValueError(
                f"postprocessing must keep the spatial size of a chunk: it got {shape} and returned "
                f"{tuple(result.shape)} for the {self.name} at {_voxels(box)}"
            )
        return result


def _voxels(box: Box) -> str:
    return f"[{', '.join(f'{s.start}:{s.stop}' for s in box)}]"
