"""Open chunks of one output of the network: weighted sums of predictions, until their last window is in."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from monai_chunked.plan import Box, ChunkGrid, Window

__all__ = ["OpenChunks"]

PRODUCT_BYTES = {"cpu": 2**21}
"""How much of a prediction is multiplied at a time, by device type: on a CPU as much as stays in its cache."""

DEFAULT_PRODUCT_BYTES = 2**26


class OpenChunks:
    """Adds predictions to chunks and finishes those that are complete.

    Every voxel goes through MONAI's operations in MONAI's order, which is what makes the bits agree: from zero,
    prediction times weight, then addition, window after window in scan order; at the end the sum is divided by the sum
    of weights, added up in the same order.

    Args:
        grid: where chunks are and which windows touch them.
        channels: number of channels of the output.
        weights: importance map at the resolution of the output, ``(1, *prediction_size)``. MONAI divides by the sum
            of the weights that came with the first batch, also if a ``process_fn`` changes them afterwards.
        dtype: of the sums, float32 or float64.
        device: where the sums are kept.
        differentiable: keep what autograd needs, and reuse no memory.

    Attributes:
        open_bytes: bytes of the chunks that are open now.
        peak_bytes: the most they will ever be.
    """

    def __init__(
        self,
        grid: ChunkGrid,
        channels: int,
        weights: torch.Tensor,
        dtype: torch.dtype,
        device: torch.device,
        differentiable: bool = False,
    ) -> None:
        self.grid = grid
        self.channels = channels
        self.weights = weights
        self.dtype = dtype
        self.device = device
        self.differentiable = differentiable
        self.peak_bytes = grid.peak_voxels() * channels * dtype.itemsize
        self.open_bytes = 0
        self._open: dict[tuple[int, ...], torch.Tensor] = {}
        self._free: dict[int, list[torch.Tensor]] = {}
        self._free_bytes = 0
        self._product = torch.empty(0, device=device)

    def add(self, window: Window, prediction: torch.Tensor, weights: torch.Tensor) -> None:
        """Add one window.

        Args:
            window: where.
            prediction: ``(channels, *prediction_size)``.
            weights: ``(1, *prediction_size)``, of ``dtype``.
        """
        pieces = list(self.grid.pieces(window.position))
        for piece in pieces:
            if piece.chunk not in self._open:
                self._open[piece.chunk] = self._allocate(self.grid.box(piece.chunk))
        for channels, product in self._multiply(prediction, weights):
            for chunk, in_window, in_chunk in pieces:
                self._open[chunk][(channels, *in_chunk)] += product[(slice(None), *in_window)]

    def finish(self, window: Window) -> Iterator[tuple[Box, torch.Tensor]]:
        """The output voxels and the blended prediction ``(channels, *chunk)`` of each chunk that ends with a window.

        A chunk's memory is used again when the next one is asked for.
        """
        for index in self.grid.finished_by(window.position):
            chunk = self._open.pop(index)
            self.open_bytes -= chunk.nbytes
            weights = self._sum_of_weights(index)
            if self.differentiable:
                yield self.grid.box(index), chunk / weights
            else:
                yield self.grid.box(index), chunk.div_(weights)
                self._free.setdefault(chunk.numel(), []).append(chunk)
                self._free_bytes += chunk.nbytes

    def _multiply(self, prediction: torch.Tensor, weights: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Prediction times weight, a few channels at a time so that the product stays in cache.

        The product has the dtype of the prediction, as in MONAI, but is never rounded to half precision.
        """
        exact = prediction.dtype in (torch.float32, torch.float64)
        dtype = prediction.dtype if exact else torch.result_type(prediction, weights)
        if self.differentiable:
            yield slice(None), (prediction * weights).to(dtype)
            return
        voxels = prod(prediction.shape[1:])
        budget = PRODUCT_BYTES.get(self.device.type, DEFAULT_PRODUCT_BYTES)
        step = min(max(1, budget // (voxels * dtype.itemsize)), self.channels)
        if self._product.numel() < step * voxels or self._product.dtype != dtype:
            self._product = torch.empty(step * voxels, dtype=dtype, device=self.device)
        for start in range(0, self.channels, step):
            channels = slice(start, min(start + step, self.channels))
            part = prediction[channels]
            yield channels, torch.mul(part, weights, out=self._product[: part.numel()].view(part.shape))

    def _sum_of_weights(self, chunk: tuple[int, ...]) -> torch.Tensor:
        """Of all windows over a chunk, ``(1, *chunk)``; it depends on geometry alone, so nobody needs to keep it."""
        shape = (1, *(s.stop - s.start for s in self.grid.box(chunk)))
        total = torch.zeros(shape, dtype=self.dtype, device=self.device)
        for _, in_window, in_chunk in self.grid.windows_of(chunk):
            total[(slice(None), *in_chunk)] += self.weights[(slice(None), *in_window)]
        return total

    def _allocate(self, box: Box) -> torch.Tensor:
        """Zeros for a chunk, in the memory of a finished one of the same volume if there is any.

        Finished chunks that are not used again are let go as soon as memory would exceed the planned peak.
        """
        shape = (self.channels, *(s.stop - s.start for s in box))
        size = prod(shape) * self.dtype.itemsize
        self.open_bytes += size
        if same_volume := self._free.get(prod(shape)):
            self._free_bytes -= size
            return same_volume.pop().view(shape).zero_()
        if self.open_bytes + self._free_bytes > self.peak_bytes:
            self._free.clear()
            self._free_bytes = 0
        return torch.zeros(shape, dtype=self.dtype, device=self.device)
