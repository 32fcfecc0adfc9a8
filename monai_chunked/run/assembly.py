"""What predictions become in a run, put together: where they are added up, and what makes results of the sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch

from monai_chunked.call.observer import Observer
from monai_chunked.chunks.background import Background, backgrounds_of
from monai_chunked.chunks.ending import Ending, stages_of
from monai_chunked.chunks.finisher import Division, Finisher, HeadFinisher, Uncovered
from monai_chunked.chunks.handing_on import Exchange, HandingOn, Products
from monai_chunked.chunks.levels import Levels
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.chunks.stages import Cast, Stage
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.machine.memory import FreedMemory
from monai_chunked.outputs.base import OutputWriter
from monai_chunked.plan.heads import Head, Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.schedule import CPU
from monai_chunked.plan.window_grid import Window
from monai_chunked.recovery.left import Cuts
from monai_chunked.run.begun import Run
from monai_chunked.transforms.chain import Chain
from monai_chunked.windows.predictions import OfWindow

__all__ = ["Assembly", "LayOut", "Part", "Results", "assemble", "finisher_of"]


Weights = Callable[[int, tuple[int, ...]], torch.Tensor]
"""From the number of a head and the size of a window to what predictions are divided by, ``(1, *size)``."""


GROWTH = 1 / 16
"""The process may grow by this part of what open chunks and results take before it gives back what is free."""


LayOut = Callable[[Sequence[Cuts] | None], Layout]
"""Makes the chunks, with cuts if others have chosen them."""


def _alone(heads: Heads, lay_out: LayOut) -> Layout:
    return lay_out(None)


def _nobody() -> None:
    """There is nobody who could fail."""


@dataclass(frozen=True)
class Part:
    """What one process does of a run.

    Attributes:
        numbers: the windows that come here, in scan order over all images.
        agree: called with the heads that the first prediction shows; makes the chunks of all parts.
        poll: called for each window; raises if others cannot go on.
        ranges: the windows of each part, where chunks are handed on from part to part; ``None``: nothing is handed on.
        number: which part this is.
        exchange: brings sums from one part to another.
        takes: whether it takes over what others have opened, when its windows are in.
        gives: whether it hands on what it has opened then.
        products: what it keeps for the chunks that others have opened.
    """

    numbers: range
    agree: Callable[[Heads, LayOut], Layout] = _alone
    poll: Callable[[], None] = _nobody
    ranges: Sequence[range] | None = None
    number: int = 0
    exchange: Exchange | None = None
    takes: bool = True
    gives: bool = True
    products: Products = field(default_factory=dict)

    def handing_on(self, run: Run, layout: Layout) -> HandingOn:
        """Which chunks are not opened here, and what becomes of those that several parts add to."""
        written = run.written(layout)
        if self.ranges is None or self.exchange is None:
            return HandingOn(written)
        parts = Parts(layout.grids, run.call.images, self.ranges, run.skipped)
        return HandingOn(
            written,
            inherited=parts.inherited(self.number),
            handed_on=parts.handed_on(self.number),
            exchange=self.exchange,
            device=run.call.device,
            takes=self.takes,
            gives=self.gives,
            products=self.products,
        )


class Results(NamedTuple):
    """What a run has made.

    Attributes:
        heads: of the network.
        values: for each of them, as the output returns it.
    """

    heads: Heads
    values: list[Any]


class Assembly(NamedTuple):
    """What takes every window in scan order, and gives results.

    Attributes:
        stitcher: adds predictions to open chunks.
        finisher: makes results of those that are finished.
        observer: is told what has happened.
        heads: of the network.
    """

    stitcher: Stitcher
    finisher: Finisher
    observer: Observer
    heads: Heads

    def add(self, window: Window, prediction: OfWindow | None) -> None:
        """Add the next window, and finish what it finishes; ``None``: it was not predicted."""
        for chunk in self.stitcher.add(window, prediction):
            self.finisher.put(chunk)
        self.finisher.poll()
        self.observer.window(window, prediction is not None, self.stitcher)

    def finish(self) -> Results:
        """The results of all heads, when all windows are in."""
        for chunk in self.stitcher.rest():
            self.finisher.put(chunk)
            self.finisher.poll()
        return Results(self.heads, self.finisher.finish())


def assemble(run: Run, layout: Layout, *, heads: Heads, weights: Weights, part: Part, observer: Observer) -> Assembly:
    """Everything behind the network. This records the run, and starts the results whose form is known.

    Args:
        run: the call that has begun.
        layout: the chunks of each head.
        heads: of the network.
        weights: that predictions are divided by.
        part: what this process does of the run.
        observer: is told what has happened.
    """
    call = run.call
    differentiable = torch.is_grad_enabled()
    scores = backgrounds_of(heads, call.settings.background)
    of_heads = [partial(weights, number) for number in range(len(heads))]

    def stages(number: int, ending: Ending, chain: Chain) -> list[Stage]:
        grid = layout.grids[number]
        division = Division(grid, of_heads[number], differentiable)
        return [
            division,
            Uncovered(grid, scores[number]),
            *_stages(run, ending, chain, number=number, head=heads[number]),
        ]

    def threaded(writer: OutputWriter) -> bool:
        return (call.device.type != "cpu" or not writer.in_memory) and not differentiable

    for device, peak in zip((call.device, torch.device("cpu")), layout.forecast.peak):
        call.output.reserve(device, peak)
    finisher = finisher_of(run, layout, heads, stages=stages, threaded=threaded)
    try:
        of_sums = [background.to(call.device, call.sum_dtype) for background in scores]
        handing_on = part.handing_on(run, layout)
        held = sum(layout.forecast.peak[: CPU + 1]) + finisher.known_bytes
        stitcher = Stitcher(
            layout=layout,
            images=call.images,
            open_chunks=_open_chunks(run, layout, finisher, part=part, handing_on=handing_on, observer=observer),
            handing_on=handing_on,
            backgrounds=[Background(*given) for given in zip(of_sums, layout.grids, of_heads)],
            freed=FreedMemory(int(GROWTH * held)),
            differentiable=differentiable,
            rounded=call.settings.rounding is not None,
        )
    except BaseException:
        finisher.abandon()
        raise
    return Assembly(stitcher, finisher, observer, heads)


def finisher_of(
    run: Run,
    layout: Layout,
    heads: Heads,
    *,
    stages: Callable[[int, Ending, Chain], list[Stage]],
    threaded: Callable[[OutputWriter], bool],
) -> Finisher:
    """What makes results of finished chunks. This records the run, and starts the results whose form is known.

    Args:
        run: the call that has begun.
        layout: the chunks of each head.
        heads: of the network.
        stages: what chunks go through, from the number of a head, the grid on which they end, and the postprocessing.
        threaded: whether chunks are written in a thread, called with the writer.
    """
    call = run.call
    chains = call.settings.chains_of(heads)
    run.record.begin(heads, [grid.cuts for grid in layout.grids])
    endings = [call.ending(grid) for grid in layout.grids]
    forms = [ending.form(head, chain, call.result_dtype) for ending, head, chain in zip(endings, heads, chains)]
    sizes = [prod(ending.size) * form.voxel_bytes for ending, form in zip(endings, forms) if form]
    known_bytes = call.images * sum(sizes)
    run.check_results(heads, known_bytes)
    finishers: list[HeadFinisher] = []
    try:
        for number, (head, ending, chain) in enumerate(zip(heads, endings, chains)):
            create = partial(run.start_result, number, head, ending)
            form = run.left.results.get(number, forms[number])
            finishers.append(
                HeadFinisher(head.name, stages(number, ending, chain), create=create, form=form, threaded=threaded)
            )
    except BaseException:
        Finisher(finishers).abandon()
        raise
    return Finisher(finishers, known_bytes)


def _stages(run: Run, ending: Ending, chain: Chain, *, number: int, head: Head) -> list[Stage]:
    """What the chunks of a head go through when they are divided."""
    call = run.call
    windows = call.settings.windows
    # spatial size of the scores of an image, where it is smaller than a window with what was added to it
    zooms = [size / float(roi) for size, roi in zip(head.size, windows.roi_size)]
    full = [tuple(int(n * zoom) for n, zoom in zip(windows.image_size, zooms))] * call.images
    cast = [Cast(call.result_dtype)] if call.settings.rounding is not None else []  # as behind MONAI's inferer
    return [
        *cast,
        *stages_of(ending, head, chain, call.result_dtype, number=number, written=run.left.written, full=full),
    ]


def _open_chunks(
    run: Run, layout: Layout, finisher: Finisher, *, part: Part, handing_on: HandingOn, observer: Observer
) -> OpenChunks:
    """Where predictions are added up: in results that are in memory as they are, else in chunks of their own."""
    call, differentiable = run.call, torch.is_grad_enabled()
    in_place = call.keeps_scores and not differentiable and not layout.forecast.moved
    results = {
        number: head.memory
        for number, head in enumerate(finisher.heads)
        if in_place and head.memory is not None
        if (head.memory.device, head.memory.dtype) == (call.device, call.sum_dtype)
    }
    scratch_dir, on_touch = call.settings.scratch_dir, call.settings.skip is not None
    levels = Levels(layout, call.device, call.sum_dtype, reuse=not differentiable, scratch_dir=scratch_dir)
    return OpenChunks(
        layout, part.numbers, handing_on, levels, in_results=results, on_touch=on_touch, opened=observer.opened
    )
