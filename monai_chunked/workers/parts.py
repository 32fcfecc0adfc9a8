"""
One part of a run, done so that nothing of the other parts is needed.

It is what going on with a run that stopped is: what others make counts as written, and the batches that touch anything
else are predicted. Windows that touch the chunks of two parts are predicted for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from monai_chunked.inputs.source import Source, source_of
from monai_chunked.outputs.base import Form, Result
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import work_of
from monai_chunked.recovery.left import Cuts
from monai_chunked.run.call import Call
from monai_chunked.run.calling import calling
from monai_chunked.run.inverting import inversion_of
from monai_chunked.run.laying_out import lay_out_call
from monai_chunked.run.predicting import predict
from monai_chunked.run.settings import Settings
from monai_chunked.run.sharing import Given, HandedOver, OwnWindows
from monai_chunked.windows.predictor import BoundNetwork

__all__ = ["Agreed", "infer_part", "makers", "numbers_of", "predict_part"]


@dataclass(frozen=True)
class Agreed:
    """What all workers of a run know of it. It can be pickled.

    Attributes:
        heads: of the network.
        cuts: for each head and spatial dimension, where chunks begin, and the size.
        ranges: the windows of each part, by their number in scan order over all images.
        results: the forms of the results that are known, by the number of their head.
        written: the boxes of the results that are there already, with anything.
    """

    heads: Heads
    cuts: Sequence[Cuts]
    ranges: Sequence[range]
    results: Mapping[int, Form] = field(default_factory=dict)
    written: Mapping[ChunkId, int] = field(default_factory=dict)


def infer_part(
    inputs: Any,
    network: BoundNetwork,
    settings: Settings,
    condition: Any,
    agreed: Agreed,
    part: int,
    put: Callable[[Result, int, Box, torch.Tensor], None],
) -> None:
    """Do one part of a run.

    Args:
        inputs, network, settings, condition: as for a whole run; the output is not used.
        agreed: what all workers know.
        part: which one.
        put: gets each box of the results that the part makes: the result, of which the head has the name; the number of
            the image; the box; and its voxels, ``(C, *box)``, whose memory is used again afterwards.
    """
    source = source_of(inputs)
    handed_over = replace(settings, output=HandedOver(put), output_dir=None, overwrite=False)
    with calling(handed_over, source, inversion_of(settings, source), None) as call, torch.no_grad():
        predict_part(call, network, None if condition is None else source_of(condition), agreed, part)


def predict_part(
    call: Call,
    network: BoundNetwork,
    condition: Source | None,
    agreed: Agreed,
    part: int,
    poll: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Do one part in a call of which the output takes the boxes that the part makes.

    Args:
        call: what is known before the network runs.
        network: with its further arguments.
        condition: where windows of the condition are read from.
        agreed: what all workers know.
        part: which one.
        poll: called for each window; raises if others cannot go on.

    Returns:
        what the output made of them.
    """
    heads = (call.settings, agreed.heads, call.device, call.sum_dtype)
    layout = lay_out_call(*heads, agreed.cuts, call.skipped)
    parts = Parts(layout.grids, len(call.metadata), agreed.ranges, call.skipped)
    others = {box: 0 for box, maker in makers(call, layout, parts).items() if maker != part}
    given = Given(agreed.heads, agreed.cuts, agreed.results, {**others, **agreed.written})
    call = replace(call, recovery=given)
    numbers = numbers_of(call, parts.ranges[part], _first(call, layout, parts, part))
    return predict(replace(call, share=OwnWindows(numbers, poll)), network, condition, layout)


def makers(call: Call, layout: Layout, parts: Parts) -> dict[ChunkId, int]:
    """From each box of the results to the part that makes it, whose is the last of the chunks it is made of."""
    found: dict[ChunkId, int] = {}
    for head, grid in enumerate(layout.grids):
        ending = call.ending(grid)
        for image in range(parts.images):
            made = {at: parts.owner(ChunkId(image, head, at)) for at in np.ndindex(*grid.shape)}
            for resampled in ending.chunks[image] if ending.moves else ():
                made = {resampled.place(at): part for at, part in made.items() if resampled.makes(at)}
            found.update({ChunkId(image, head, at): part for at, part in made.items()})
    return found


def numbers_of(call: Call, numbers: range, first: int) -> range:
    """The windows that a part must see, from the begin of a batch to the end of one.

    With ``skip`` to the last one of the part, whose batch is filled up from those behind it.

    Args:
        call: what is known before the network runs.
        numbers: the windows of the part.
        first: the first window that it must see.
    """
    settings, images = call.settings, len(call.metadata)
    if settings.skip is None:
        ends = work_of(settings.windows, images, settings.sw_batch_size, call.skipped).ends
        stop = int(ends[np.searchsorted(ends, numbers.stop)])
    else:  # nobody knows where batches end before the windows were looked at
        ends, stop = np.cumsum(settings.windows.run_lengths(images)), numbers.stop
    ends = np.append(0, ends)
    start = int(ends[np.searchsorted(ends, min(first, numbers.start), side="right") - 1])
    return range(start, stop)


def _first(call: Call, layout: Layout, parts: Parts, part: int) -> int:
    """The first window that touches a chunk that a part needs."""
    done = call.done(layout)
    if call.inversion is None:
        return parts.first_window(part, done)
    heads = list(enumerate(layout.grids))  # chunks of others are needed for their faces
    every = (ChunkId(i, k, at) for i in range(parts.images) for k, grid in heads for at in np.ndindex(*grid.shape))
    return min((parts.first_window_of(chunk) for chunk in every if chunk not in done), default=0)
