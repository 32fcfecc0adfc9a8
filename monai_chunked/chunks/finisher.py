"""From complete sums to the result: divide by the sum of weights, go through the stages, write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from monai_chunked.chunks.stages import Finished, Stage
from monai_chunked.chunks.write_behind import WriteBehind
from monai_chunked.outputs.base import Form, OutputWriter
from monai_chunked.plan.boxes import box_text
from monai_chunked.plan.chunk_grid import ChunkGrid

__all__ = ["Division", "Finisher", "HeadFinisher", "Uncovered"]

SMALL_SUM, SMALL_SUMS = 2**14, 2**8
"""Sums of weights of at most so many bytes are kept, and how many: for small chunks the calls take the time."""


AT_ONCE, AT_ONCE_ON_ACCELERATOR, PARTS = 2**20, 2**26, 16
"""Bytes of a sum of weights that are there at a time, unless that cuts a chunk into more than so many parts."""


class Division:
    """The first stage: sums are divided by the sum of weights, which is added up in the order of the windows.

    It depends on geometry alone, so it is computed for one chunk at a time, and only small ones are kept.

    Args:
        grid: where chunks are and which windows touch them.
        weights: from the size of a window to its importance map at the resolution of the head, ``(1, *size)``, of the
            dtype of the sums. MONAI divides by the sum of the weights that came with the first batch, also if a
            ``process_fn`` changes them afterwards.
        differentiable: keep what autograd needs.
    """

    def __init__(
        self, grid: ChunkGrid, weights: Callable[[tuple[int, ...]], torch.Tensor], differentiable: bool = False
    ) -> None:
        self.grid = grid
        self.weights = weights
        self.differentiable = differentiable
        self._weights: dict[tuple[torch.device | int, ...], torch.Tensor] = {}
        self._small_sums: dict[tuple[torch.device | int, ...], torch.Tensor] = {}

    def put(self, finished: Finished) -> Iterator[Finished]:
        values, position = finished.values, finished.chunk.position
        shared = values.stride(0) == 0  # channels share their memory: all that was skipped
        if shared or self.differentiable:
            weights = self._sum_of_weights(position, values.device)
            quotient = values[:1] / weights if shared else values / weights
            yield replace(finished, values=quotient.expand_as(values))
            return
        for rows in _rows(values):
            values[:, rows].div_(self._sum_of_weights(position, values.device, rows))
        yield finished

    def finish(self) -> Iterable[Finished]:
        return ()

    def _sum_of_weights(
        self, position: tuple[int, ...], device: torch.device, rows: slice | None = None
    ) -> torch.Tensor:
        """The sum for a chunk, ``(1, *chunk)``, or for these rows of it along the first dimension."""
        size = self.grid.chunk_size(position)
        rows = rows or slice(0, size[0])
        surroundings = (device, rows.start, rows.stop, *self.grid.surroundings(position))
        total = self._small_sums.get(surroundings)
        if total is not None:
            return total
        windows = zip(self.grid.windows_of(position), self.grid.window_sizes_of(position))
        for (_, in_window, in_chunk), window in windows:
            weights = self._at(window, device)
            if total is None:
                total = torch.zeros((1, rows.stop - rows.start, *size[1:]), dtype=weights.dtype, device=device)
            start, stop = max(in_chunk[0].start, rows.start), min(in_chunk[0].stop, rows.stop)
            if start < stop:
                shift = in_window[0].start - in_chunk[0].start
                part = weights[(slice(None), slice(start + shift, stop + shift), *in_window[1:])]
                total[(slice(None), slice(start - rows.start, stop - rows.start), *in_chunk[1:])].add_(part)
        assert total is not None
        if total.nbytes <= SMALL_SUM and len(self._small_sums) < SMALL_SUMS:
            self._small_sums[surroundings] = total
        return total

    def _at(self, size: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """The importance map of windows of this size, on a device."""
        weights = self._weights.get((device, *size))
        if weights is None:
            weights = self._weights[(device, *size)] = self.weights(size).to(device)
        return weights


def _rows(values: torch.Tensor) -> Iterator[slice]:
    """Rows of a chunk ``(C, *chunk)`` along its first spatial dimension, as many as are divided at a time."""
    rows, *row_shape = values.shape[1:]
    most = AT_ONCE if values.device.type == "cpu" else AT_ONCE_ON_ACCELERATOR
    step = max(1, most // (prod(row_shape) * values.dtype.itemsize), -(-rows // PARTS))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


class Uncovered:
    """The stage behind the division: voxels that no window reaches get the scores of the background.

    Args:
        grid: where chunks are, and how far windows reach.
        background: a score for each channel, or one for all.
    """

    def __init__(self, grid: ChunkGrid, background: torch.Tensor) -> None:
        self.grid = grid
        self.background = background

    def put(self, finished: Finished) -> Iterator[Finished]:
        for d, (side, covered) in enumerate(zip(finished.box, self.grid.covered), start=1):
            if side.stop > covered:
                if finished.values.stride(0) == 0:  # channels share their memory
                    finished = finished.become(finished.values.contiguous())
                scores = self.background.to(finished.values).reshape(-1, *[1] * len(finished.box))
                finished.values[(slice(None),) * d + (slice(max(covered - side.start, 0), None),)] = scores
        yield finished

    def finish(self) -> Iterable[Finished]:
        return ()


class HeadFinisher:
    """Brings the chunks of one head to its result.

    Args:
        name: of the head in messages.
        stages: what each chunk goes through.
        create: starts the result, called with its form as soon as it is known.
        form: of the result, where it is known before a chunk has gone through the stages.
        threaded: whether chunks are written in a thread, called with the writer.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[Stage],
        *,
        create: Callable[[Form], OutputWriter],
        form: Form | None,
        threaded: Callable[[OutputWriter], bool],
    ) -> None:
        self.name = name
        self.stages = stages
        self._create = create
        self._threaded = threaded
        self._writer: WriteBehind | None = None
        self._form: Form | None = None
        # what a callable returns is known when the first chunk is finished; all else is created, or refused, now
        if form is not None:
            self._start(form)

    @property
    def in_memory(self) -> bool:
        """Whether finished chunks stay in memory, so that the result can be differentiated."""
        return self._writer is not None and self._writer.writer.in_memory

    @property
    def memory(self) -> torch.Tensor | None:
        """The result, if it is in memory."""
        return None if self._writer is None else self._writer.writer.memory

    def put(self, finished: Finished) -> None:
        """Take a chunk through the stages, and write what comes out."""
        self._pass(finished, 0)

    def poll(self) -> None:
        """Raise what went wrong so far."""
        if self._writer is not None:
            self._writer.poll()

    def finish(self) -> Any:
        """The result, ``(B, C', *spatial)``, when all chunks are in; ``None``: all of it is made by others."""
        for number, stage in enumerate(self.stages):
            for finished in stage.finish():
                self._pass(finished, number + 1)
        return None if self._writer is None else self._writer.finish()

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._writer is not None:
            self._writer.abandon()

    def _pass(self, finished: Finished, number: int) -> None:
        if number == len(self.stages):
            self._write(finished)
            return
        for following in self.stages[number].put(finished):
            self._pass(following, number + 1)

    def _start(self, form: Form) -> WriteBehind:
        writer = self._create(form)
        self._writer = WriteBehind(writer, self._threaded(writer))
        self._form = form
        return self._writer

    def _write(self, finished: Finished) -> None:
        values, form = finished.values, Form.of(finished.values)
        writer = self._writer or self._start(form)
        if form != self._form:
            raise ValueError(
                f"postprocessing must return the same channels and dtype for every chunk: {self._form} before, "
                f"{form} for the {self.name} at {box_text(finished.box)}"
            )
        if finished.borrowed and writer.threaded:
            finished = finished.become(values.clone())
        if not finished.memory.in_result:
            writer.put(finished.chunk.image, finished.box, finished.values, finished.memory.recycle)


class Finisher:
    """Brings the finished chunks of all heads to their results.

    Args:
        heads: the finisher of each head of the network.
        known_bytes: bytes of the results whose form is known.
    """

    def __init__(self, heads: Sequence[HeadFinisher], known_bytes: int = 0) -> None:
        self.heads = heads
        self.known_bytes = known_bytes

    @property
    def in_memory(self) -> bool:
        """Whether a result stays in memory, so that it can be differentiated."""
        return any(head.in_memory for head in self.heads)

    def put(self, finished: Finished) -> None:
        """Take over a chunk that the stitcher has finished."""
        self.heads[finished.chunk.head].put(finished)

    def poll(self) -> None:
        """Raise what went wrong so far, and use the time if no chunk waits to be written."""
        for head in self.heads:
            head.poll()

    def finish(self) -> list[Any]:
        """All results, when all chunks are in."""
        return [head.finish() for head in self.heads]

    def abandon(self) -> None:
        """The run failed: leave nothing behind."""
        for head in self.heads:
            head.abandon()
