"""Putting a run together: what is read, what an earlier run left, the plan, and who does what."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from math import prod
from typing import Any

import monai
import torch

from monai_chunked.chunks.background import Background, match_background
from monai_chunked.chunks.finishing import Finisher
from monai_chunked.chunks.late_chunks import LateChunks
from monai_chunked.chunks.levels import Levels
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.chunks.postprocessing import match_postprocessing
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.inference.call import Call
from monai_chunked.inference.fingerprint.fingerprint import fingerprint_of
from monai_chunked.inference.interruption import interruptible
from monai_chunked.inference.inverse.inversion import Inversion
from monai_chunked.inference.inverting import described_chain, inversion_of, why_whole
from monai_chunked.inference.labels import mark_labels
from monai_chunked.inference.laying_out import lay_out_call
from monai_chunked.inference.loop import run
from monai_chunked.inference.progress import Observer, observer_of
from monai_chunked.inference.results import result_dtype_of, with_metadata
from monai_chunked.inference.settings import Settings
from monai_chunked.inference.whole import infer_whole
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.machine.accelerator import with_index
from monai_chunked.machine.memory import FreedMemory
from monai_chunked.outputs.base import Expected, ResumableOutput
from monai_chunked.outputs.recovery.recovering import recovering
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.schedule import CPU
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.batches import Batch, Batches, LookedAt
from monai_chunked.windows.importance import Importance
from monai_chunked.windows.predictions import Predictions
from monai_chunked.windows.predictor import BoundNetwork, Predictor, pack
from monai_chunked.windows.read_ahead import ReadAhead
from monai_chunked.windows.reader import Reading, image_of

__all__ = ["infer"]

GROWTH = 1 / 16
"""Of what open chunks and results take, the part by which the process may grow before it gives back what is free."""


def infer(inputs: Any, network: BoundNetwork, settings: Settings, condition: Any) -> Any:
    """Run the network over all windows.

    Args:
        inputs: ``(B, C, *spatial)``.
        network: with its further arguments.
        settings: what is asked for.
        condition: of the same size as the input, or ``None``.

    Returns:
        the results, in the structure that the network returns.
    """
    source = source_of(inputs)
    condition_source = None if condition is None else source_of(condition)
    device = with_index(settings.sw_device or source.device)
    sum_dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
    result_dtype = result_dtype_of(source)
    output = settings.target(source.device)
    inversion = inversion_of(settings, source)
    if inversion is not None and (reason := why_whole(inversion, settings, sum_dtype)):
        return infer_whole(infer, inputs, network, settings, condition, inversion, reason)
    known_dtype = result_dtype if settings.postprocessing is None and inversion is None else None
    output.check(Expected(0, known_dtype))
    importance = Importance(settings.roi_weight_map, settings.mode, settings.sigma_scale, device, sum_dtype)
    weights = importance(settings.windows.roi_size)

    def fingerprint() -> tuple[dict[str, str], list[str]]:
        described = _described(settings, network, weights, device, result_dtype, inversion)
        if isinstance(output, ResumableOutput):
            described["output"] = (type(output), output.settings)
        ids = (settings.network_id, settings.run_id)
        return fingerprint_of(source, condition_source, network.network, *ids, described)

    with recovering(output, source.metadata, fingerprint, settings.overwrite) as (recovery, metadata):
        if not recovery.resumed:
            size = source.shape[0] * prod(settings.image_size) * (1 if known_dtype is None else known_dtype.itemsize)
            output.check(Expected(size, known_dtype, metadata, bool(settings.overwrite)))
        skipped = settings.skipped()
        known = (device, sum_dtype, result_dtype, importance)
        call = Call(settings, source, *known, output, recovery, metadata, inversion, skipped)
        recorded = None
        if recovery.resumed:
            recorded = lay_out_call(settings, recovery.heads, device, sum_dtype, recovery.cuts, skipped)
        results = _load(call, recorded)
        writes_files = settings.output_dir is not None or not output.in_memory
        if results is None:
            recorded = recorded if recovery.resumed else None
            kept = settings.postprocessing is None and inversion is None
            differentiable = kept and output.in_memory and not settings.limited
            with (
                torch.set_grad_enabled(torch.is_grad_enabled() and differentiable),
                interruptible(recovery.journal) if writes_files else nullcontext(),
            ):
                results = _predict(call, network, condition_source, recorded)
        functions = match_postprocessing(settings.postprocessing, recovery.keys, len(results))
        if inversion is None:
            labelled = with_metadata(results, source.templates, source.template)
        else:
            undone = inversion.over(settings.image_size)
            labelled = with_metadata(results, undone.templates, inversion.batch(undone.templates))
        return pack(recovery.keys, mark_labels(labelled, functions))


def _described(
    settings: Settings,
    network: BoundNetwork,
    importance: torch.Tensor,
    device: torch.device,
    result_dtype: torch.dtype,
    inversion: Inversion | None,
) -> dict[str, Any]:
    """What the result depends on, beside the input, the network and the output."""
    autocast = torch.is_autocast_enabled(device.type)
    return {
        "roi_size": settings.roi_size,
        "sw_batch_size": settings.sw_batch_size,
        "overlap": settings.overlap if len(set(settings.overlap)) > 1 else settings.overlap[0],
        "importance map": importance,
        "padding": (settings.padding_mode, settings.cval),
        "buffer": (settings.buffer_steps, settings.buffer_dim) if settings.buffer_steps else None,
        "with_coord": settings.with_coord,
        "border": (settings.border, settings.min_size),
        "voxels of the nearest window": settings.windows.nearest_only,
        "mirroring": settings.mirror_axes and (settings.mirror_axes, settings.mirror_batch),
        "fill_batches": settings.fill_batches,
        "preprocessing": settings.preprocessing,
        "process_fn": settings.process_fn,
        "postprocessing": described_chain(settings.postprocessing),
        "inverse": inversion and inversion.over(settings.image_size).resamplings,
        "skip": settings.skip,
        "mask": settings.mask,
        "background": settings.uses_background and settings.background,
        "network arguments": (network.args, network.kwargs),
        "network wrapper": network.wrapper,
        "sw_device": device.type,
        "autocast": autocast and torch.get_autocast_dtype(device.type),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "dtype": result_dtype,
        "torch": torch.__version__,
        "monai": monai.__version__,
    }


def _load(call: Call, layout: Layout | None) -> list[Any] | None:
    """The results, if an earlier run finished them and nobody has removed them since."""
    recovery = call.recovery
    if layout is None or not recovery.complete:
        return None
    parts = zip(recovery.heads, layout.grids)
    results = [call.result(head, call.ending(grid), *recovery.results[k]) for k, (head, grid) in enumerate(parts)]
    return recovery.load(call.output, results)


def _predict(call: Call, network: BoundNetwork, condition: Source | None, recorded: Layout | None) -> list[Any]:
    """The results, from the windows that are still needed."""
    settings, recovery = call.settings, call.recovery
    windows, images = settings.windows, call.source.shape[0]
    with ExitStack() as stack:
        observer = observer_of(settings.progress)
        observer.start(images * len(windows))
        if call.skipped is not None:
            observer.skips(call.skipped.count(images))
        stack.callback(observer.close)
        done = call.done(recorded)
        batches = _batches(call, condition, partial(_needs, recorded, done))
        stack.callback(batches.close)
        how = (call.importance, settings.process_fn, call.device, settings.with_coord)
        predictor = Predictor(settings.seen_by(network), *how)
        predictions = Predictions(batches, predictor)
        first = predictions.first
        keys, heads = (first.keys, predictions.heads(windows.roi_size)) if first else (recovery.keys, recovery.heads)
        scores = match_background(settings.background, keys, heads)
        layout = recorded or lay_out_call(settings, heads, call.device, call.sum_dtype, skipped=call.skipped)
        recovery.begin(keys, heads, [grid.cuts for grid in layout.grids])
        differentiable = torch.is_grad_enabled()
        weights = [partial(predictor.first_weights, number) for number in range(len(heads))]
        finisher = call.finisher(heads, layout, weights, scores, keys, differentiable)
        try:
            of_sums = [each.to(call.device, call.sum_dtype) for each in scores]
            backgrounds = [Background(*each) for each in zip(of_sums, layout.grids, weights)]
            stitcher = _stitcher(call, layout, finisher, backgrounds, done, differentiable, observer)
        except BaseException:
            finisher.abandon()
            raise
        stack.callback(stitcher.close)
        del first
        with torch.set_grad_enabled(differentiable and finisher.in_memory):
            results = run(predictions, stitcher, finisher, observer)
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
    what = (windows.runs(source.shape[0]), settings.sw_batch_size, call.skipped, needs, images)
    batches = Batches(*what) if settings.skip is None else LookedAt(*what, settings.skip, call.device)
    if source.is_far(call.device) and not torch.is_grad_enabled():
        return ReadAhead(iter(batches), call.device)
    return batches.__iter__()


def _needs(recorded: Layout | None, done: Container[ChunkId], batch: Sequence[Window]) -> bool:
    """Whether any window of a batch touches a chunk that no earlier run has finished."""
    return recorded is None or not all(
        ChunkId(window.image, head, position) in done
        for window in batch
        for head, grid in enumerate(recorded.grids)
        for position in grid.touched_by(window.position)
    )


def _stitcher(
    call: Call,
    layout: Layout,
    finisher: Finisher,
    backgrounds: Sequence[Background],
    done: Container[ChunkId],
    differentiable: bool,
    observer: Observer,
) -> Stitcher:
    """What adds predictions up: in results that are in memory as they are, else in chunks of their own."""
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
    open_chunks = kind(layout, len(call.metadata), done, levels, results, observer.opened)
    held = sum(layout.forecast.peak[: CPU + 1]) + finisher.known_bytes
    freed = FreedMemory(int(GROWTH * held))
    return Stitcher(layout, len(call.metadata), done, open_chunks, backgrounds, freed, differentiable)
