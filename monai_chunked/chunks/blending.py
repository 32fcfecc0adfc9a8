"""Open chunks of one output of the network: weighted sums of predictions, until their last window is in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_chunked.chunks.open_chunks import Placement
from monai_chunked.machine.memory import addresses_limited
from monai_chunked.plan.boxes import Box, Corner
from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.plan.window_grid import Window

__all__ = ["OpenChunks"]


PRODUCT_BYTES = 2**26
"""How much of a prediction is multiplied at a time on an accelerator."""


PART_BYTES = 2**21
"""How much of a prediction is multiplied at a time by a thread: enough to need few calls."""


THREAD_BYTES = 2**19
"""A prediction is worth one thread for each so many bytes."""


SMALL_SUM, SMALL_SUMS = 2**14, 2**8
"""How many sums of weights of at most so many bytes are kept: for small chunks it is the calls that take long."""


class Piece(NamedTuple):
    """What a window and a chunk have in common.

    Attributes:
        sums: in the chunk, ``(channels, *piece)``.
        in_window: where in the window.
        first: whether it is the whole of a chunk that has just been opened, which nobody has filled with zeros then:
            what is added to zeros takes their place.
    """

    sums: torch.Tensor
    in_window: Box
    first: bool


Target = tuple[np.ndarray, tuple[Any, ...], bool]
"""Sums of some rows of a piece, where in these rows of the window they are, and whether they are the first."""


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
        done: where the chunks begin that an earlier run has finished; they are not added up again.
        placement: the memory of chunks.
        workers: threads for CPU memory.
        differentiable: keep what autograd needs.

    Attributes:
        result: ``(B, C, *spatial)``, where chunks are added up in place; ``None``: they have memory of their own.
    """

    def __init__(
        self,
        output: int,
        grid: ChunkGrid,
        channels: int,
        weights: torch.Tensor,
        done: Mapping[Corner, int],
        placement: Placement,
        workers: ThreadPoolExecutor,
        differentiable: bool = False,
    ) -> None:
        self.output = output
        self.grid = grid
        self.channels = channels
        self.device = weights.device
        self.weights = {weights.device.type: weights}
        self.done = done
        self.placement = placement
        self.workers = workers
        self.differentiable = differentiable
        self.result: torch.Tensor | None = None
        self._on_cpu = self.device.type == "cpu" and not differentiable
        self._threads = 1 if addresses_limited() else torch.get_num_threads()  # a thread takes 64 MiB and more of them
        self._known_sums: dict[tuple[Any, ...], torch.Tensor] = {}
        self._products = np.empty((0, 0))
        self._product = torch.empty(0, device=self.device)

    def add(self, window: Window, prediction: torch.Tensor, weights: torch.Tensor) -> None:
        """Add one window.

        Args:
            window: where.
            prediction: ``(channels, *prediction_size)``.
            weights: ``(1, *prediction_size)``, of the dtype of the sums.
        """
        # the product has the dtype of the prediction, as in MONAI, but is never rounded to half precision
        if prediction.dtype not in (torch.float32, torch.float64):
            prediction = prediction.to(torch.result_type(prediction, weights))
        if self.result is None:
            pieces = [
                self._piece(window.image, chunk, in_window, in_chunk)
                for chunk, in_window, in_chunk in self.grid.pieces(window.position)
                if not self._is_done(window.image, chunk)
            ]
        else:
            (piece,) = self.grid.uncut.pieces(window.position)
            pieces = [Piece(self.result[window.image][(slice(None), *piece.in_chunk)], piece.in_window, False)]
        if not pieces:
            return
        if self.differentiable:
            product = (prediction * weights).to(prediction.dtype)
            for sums, in_window, _ in pieces:
                sums.add_(product[(slice(None), *in_window)])
        elif self._on_cpu:
            self._add_on_cpu(pieces, prediction.numpy(), weights.numpy())
        else:
            self._add_on_accelerator(pieces, prediction, weights)

    def finish(self, window: Window) -> Iterator[tuple[Box, torch.Tensor | None]]:
        """The output voxels and the blended prediction ``(channels, *chunk)`` of each chunk that ends with a window.

        Whoever takes a chunk recycles its memory when it is not needed any more. ``None`` stands for one that is done.
        """
        for position in self.grid.finished_by(window.position):
            if self._is_done(window.image, position):
                yield self.grid.box(position), None
                continue
            chunk = self._chunk(window.image, position)
            weights = self._sum_of_weights(position, chunk.device)
            if self.result is None:
                self.placement.release((self.output, position))
            else:
                self.placement.release_in_place((self.output, position))
            yield self.grid.box(position), chunk / weights if self.differentiable else chunk.div_(weights)

    def _is_done(self, image: int, position: tuple[int, ...]) -> bool:
        return bool(self.done) and (image, *self.grid.corner(position)) in self.done

    def _chunk(self, image: int, position: tuple[int, ...]) -> torch.Tensor:
        if self.result is not None:
            return self.result[image][(slice(None), *self.grid.box(position))]
        sizes = (s.stop - s.start for s in self.grid.box(position))
        return self.placement.get((self.output, position)).view(self.channels, *sizes)

    def _piece(self, image: int, position: tuple[int, ...], in_window: Box, in_chunk: Box) -> Piece:
        chunk = self._chunk(image, position)
        sums = chunk[(slice(None), *in_chunk)]
        empty = self.placement.is_empty((self.output, position))
        first = empty and self._on_cpu and sums.shape == chunk.shape
        if empty and not first:
            chunk.zero_()
        return Piece(sums, in_window, first)

    def _add_on_cpu(self, pieces: list[Piece], prediction: np.ndarray, weights: np.ndarray) -> None:
        """A part of the prediction at a time, so that the product stays in cache, spread over threads.

        With NumPy: its operations run in the thread that calls them, so that threads wait for each other once a window
        and not once an operation, which costs dearly when the processor has other things to do. Each takes the next
        part when it is ready, because those of the network may be about for a while.
        """
        most = max(PART_BYTES // prediction.itemsize, prediction[0, 0].size)

        parts = deque(
            # a thread may hold on to what it ran for a while, so what it runs holds no prediction but in here
            (prediction[channels, rows], weights[:, rows], channels, targets)
            for channels, rows, targets in self._parts(pieces, max(1, PART_BYTES // prediction[0, 0].nbytes))
        )

        def add(memory: np.ndarray) -> None:
            with np.errstate(all="ignore"):
                while True:
                    try:
                        part, factors, channels, targets = parts.popleft()
                    except IndexError:
                        return
                    product = memory[: part.size].reshape(part.shape)
                    np.multiply(part, factors, out=product, casting="same_kind")
                    for sums, in_part, first in targets:
                        before = 0 if first else sums[channels]
                        np.add(before, product[in_part], out=sums[channels], casting="same_kind")

        threads = min(self._threads, len(parts), 1 + prediction.nbytes // THREAD_BYTES)
        shape = (threads, most)
        if self._products.shape != shape or self._products.dtype != prediction.dtype:
            self._products = np.empty(shape, prediction.dtype)
        busy = [self.workers.submit(add, memory) for memory in self._products[1:]]
        add(self._products[0])
        for future in busy:
            future.result()

    def _parts(self, pieces: list[Piece], most: int) -> Iterator[tuple[slice, slice, list[Target]]]:
        """Channels, rows along the first dimension, and what they are added to: ``most`` rows of a channel in all."""
        targets: dict[tuple[int, int], list[Target]] = {}
        for piece in pieces:
            sums, (rows, *others) = piece.sums.numpy(), piece.in_window
            for start in range(rows.start, rows.stop, most):
                stop = min(start + most, rows.stop)
                in_sums = sums[:, start - rows.start : stop - rows.start]
                targets.setdefault((start, stop), []).append((in_sums, (..., *others), piece.first))
        for (start, stop), those in targets.items():
            step = max(1, most // (stop - start))
            for channel in range(0, self.channels, step):
                yield slice(channel, channel + step), slice(start, stop), those

    def _add_on_accelerator(self, pieces: list[Piece], prediction: torch.Tensor, weights: torch.Tensor) -> None:
        """A few channels at a time, to chunks on the device and in CPU memory."""
        voxels = weights.numel()
        step = min(max(1, PRODUCT_BYTES // (voxels * prediction.element_size())), self.channels)
        if self._product.numel() < step * voxels or self._product.dtype != prediction.dtype:
            self._product = torch.empty(step * voxels, dtype=prediction.dtype, device=self.device)
        for start in range(0, self.channels, step):
            part = prediction[start : start + step]
            product = torch.mul(part, weights, out=self._product[: part.numel()].view(part.shape))
            for sums, in_window, _ in pieces:
                sums[start : start + step].add_(product[(slice(None), *in_window)].to(sums.device))

    def _sum_of_weights(self, chunk: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Of all windows over a chunk, ``(1, *chunk)``; it depends on geometry alone, so nobody needs to keep it."""
        if device.type not in self.weights:
            self.weights[device.type] = self.weights[self.device.type].to(device)
        weights = self.weights[device.type]
        surroundings = (device.type, *self.grid.surroundings(chunk))
        known = self._known_sums.get(surroundings)
        if known is not None:
            return known
        shape = (1, *(s.stop - s.start for s in self.grid.box(chunk)))
        total = torch.zeros(shape, dtype=weights.dtype, device=device)
        for _, in_window, in_chunk in self.grid.windows_of(chunk):
            total[(slice(None), *in_chunk)].add_(weights[(slice(None), *in_window)])
        if total.nbytes <= SMALL_SUM and len(self._known_sums) < SMALL_SUMS:
            self._known_sums[surroundings] = total
        return total
