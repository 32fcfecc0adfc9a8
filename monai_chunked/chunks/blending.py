"""Adding predictions to the sums of open chunks; nothing else adds to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_chunked.chunks.background import Background
from monai_chunked.chunks.handing_on import HandingOn
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.machine.memory import addresses_limited
from monai_chunked.plan.boxes import Box, Region, sizes
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.window_grid import Window

__all__ = ["Blending"]

PRODUCT_BYTES = 2**26
"""How much of a prediction is multiplied at a time on an accelerator."""


EXACT = (torch.float32, torch.float64)
"""What NumPy and PyTorch compute alike."""


PART_BYTES, LEAST_PART_BYTES = 2**21, 2**16
"""Of a prediction on a CPU, all threads together multiply at most so much at a time, and one thread at least so much,
which needs few calls."""


PART = 8
"""Products take no more than this part of a prediction, which MONAI multiplies in place."""


THREAD_BYTES = 2**19
"""A prediction is worth one thread for each so many bytes."""


SMALL_BYTES = 2**17
"""What PyTorch multiplies without further threads, which would wait for each other after each operation."""


class Target(NamedTuple):
    """What a part of a prediction is added to.

    Attributes:
        sums: of a chunk, ``(C, *chunk)``, or of a result, ``(B, C, *spatial)``; an array over their memory if NumPy is
            to add to it, else a tensor.
        in_sums: where in them.
        in_window: where the part is in the prediction.
        first: whether it is the whole of a chunk that has just been opened, which nobody has filled with zeros then:
            what is added to zeros takes their place.
    """

    sums: Any
    in_sums: tuple[int | slice, ...]
    in_window: Region
    first: bool


Rows = tuple[np.ndarray, Region, bool]
"""Rows of the sums of a target, where they lie in these rows of the window, and whether they are the first."""

Part = tuple[np.ndarray, np.ndarray, list[Rows]]
"""Rows of a few channels of a prediction, their weights, and what their product is added to."""


class Blending:
    """Adds the predictions of one head to its open chunks.

    Every voxel goes through MONAI's operations in MONAI's order, which is what makes the bits agree: from zero,
    prediction times weight, then addition, window after window in scan order.

    Args:
        head: which one.
        grid: where chunks are and which windows touch them.
        background: stands for the predictions of skipped windows.
        handing_on: knows of the chunks that others have finished, or have opened.
        open_chunks: the sums.
        workers: threads for CPU memory.
        differentiable: keep what autograd needs.
        rounded: products have the dtype of predictions, as in MONAI; else at least that of the sums.
    """

    def __init__(
        self,
        head: int,
        grid: ChunkGrid,
        background: Background,
        *,
        handing_on: HandingOn,
        open_chunks: OpenChunks,
        workers: ThreadPoolExecutor,
        differentiable: bool,
        rounded: bool,
    ) -> None:
        self.head = head
        self.grid = grid
        self.background = background
        self.handing_on = handing_on
        self.open_chunks = open_chunks
        self.workers = workers
        self.differentiable = differentiable
        self.rounded = rounded
        self._threads = 1 if addresses_limited() else torch.get_num_threads()  # a thread takes 64 MiB and more of them
        self._on_cpu = open_chunks.levels.device.type == "cpu" and not differentiable
        self._by_numpy = False  # of the window at hand
        self._result = open_chunks.in_results.get(head)
        self._products: list[np.ndarray] = []  # memory for each thread
        self._product = torch.empty(0)
        self._product_array = self._product.numpy()

    def add(self, window: Window, prediction: torch.Tensor, weights: torch.Tensor) -> None:
        """Add one window.

        Args:
            window: where.
            prediction: ``(C, *size)``.
            weights: ``(1, *size)``, of the dtype of the sums.
        """
        # the product has the dtype of the prediction, as in MONAI, but is not rounded to half precision unasked
        rounded = self.rounded and prediction.is_floating_point()
        if prediction.dtype not in EXACT and not rounded:
            prediction = prediction.to(torch.result_type(prediction, weights))
        self._by_numpy = self._on_cpu and prediction.dtype in EXACT and weights.dtype in EXACT
        self._add(self._targets(window, prediction), prediction, weights)

    def add_background(self, window: Window) -> None:
        """Add one window that was skipped, to what is open. What opens later begins with it."""
        self._by_numpy = self._on_cpu and self.background.values.dtype in EXACT
        targets = self._targets(window, None)
        if targets and self.background.adds:
            self._add(targets, *self.background.of_window(sizes(window.box)))

    def _add(self, targets: list[Target], prediction: torch.Tensor, weights: torch.Tensor) -> None:
        if not targets:
            return
        if self._by_numpy and prediction.nbytes <= SMALL_BYTES:
            self._add_small(targets, prediction, weights)
        elif self._by_numpy:
            self._add_on_cpu(targets, prediction.numpy(), weights.numpy())
        elif self.differentiable:
            product = (prediction * weights).to(prediction.dtype)
            for sums, in_sums, in_window, _ in targets:
                sums[in_sums].add_(product[in_window])
        else:
            self._add_by_pytorch(targets, prediction, weights)

    def _targets(self, window: Window, prediction: torch.Tensor | None) -> list[Target]:
        """What a window is added to; if it is the result, one piece of it, whatever chunks there are.

        Args:
            window: which one.
            prediction: of it, ``(C, *size)``; ``None``: it was skipped, so that no chunk opens with it.
        """
        if self._result is not None:
            ((_, in_window, in_result),) = self.grid.uncut.pieces(window.position)
            result = self._result.numpy() if self._by_numpy else self._result
            return [Target(result, (window.image, slice(None), *in_result), (slice(None), *in_window), False)]
        targets: list[Target] = []
        for position, in_window, in_chunk in self.grid.pieces(window.position):
            chunk = ChunkId(window.image, self.head, position)
            if chunk in self.handing_on.inherited:
                targets += self._kept(chunk, in_window, in_chunk, prediction)
                continue
            if chunk in self.handing_on.written or (prediction is None and not self.open_chunks.is_open(chunk)):
                continue
            sums: Any = self.open_chunks.array(chunk) if self._by_numpy else self.open_chunks.sums(chunk)
            first = self.open_chunks.is_new(chunk)
            skipped = list(self.grid.pieces_before(position, window.position)) if first and self.background.adds else []
            if skipped:
                begin = self.background.sums(position, skipped)
                sums[...] = begin.numpy() if self._by_numpy else begin
                first = False
            elif first and not (self._by_numpy and sizes(in_chunk) == sums.shape[1:]):
                sums[...] = 0
                first = False
            targets.append(Target(sums, (slice(None), *in_chunk), (slice(None), *in_window), first))
        return targets

    def _kept(self, chunk: ChunkId, in_window: Box, in_chunk: Box, prediction: torch.Tensor | None) -> Iterator[Target]:
        """Where the product is kept for a chunk that somebody else has opened."""
        if prediction is None and not self.background.adds:
            return
        values = self.background.values if prediction is None else prediction
        memory = torch.empty((len(values), *sizes(in_chunk)), dtype=values.dtype)
        product = self.handing_on.keep(chunk, in_chunk, memory)
        if not self._by_numpy:
            product.zero_()
        whole = (slice(None), *(slice(0, size) for size in product.shape[1:]))
        kept = product.numpy() if self._by_numpy else product
        yield Target(kept, whole, (slice(None), *in_window), self._by_numpy)

    def _add_small(self, targets: list[Target], prediction: torch.Tensor, weights: torch.Tensor) -> None:
        """All at once, in this thread: for so little PyTorch is faster than NumPy, which finds places faster."""
        if (self._product.shape, self._product.dtype) != (prediction.shape, prediction.dtype):
            self._product = torch.empty(prediction.shape, dtype=prediction.dtype)
            self._product_array = self._product.numpy()
        product = torch.mul(prediction, weights, out=self._product)
        for sums, in_sums, in_window, first in targets:
            part = torch.from_numpy(sums[in_sums])
            if first:
                part.zero_()
            whole = part.shape == product.shape
            part.add_(product if whole else torch.from_numpy(self._product_array[in_window]))

    def _add_on_cpu(self, targets: list[Target], prediction: np.ndarray, weights: np.ndarray) -> None:
        """A part of the prediction at a time, so that the product stays in cache, spread over threads.

        With NumPy: its operations run in the thread that calls them, so that threads wait for each other once a window
        and not once an operation, which costs dearly when the processor has other things to do. Each takes the next
        part when it is ready, because those of the network may be about for a while.
        """
        threads = min(self._threads, 1 + prediction.nbytes // THREAD_BYTES)
        nbytes = max(min(PART_BYTES, prediction.nbytes // PART) // threads, LEAST_PART_BYTES)
        # a thread may hold on to what it ran for a while, so what it runs holds no prediction but in here
        parts = deque(_parts(targets, prediction, weights, nbytes))
        threads = min(threads, len(parts))
        most = max(part.size for part, _, _ in parts)
        fitting = [memory for memory in self._products if memory.size >= most and memory.dtype == prediction.dtype]
        if len(fitting) < threads:
            fitting = self._products = []  # not beside the new ones
            memory = torch.empty((threads, most), dtype=getattr(torch, prediction.dtype.name))
            self._products = list(memory.numpy())
        busy = [self.workers.submit(_add_parts, parts, memory) for memory in self._products[1:threads]]
        _add_parts(parts, self._products[0])
        for future in busy:
            future.result()

    def _add_by_pytorch(self, targets: list[Target], prediction: torch.Tensor, weights: torch.Tensor) -> None:
        """A few channels at a time, to chunks on the device and in CPU memory."""
        voxels = weights.numel()
        most = PART_BYTES if self._on_cpu else PRODUCT_BYTES
        step = min(max(1, most // (voxels * prediction.element_size())), len(prediction))
        if self._product.numel() < step * voxels or self._product.dtype != prediction.dtype:
            self._product = torch.empty(step * voxels, dtype=prediction.dtype, device=prediction.device)
        parts = [(sums[in_sums], in_window) for sums, in_sums, in_window, _ in targets]
        for start in range(0, len(prediction), step):
            part = prediction[start : start + step]
            product = torch.mul(part, weights, out=self._product[: part.numel()].view(part.shape))
            for sums, in_window in parts:
                sums[start : start + step].add_(product[in_window].to(sums.device))


def _parts(targets: list[Target], prediction: np.ndarray, weights: np.ndarray, nbytes: int) -> Iterator[Part]:
    """What one thread multiplies at a time: all of a small prediction, else some rows along the first dimension.

    Args:
        targets: what products are added to.
        prediction, weights: their factors.
        nbytes: of the rows of a prediction at a time, if that is one at least.
    """
    if prediction.nbytes < THREAD_BYTES:
        yield prediction, weights, [(sums[in_sums], in_window, first) for sums, in_sums, in_window, first in targets]
        return
    most = max(1, nbytes // prediction[0, 0].nbytes)  # rows of a channel in all
    by_rows: dict[tuple[int, int], list[Rows]] = {}
    for target in targets:
        sums, (_, rows, *rest) = target.sums[target.in_sums], target.in_window
        for start in range(rows.start, rows.stop, most):
            stop = min(start + most, rows.stop)
            in_sums = sums[:, start - rows.start : stop - rows.start]
            by_rows.setdefault((start, stop), []).append((in_sums, (slice(None), slice(None), *rest), target.first))
    for (start, stop), targets_of_rows in by_rows.items():
        step = max(1, most // (stop - start))
        for channel in range(0, len(prediction), step):
            channels = slice(channel, channel + step)
            in_channels = [(sums[channels], in_rows, first) for sums, in_rows, first in targets_of_rows]
            yield prediction[channels, start:stop], weights[:, start:stop], in_channels


def _add_parts(parts: deque[Part], memory: np.ndarray) -> None:
    """Multiply and add until no part is left, with memory for a product."""
    with np.errstate(all="ignore"):
        while True:
            try:
                part, factors, targets = parts.popleft()
            except IndexError:
                return
            product = memory[: part.size].reshape(part.shape)
            np.multiply(part, factors, out=product, casting="same_kind")
            for sums, in_part, first in targets:
                np.add(0 if first else sums, product[in_part], out=sums, casting="same_kind")
