"""
One part of a run, done so that nothing of the other parts is needed.

It is what going on with a run that stopped is: what others make counts as written, and the batches that touch anything
else are predicted. Windows that touch the chunks of two parts are predicted for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from monai_chunked.call.call import Call
from monai_chunked.outputs.base import Output, OutputWriter, Result
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import work_of
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.recovery.left import Left
from monai_chunked.run.assembly import Part, Results
from monai_chunked.run.begun import Run
from monai_chunked.run.run import predict, predicting

__all__ = ["HandedOver", "SharedRun", "first_heads", "makers", "numbers_of", "predict_part"]


@dataclass(frozen=True)
class SharedRun:
    """What all workers of a run know of it. It can be pickled.

    Attributes:
        left: heads and chunks of the network, and the boxes of the results that are there already.
        ranges: the windows of each part, by their number in scan order over all images.
        skipped: the windows that are known to be skipped.
    """

    left: Left
    ranges: Sequence[range]
    skipped: Skipped | None

    def run_of(self, call: Call) -> Run:
        """What a worker has of it, in a call of which the output takes the boxes that it makes."""
        return Run.of_worker(call, self.left, self.skipped)


class HandedOver(Output):
    """Finished chunks go to whoever brings them to the result.

    Args:
        put: called with the result, the number of the image, the box, and ``(C, *box)``, whose memory is used again
            afterwards.
    """

    in_memory = True  # nothing of it is on disk here

    def __init__(self, put: Callable[[Result, int, Box, torch.Tensor], None]) -> None:
        self.put = put

    def create(self, result: Result) -> OutputWriter:
        return _HandingOver(result, self.put)


class _HandingOver(OutputWriter):
    def __init__(self, result: Result, put: Callable[[Result, int, Box, torch.Tensor], None]) -> None:
        self.result = result
        self.put = put

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.put(self.result, image, box, chunk)

    def finish(self) -> None:
        """Nobody gets it here."""


def first_heads(run: Run) -> tuple[Heads, Layout]:
    """What the first batch shows of the network, and how chunks are cut."""
    with predicting(run, Part(run.call.windows), None) as (_, heads, _):
        return heads, run.call.lay_out(heads, skipped=run.skipped)


def predict_part(call: Call, shared: SharedRun, part: int, poll: Callable[[], None] = lambda: None) -> Results:
    """Do one part in a call of which the output takes the boxes that the part makes.

    Args:
        call: what is asked for.
        shared: what all workers know.
        part: which one.
        poll: called for each window; raises if others cannot go on.

    Returns:
        what the output made of them.
    """
    left = shared.left
    assert left.heads is not None
    layout = call.lay_out(left.heads, left.cuts, shared.skipped)
    parts = Parts(layout.grids, call.images, shared.ranges, shared.skipped)
    others = {box: 0 for box, maker in makers(call, layout, parts).items() if maker != part}
    run = Run.of_worker(call, replace(left, written={**others, **left.written}), shared.skipped)
    numbers = numbers_of(run, parts.ranges[part], _first(run, layout, parts, part))
    return predict(run, Part(numbers, poll=poll))


def makers(call: Call, layout: Layout, parts: Parts) -> dict[ChunkId, int]:
    """From each box of the results to the part that makes it, which has the last of the chunks that it is made of."""
    part_of: dict[ChunkId, int] = {}
    for head, grid in enumerate(layout.grids):
        ending = call.ending(grid)
        for image in range(parts.images):
            made = {at: parts.owner(ChunkId(image, head, at)) for at in np.ndindex(*grid.shape)}
            for resampled in ending.chunks[image] if ending.moves else ():
                made = {resampled.place(at): part for at, part in made.items() if resampled.makes(at)}
            part_of.update({ChunkId(image, head, at): part for at, part in made.items()})
    return part_of


def numbers_of(run: Run, numbers: range, first: int) -> range:
    """The windows that a part must see, from the begin of a batch to the end of one.

    With ``skip`` they end with the last one of the part, whose batch is filled up from those behind it.

    Args:
        run: the call that has begun.
        numbers: the windows of the part.
        first: the first window that it must see.
    """
    settings, images = run.call.settings, run.call.images
    if settings.skip is None:
        ends = work_of(settings.windows, images, settings.sw_batch_size, skipped=run.skipped).ends
        stop = int(ends[np.searchsorted(ends, numbers.stop)])
    else:  # nobody knows where batches end before the windows were looked at
        ends, stop = np.cumsum(settings.windows.run_lengths(images)), numbers.stop
    ends = np.append(0, ends)
    start = int(ends[np.searchsorted(ends, min(first, numbers.start), side="right") - 1])
    return range(start, stop)


def _first(run: Run, layout: Layout, parts: Parts, part: int) -> int:
    """The first window that touches a chunk that a part needs."""
    written = run.written(layout)
    if run.call.inversion is None:
        return parts.first_window(part, written)
    images, heads = range(parts.images), list(enumerate(layout.grids))  # chunks of others are needed for their faces
    chunks = (ChunkId(image, head, at) for image in images for head, grid in heads for at in np.ndindex(*grid.shape))
    return min((parts.first_window_of(chunk) for chunk in chunks if chunk not in written), default=0)
