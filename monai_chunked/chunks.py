"""Open chunks of one output of the network: weighted sums of predictions, until their last window is in."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from monai_chunked.placement import Placement
from monai_chunked.plan import Box, ChunkGrid, Window

__all__ = ["OpenChunks"]

PRODUCT_BYTES = {"cpu": 2**24}
"""How much of a prediction is multiplied at a time, by device type: on a CPU as much as its cache may hold, but not so
little that threads spend their time waiting for each other."""

DEFAULT_PRODUCT_BYTES = 2**26


class OpenChunks:
    """Adds predictions to chunks and finishes those that are complete.

    Every voxel goes through MONAI's operations in MONAI's order, which is what makes the bits agree: from zero,
    prediction times weight, then addition, window after window in scan order; at the end the sum is divided by the sum
    of weights, added up in the same order.

    Args:
        output: number of the output of the network.
        grid: where chunks are and which windows touch them.
        channels: number of channels of the output.
        weights: importance map at the resolution of the output, ``(1, *prediction_size)``, of the dtype of the sums.
            MONAI divides by the sum of the weights that came with the first batch, also if a ``process_fn`` changes
            them afterwards.
        placement: the memory of chunks.
        differentiable: keep what autograd needs.
    """

    def __init__(
        self,
        output: int,
        grid: ChunkGrid,
        channels: int,
        weights: torch.Tensor,
        placement: Placement,
        differentiable: bool = False,
    ) -> None:
        self.output = output
        self.grid = grid
        self.channels = channels
        self.device = weights.device
        self.weights = {weights.device.type: weights}
        self.placement = placement
        self.differentiable = differentiable
        self._product = torch.empty(0, device=self.device)

    def add(self, window: Window, prediction: torch.Tensor, weights: torch.Tensor) -> None:
        """Add one window.

        Args:
            window: where.
            prediction: ``(channels, *prediction_size)``.
            weights: ``(1, *prediction_size)``, of the dtype of the sums.
        """
        targets = [
            (self._chunk(chunk)[(slice(None), *in_chunk)], (slice(None), *in_window))
            for chunk, in_window, in_chunk in self.grid.pieces(window.position)
        ]
        for channels, product in self._multiply(prediction, weights):
            for target, in_window in targets:
                target[channels].add_(product[in_window].to(target.device))

    def finish(self, window: Window) -> Iterator[tuple[Box, torch.Tensor]]:
        """The output voxels and the blended prediction ``(channels, *chunk)`` of each chunk that ends with a window.

        Whoever takes a chunk recycles its memory when it is not needed any more.
        """
        for position in self.grid.finished_by(window.position):
            chunk = self._chunk(position)
            weights = self._sum_of_weights(position, chunk.device)
            self.placement.release((self.output, position))
            yield self.grid.box(position), chunk / weights if self.differentiable else chunk.div_(weights)

    def _chunk(self, position: tuple[int, ...]) -> torch.Tensor:
        sizes = (s.stop - s.start for s in self.grid.box(position))
        return self.placement.get((self.output, position)).view(self.channels, *sizes)

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

    def _sum_of_weights(self, chunk: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Of all windows over a chunk, ``(1, *chunk)``; it depends on geometry alone, so nobody needs to keep it."""
        if device.type not in self.weights:
            self.weights[device.type] = self.weights[self.device.type].to(device)
        weights = self.weights[device.type]
        shape = (1, *(s.stop - s.start for s in self.grid.box(chunk)))
        total = torch.zeros(shape, dtype=weights.dtype, device=device)
        for _, in_window, in_chunk in self.grid.windows_of(chunk):
            total[(slice(None), *in_chunk)].add_(weights[(slice(None), *in_window)])
        return total
