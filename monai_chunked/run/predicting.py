"""The middle of a call: windows are read, predicted and blended, and finished chunks go to the results."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch

from monai_chunked.inputs.source import Source
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.window_grid import Window
from monai_chunked.run.assembly import Stitching
from monai_chunked.run.call import Call
from monai_chunked.run.calling import watched
from monai_chunked.run.loop import run
from monai_chunked.windows.batches import Batch, Batches, ReadAhead, SkippingBatches
from monai_chunked.windows.predictions import Predictions
from monai_chunked.windows.predictor import BoundNetwork, Predictor
from monai_chunked.windows.reader import Reading, image_of

__all__ = ["predict"]


def predict(call: Call, network: BoundNetwork, condition: Source | None, recorded: Layout | None) -> list[Any]:
    """The results, from the windows that are still needed.

    Args:
        call: what is known before the network runs, and what this process does of the run.
        network: with its further arguments.
        condition: where windows of the condition are read from.
        recorded: the chunks, where they are known; ``None``: the first prediction shows them.
    """
    settings, recovery = call.settings, call.recovery
    windows = settings.windows
    with ExitStack() as stack:
        observer = stack.enter_context(watched(call))
        done = call.done(recorded)
        batches = _batches(call, condition, partial(_needs, recorded, done))
        stack.callback(batches.close)
        predictor = Predictor(
            settings.seen_by(network),
            call.importance,
            process_fn=settings.process_fn,
            device=call.device,
            with_coord=settings.with_coord,
        )
        predictions = Predictions(batches, predictor)
        heads = predictions.heads(windows.roi_size)
        if heads is None:
            heads = recovery.heads
            predictor.expect(heads, windows.roi_size)
        stitching = Stitching(call, heads, predictor.first_weights, recorded, done, observer)
        stack.callback(stitching.close)
        with torch.set_grad_enabled(stitching.differentiable):
            results = run(predictions, stitching)
        recovery.finish()
    return results


def _batches(
    call: Call, condition: Source | None, needs: Callable[[Sequence[Window]], bool]
) -> ReadAhead | Generator[Batch, None, None]:
    """Where batches of windows are read, in a thread where that takes a while."""
    settings, source, windows = call.settings, call.source, call.settings.windows
    # what is looked at comes where it was read
    device = call.device if settings.skip is None else source.device
    how = (settings.padding_mode, settings.cval, device, settings.sw_batch_size > 1)
    images = [image_of(source, windows, Reading(*how, settings.preprocessing), settings.scratch_dir)]
    if condition is not None:
        how = (settings.padding_mode, settings.cval, call.device, settings.sw_batch_size > 1)
        images.append(image_of(condition, windows, Reading(*how), settings.scratch_dir))
    numbers = call.numbers
    if settings.skip is not None:  # what fills the last batch is known when it is looked at
        ends = np.cumsum(windows.run_lengths(source.shape[0]))
        numbers = range(numbers.start, int(ends[np.searchsorted(ends, numbers.stop)]))
    make: Callable[..., Batches] = Batches
    if settings.skip is not None:
        make = partial(SkippingBatches, skip=settings.skip, device=call.device, coming=len(call.numbers))
    runs, size = windows.runs(source.shape[0], numbers), settings.sw_batch_size
    batches = make(runs=runs, sw_batch_size=size, skipped=call.skipped, needs=needs, images=images)
    if source.is_far(call.device) and not torch.is_grad_enabled():
        return ReadAhead(iter(batches), call.device)
    return batches.__iter__()


def _needs(recorded: Layout | None, done: Container[ChunkId], batch: Sequence[Window]) -> bool:
    """Whether any window of a batch touches a chunk that is still to be made."""
    return recorded is None or not all(
        ChunkId(window.image, head, position) in done
        for window in batch
        for head, grid in enumerate(recorded.grids)
        for position in grid.touched_by(window.position)
    )
