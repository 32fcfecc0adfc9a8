"""What predictions become in a call: they are added to open chunks, and those that are finished go to the result."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from typing import Any

import torch

from monai_chunked.chunks.background import Background, backgrounds_of
from monai_chunked.chunks.blending import Adding
from monai_chunked.chunks.finisher import Finisher
from monai_chunked.chunks.late_chunks import LateChunks
from monai_chunked.chunks.levels import Levels
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.chunks.postprocessing import functions_of
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.machine.memory import FreedMemory
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.schedule import CPU
from monai_chunked.plan.window_grid import Window
from monai_chunked.run.call import Call
from monai_chunked.run.laying_out import lay_out_call
from monai_chunked.run.observer import Observer
from monai_chunked.windows.predictions import OfWindow

__all__ = ["Stitching"]


GROWTH = 1 / 16
"""Of what open chunks and results take, the part by which the process may grow before it gives back what is free."""


class Stitching:
    """Takes every window in scan order, and gives results.

    Args:
        call: what is known before the network runs.
        heads: of the network, as the first prediction shows them.
        weights: from the number of a head and the size of a window to the weights, ``(1, *size)``, that predictions are
            divided by.
        recorded: the chunks of the run that is resumed, or ``None``.
        done: the chunks that need not come once more.
        observer: is told what has happened.

    Attributes:
        differentiable: whether results can be differentiated.
    """

    def __init__(
        self,
        call: Call,
        heads: Heads,
        weights: Callable[[int, tuple[int, ...]], torch.Tensor],
        recorded: Layout | None,
        done: frozenset[ChunkId],
        observer: Observer,
    ) -> None:
        self.observer = observer
        self._share = call.share
        scores = backgrounds_of(heads, call.settings.background)
        functions = functions_of(heads, call.settings.postprocessing)
        how = (call.settings, heads, call.device, call.sum_dtype)
        layout = recorded or call.share.agree(heads, lambda cuts: lay_out_call(*how, cuts, call.skipped))
        call.recovery.begin(heads, [grid.cuts for grid in layout.grids])
        differentiable = torch.is_grad_enabled()
        of_heads = [partial(weights, number) for number in range(len(heads))]
        self._finisher = call.finisher(heads, layout, of_heads, scores, functions, differentiable)
        try:
            of_sums = [each.to(call.device, call.sum_dtype) for each in scores]
            backgrounds = [Background(*each) for each in zip(of_sums, layout.grids, of_heads)]
            neighbours = call.share.neighbours(call, layout, done)
            open_chunks = _open_chunks(call, layout, self._finisher, neighbours.elsewhere, differentiable, observer)
            held = sum(layout.forecast.peak[: CPU + 1]) + self._finisher.known_bytes
            freed = FreedMemory(int(GROWTH * held))
            how_to_add = Adding(differentiable, call.settings.rounding is not None)
            of_all = (layout, len(call.metadata), neighbours, open_chunks, backgrounds, freed, how_to_add)
            self._stitcher = Stitcher(*of_all)
        except BaseException:
            self._finisher.abandon()
            raise
        self.differentiable = differentiable and self._finisher.in_memory

    def add(self, window: Window, prediction: OfWindow | None) -> None:
        """Add the next window, ``None``: it was not predicted; finish what it finishes."""
        for finished in self._stitcher.add(window, prediction):
            self._finisher.put(finished)
        self._finisher.poll()
        self._share.poll()
        self.observer.window(window, prediction is not None, self._stitcher)

    def finish(self) -> list[Any]:
        """The results of all heads, when all windows are in."""
        for finished in self._stitcher.rest():
            self._finisher.put(finished)
            self._finisher.poll()
        return self._share.finish(self._finisher.finish())

    def abandon(self) -> None:
        """The run failed: leave nothing behind."""
        self._finisher.abandon()
        self._share.abandon()

    def close(self) -> None:
        """The run is over, well or not."""
        self._stitcher.close()


def _open_chunks(
    call: Call,
    layout: Layout,
    finisher: Finisher,
    done: Container[ChunkId],
    differentiable: bool,
    observer: Observer,
) -> OpenChunks:
    """Where predictions are added up: in results that are in memory as they are, else in chunks of their own."""
    as_they_are = call.settings.postprocessing is None and call.inversion is None
    in_place = as_they_are and not differentiable and not layout.forecast.moved
    results = {
        k: head.memory
        for k, head in enumerate(finisher.heads)
        if in_place and head.memory is not None
        if (head.memory.device, head.memory.dtype) == (call.device, call.sum_dtype)
    }
    levels = Levels(layout, call.device, call.sum_dtype, not differentiable, call.settings.scratch_dir)
    kind = OpenChunks if call.settings.skip is None else LateChunks
    return kind(layout, call.numbers, done, levels, results, observer.opened)
