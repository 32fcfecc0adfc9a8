"""A run, told once: from what is asked for to the result. Who does the work is an argument."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from monai_chunked.call.call import Call, Fingerprint
from monai_chunked.call.identity import fingerprint_of_call
from monai_chunked.call.observer import Observer, observer_of
from monai_chunked.call.settings import Settings
from monai_chunked.machine.signals import interruptible
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.window_grid import Window
from monai_chunked.run.assembly import Assembly, Part, Results, assemble
from monai_chunked.run.begun import Run, begun
from monai_chunked.run.labels import mark_labels, with_metadata
from monai_chunked.run.whole import infer_whole
from monai_chunked.windows.batches import Batch, Batches, ReadAhead, SkippingBatches
from monai_chunked.windows.predictions import OfWindow, Predictions
from monai_chunked.windows.predictor import BoundNetwork, Predictor
from monai_chunked.windows.reader import Reading, image_of

__all__ = ["Executor", "Here", "blend", "hand_out", "infer", "predict", "predicting", "watched"]


class Executor(Protocol):
    """Who does a run: this process, several of ``torch.distributed``, or the workers of a Dask cluster."""

    def whole(self, call: Call, reason: str) -> Any:
        """The result where predictions can only be brought to the patients' grids whole, or why there is none."""
        ...

    def fingerprint(self, call: Call) -> Callable[[], Fingerprint] | None:
        """Says what the result depends on; ``None``: this process does not write it."""
        ...

    def finished(self, run: Run) -> Results | None:
        """The results, if an earlier run finished them."""
        ...

    def results(self, run: Run) -> Results:
        """The results, from the windows that are still needed."""
        ...

    def hand_out(self, run: Run, results: Results) -> Any:
        """What the caller gets."""
        ...


def infer(call: Call, executor: Executor) -> Any:
    """A run, from what is asked for to the result.

    Args:
        call: what is asked for.
        executor: who does it.

    Returns:
        the results, in the structure that the network returns.
    """
    if reason := call.why_whole():
        return executor.whole(call, reason)
    with begun(call, executor.fingerprint(call)) as run:
        results = executor.finished(run)
        if results is None:
            with interruptible(run.record.journal) if call.writes_files else nullcontext():
                results = executor.results(run)
            run.record.finish()
        return executor.hand_out(run, results)


class Here:
    """This process does all of it."""

    def whole(self, call: Call, reason: str) -> Any:
        def infer_scores(settings: Settings, network: BoundNetwork) -> Any:
            return infer(Call.of(call.source, network, settings, call.condition), self)

        return infer_whole(call, reason, infer_scores)

    def fingerprint(self, call: Call) -> Callable[[], Fingerprint] | None:
        return partial(fingerprint_of_call, call)

    def finished(self, run: Run) -> Results | None:
        return finished(run)

    def results(self, run: Run) -> Results:
        with torch.set_grad_enabled(torch.is_grad_enabled() and run.call.differentiable):
            return predict(run, Part(run.call.windows))

    def hand_out(self, run: Run, results: Results) -> Any:
        return hand_out(run.call, results)


def finished(run: Run) -> Results | None:
    """The results, if an earlier run finished them and nobody has removed them since."""
    heads, values = run.left.heads, run.finished()
    return None if values is None or heads is None else Results(heads, values)


def predict(run: Run, part: Part) -> Results:
    """Read windows, predict and blend them, and bring finished chunks to the results.

    Args:
        run: the call that has begun.
        part: what this process does of it.
    """
    layout = run.layout_left()
    with ExitStack() as stack:
        observer = stack.enter_context(watched(run, part.numbers))
        predictions, heads, predictor = stack.enter_context(predicting(run, part, layout))
        if layout is None:
            layout = part.agree(heads, lambda cuts: run.call.lay_out(heads, cuts, run.skipped))
        weights = predictor.first_weights
        assembly = assemble(run, layout, heads=heads, weights=weights, part=part, observer=observer)
        stack.callback(assembly.stitcher.close)
        with torch.set_grad_enabled(torch.is_grad_enabled() and assembly.finisher.in_memory):
            return blend(predictions, assembly, part)


