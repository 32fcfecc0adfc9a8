"""Putting a run together: what is read, what an earlier run left, the plan, and who does what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import monai
import torch

from monai_chunked.chunks.finishing import Division, Finisher, HeadFinisher
from monai_chunked.chunks.levels import Levels
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.chunks.postprocessing import Cast, Postprocess, Postprocessing, known_result, match_postprocessing
from monai_chunked.chunks.stages import Stage
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.inference.chains import Chain
from monai_chunked.inference.fingerprint.fingerprint import fingerprint_of
from monai_chunked.inference.interruption import interruptible
from monai_chunked.inference.labels import mark_labels
from monai_chunked.inference.loop import run
from monai_chunked.inference.planning import lay_out_call
from monai_chunked.inference.progress import Observer, observer_of
from monai_chunked.inference.results import at_resolution, result_dtype_of, with_metadata
from monai_chunked.inference.settings import Settings
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.machine.accelerator import with_index
from monai_chunked.machine.memory import FreedMemory
from monai_chunked.outputs.base import Expected, Metadata, Output, OutputWriter, Result, ResumableOutput
from monai_chunked.outputs.recovery.recovering import recovering
from monai_chunked.outputs.recovery.recovery import NoRecovery, Recovery
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.heads import Head
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.schedule import CPU
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.importance import importance_map
from monai_chunked.windows.predictions import Predictions
from monai_chunked.windows.predictor import BoundNetwork, Predictor, pack
from monai_chunked.windows.reader import Reading, image_of

__all__ = ["infer"]

GROWTH = 1 / 16
"""Of what open chunks and results take, the part by which the process may grow before it gives back what is free."""


@dataclass(frozen=True)
class Call:
    """One call, with what is known before the network runs.

    Attributes:
        settings: what it is asked to do.
        source: where windows are read from.
        device: where the network runs, and where predictions are.
        sum_dtype: float32 or float64.
        result_dtype: of what is not postprocessed.
        importance: importance map of a window.
        output: where finished chunks go.
        recovery: what an earlier run left.
        metadata: of each image, with a name where the result must have one.
    """

    settings: Settings
    source: Source
    device: torch.device
    sum_dtype: torch.dtype
    result_dtype: torch.dtype
    importance: torch.Tensor
    output: Output
    recovery: Recovery | NoRecovery
    metadata: tuple[Metadata, ...]

    def result(self, head: Head, grid: ChunkGrid, channels: int, dtype: torch.dtype) -> Result:
        """What one head becomes."""
        shape = (len(self.metadata), channels, *grid.size)
        metadata = tuple(at_resolution(each, self.settings.image_size, grid.size) for each in self.metadata)
        overwrite, resumable = bool(self.settings.overwrite), self.recovery.journal is not None
        return Result(head.name, shape, dtype, grid.cuts, metadata, overwrite, resumable)


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
    known_dtype = result_dtype if settings.postprocessing is None else None
    output.check(Expected(0, known_dtype))
    how = (settings.roi_weight_map, settings.roi_size, settings.mode, settings.sigma_scale)
    importance = importance_map(*how, device, sum_dtype)

    def fingerprint() -> tuple[dict[str, str], list[str]]:
        described = _described(settings, network, importance, device, result_dtype)
        if isinstance(output, ResumableOutput):
            described["output"] = (type(output), output.settings)
        ids = (settings.network_id, settings.run_id)
        return fingerprint_of(source, condition_source, network.network, *ids, described)

    with recovering(output, source.metadata, fingerprint, settings.overwrite) as (recovery, metadata):
        if not recovery.resumed:
            size = source.shape[0] * prod(settings.image_size) * (1 if known_dtype is None else known_dtype.itemsize)
            output.check(Expected(size, known_dtype, metadata, bool(settings.overwrite)))
        call = Call(settings, source, device, sum_dtype, result_dtype, importance, output, recovery, metadata)
        recorded = None
        if recovery.resumed:
            recorded = lay_out_call(settings, recovery.heads, device, sum_dtype, recovery.cuts)
        results = _load(call, recorded)
        writes_files = settings.output_dir is not None or not output.in_memory
        if results is None:
            recorded = recorded if recovery.resumed else None
            differentiable = settings.postprocessing is None and output.in_memory and not settings.limited
            with (
                torch.set_grad_enabled(torch.is_grad_enabled() and differentiable),
                interruptible(recovery.journal) if writes_files else nullcontext(),
            ):
                results = _predict(call, network, condition_source, recorded)
        functions = match_postprocessing(settings.postprocessing, recovery.keys, len(results))
        return pack(recovery.keys, mark_labels(with_metadata(results, source), functions))


def _described(
    settings: Settings,
    network: BoundNetwork,
    importance: torch.Tensor,
    device: torch.device,
    result_dtype: torch.dtype,
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
        "preprocessing": settings.preprocessing,
        "process_fn": settings.process_fn,
        "postprocessing": settings.postprocessing,
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
    results = [call.result(head, grid, *recovery.results[k]) for k, (head, grid) in enumerate(parts)]
    return recovery.load(call.output, results)


def _predict(call: Call, network: BoundNetwork, condition: Source | None, recorded: Layout | None) -> list[Any]:
    """The results, from the windows that are still needed."""
    settings, recovery = call.settings, call.recovery
    windows, images = settings.windows, call.source.shape[0]
    with ExitStack() as stack:
        observer = observer_of(settings.progress)
        observer.start(images * len(windows))
        stack.callback(observer.close)
        predictor = _predictor(call, network, condition)
        stack.callback(predictor.close)
        needs = partial(_needs, recorded, recovery.done)
        predictions = Predictions(windows.batches(images, settings.sw_batch_size), needs, predictor)
        first = predictions.first
        keys, heads = (first.keys, predictions.heads) if first else (recovery.keys, recovery.heads)
        weights = first.weights if first else [call.importance] * len(heads)
        layout = recorded or lay_out_call(settings, heads, call.device, call.sum_dtype)
        recovery.begin(keys, heads, [grid.cuts for grid in layout.grids])
        differentiable = torch.is_grad_enabled()
        finisher = _finisher(call, heads, layout, weights, keys, differentiable)
        try:
            stitcher = _stitcher(call, layout, finisher, weights, differentiable, observer)
        except BaseException:
            finisher.abandon()
            raise
        stack.callback(stitcher.close)
        del first
        with torch.set_grad_enabled(differentiable and finisher.in_memory):
            results = run(predictions, stitcher, finisher, observer)
        recovery.finish()
    return results


def _predictor(call: Call, network: BoundNetwork, condition: Source | None) -> Predictor:
    settings, source = call.settings, call.source
    how = (settings.padding_mode, settings.cval, call.device, settings.sw_batch_size > 1)
    images = [image_of(source, settings.windows, Reading(*how, settings.preprocessing), settings.scratch_dir)]
    if condition is not None:
        images.append(image_of(condition, settings.windows, Reading(*how), settings.scratch_dir))
    ahead = source.is_far(call.device) and not torch.is_grad_enabled()
    return Predictor(network, images, call.importance, settings.process_fn, ahead, call.device, settings.with_coord)


def _needs(recorded: Layout | None, done: Mapping[ChunkId, int], batch: Sequence[Window]) -> bool:
    """Whether any window of a batch touches a chunk that no earlier run has finished."""
    return recorded is None or not all(
        ChunkId(window.image, head, position) in done
        for window in batch
        for head, grid in enumerate(recorded.grids)
        for position in grid.touched_by(window.position)
    )


def _finisher(
    call: Call, heads: Sequence[Head], layout: Layout, weights: Sequence[torch.Tensor], keys: Any, differentiable: bool
) -> Finisher:
    """What makes results of finished chunks. The results that can be started are."""
    functions = match_postprocessing(call.settings.postprocessing, keys, len(heads))
    for device, peak in zip((call.device, torch.device("cpu")), layout.forecast.peak):
        call.output.reserve(device, peak)
    known = [known_result(head.channels, call.result_dtype, function) for head, function in zip(heads, functions)]
    sizes = [prod(grid.size) * each[0] * each[1].itemsize for grid, each in zip(layout.grids, known) if each]
    known_bytes = len(call.metadata) * sum(sizes)
    if not call.recovery.resumed:  # else its space is taken already
        call.output.check(Expected(known_bytes))

    def threaded(writer: OutputWriter) -> bool:
        return (call.device.type != "cpu" or not writer.in_memory) and not differentiable

    finishers: list[HeadFinisher] = []
    try:
        for k, (head, function) in enumerate(zip(heads, functions)):
            division = Division(layout.grids[k], weights[k], differentiable)
            stages: list[Stage] = [division, *_postprocessing(call, head, function)]
            create = partial(_create, call, k, head, layout.grids[k])
            finishers.append(HeadFinisher(head.name, stages, create, call.recovery.results.get(k, known[k]), threaded))
    except BaseException:
        Finisher(finishers).abandon()
        raise
    return Finisher(finishers, known_bytes)


def _postprocessing(call: Call, head: Head, function: Postprocessing | None) -> list[Stage]:
    if function is None:
        return [Cast(call.result_dtype)]
    # dictionary transforms get scores as they get them behind the inferer, in the dtype of its result
    cast: list[Stage] = [Cast(call.result_dtype)] if isinstance(function, Chain) else []
    return [*cast, Postprocess(function, head.name)]


def _create(call: Call, number: int, head: Head, grid: ChunkGrid, channels: int, dtype: torch.dtype) -> OutputWriter:
    """Start a result, or go on with one that an earlier run left."""
    return call.recovery.writer(number, call.output, call.result(head, grid, channels, dtype))


def _stitcher(
    call: Call,
    layout: Layout,
    finisher: Finisher,
    weights: Sequence[torch.Tensor],
    differentiable: bool,
    observer: Observer,
) -> Stitcher:
    """What adds predictions up: in results that are in memory as they are, else in chunks of their own."""
    in_place = call.settings.postprocessing is None and not differentiable and not layout.forecast.moved
    results = {
        k: head.memory
        for k, (head, each) in enumerate(zip(finisher.heads, weights))
        if in_place and head.memory is not None
        if (head.memory.device, head.memory.dtype) == (each.device, each.dtype)
    }
    levels = Levels(layout, call.device, call.sum_dtype, not differentiable, call.settings.scratch_dir)
    done = call.recovery.done
    open_chunks = OpenChunks(layout, len(call.metadata), done, levels, results, observer.opened)
    held = sum(layout.forecast.peak[: CPU + 1]) + finisher.known_bytes
    return Stitcher(layout, len(call.metadata), done, open_chunks, FreedMemory(int(GROWTH * held)), differentiable)