def blend(predictions: Iterable[tuple[Window, OfWindow | None]], assembly: Assembly, part: Part) -> Results:
    """The results of all heads of the network; all are complete, or none is there.

    Args:
        predictions: every window in scan order, with what the network says of it; ``None``: it was not predicted.
        assembly: adds predictions to open chunks, and makes results of those that are finished.
        part: knows whether others can go on.
    """
    try:
        part.poll()
        for window, prediction in predictions:
            assembly.add(window, prediction)
            del prediction  # the network must not find it in memory when it predicts the next one
            part.poll()
        return assembly.finish()
    except BaseException as error:
        assembly.finisher.abandon()
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
            raise error.__cause__ from None  # of the network, which a generator does not let pass
        raise


def hand_out(call: Call, results: Results) -> Any:
    """Results in the structure that the network returns, with the metadata of the input, labels known as such."""
    source, inversion = call.source, call.inversion
    chains = results.heads.match("postprocessing", call.settings.postprocessing)
    if inversion is None:
        labelled = with_metadata(results.values, source.templates, source.template)
    else:
        undone = inversion.over(call.settings.image_size)
        labelled = with_metadata(results.values, undone.templates, inversion.batch(undone.templates))
    return results.heads.pack(mark_labels(labelled, chains))


@contextmanager
def watched(run: Run, numbers: range) -> Iterator[Observer]:
    """Who watches the run, and is told that it begins and ends.

    Args:
        run: the call that has begun.
        numbers: the windows that come, in scan order over all images.
    """
    observer = observer_of(run.call.settings.progress)
    observer.start(len(numbers))
    if run.skipped is not None:
        observer.skips(run.skipped.count(run.call.images))
    try:
        yield observer
    finally:
        observer.close()


@contextmanager
def predicting(run: Run, part: Part, layout: Layout | None) -> Iterator[tuple[Predictions, Heads, Predictor]]:
    """What the network says of each window, what heads it has, and the weights that came with the first batch.

    Args:
        run: the call that has begun.
        part: what this process does of it.
        layout: the chunks, where they are known; ``None``: the first prediction shows them.
    """
    call = run.call
    settings, roi_size = call.settings, call.settings.windows.roi_size
    batches = _batches(run, part, partial(_needs, layout, run.written(layout)))
    try:
        predictor = Predictor(
            settings.seen_by(call.network),
            call.importance,
            process_fn=settings.process_fn,
            device=call.device,
            with_coord=settings.with_coord,
        )
        predictions = Predictions(batches, predictor)
        heads = predictions.heads(roi_size)
        if heads is None:
            assert run.left.heads is not None  # or a window would be needed
            heads = run.left.heads
            predictor.expect(heads, roi_size)
        yield predictions, heads, predictor
    finally:
        batches.close()


def _batches(
    run: Run, part: Part, needs: Callable[[Sequence[Window]], bool]
) -> ReadAhead | Generator[Batch, None, None]:
    """Where batches of windows are read, in a thread where that takes a while."""
    call = run.call
    settings, source, windows = call.settings, call.source, call.settings.windows
    reading = Reading(settings.padding_mode, settings.cval, call.device, settings.sw_batch_size > 1)
    # what is looked at comes where it was read
    device = call.device if settings.skip is None else source.device
    looking = replace(reading, device=device, preprocessing=settings.preprocessing)
    images = [image_of(source, windows, looking, settings.scratch_dir)]
    if call.condition is not None:
        images.append(image_of(call.condition, windows, reading, settings.scratch_dir))
    numbers = part.numbers
    make: Callable[..., Batches] = Batches
    if settings.skip is not None:  # what fills the last batch is known when it is looked at
        ends = np.cumsum(windows.run_lengths(call.images))
        numbers = range(numbers.start, int(ends[np.searchsorted(ends, numbers.stop)]))
        make = partial(SkippingBatches, skip=settings.skip, device=call.device, coming=len(part.numbers))
    runs, size = windows.runs(call.images, numbers), settings.sw_batch_size
    batches = make(runs=runs, sw_batch_size=size, skipped=run.skipped, needs=needs, images=images)
    if source.is_far(call.device) and not torch.is_grad_enabled():
        return ReadAhead(iter(batches), call.device)
    return batches.__iter__()


def _needs(layout: Layout | None, written: Container[ChunkId], batch: Sequence[Window]) -> bool:
    """Whether any window of a batch touches a chunk that is still to be made."""
    return layout is None or not all(
        ChunkId(window.image, head, position) in written
        for window in batch
        for head, grid in enumerate(layout.grids)
        for position in grid.touched_by(window.position)
    )
