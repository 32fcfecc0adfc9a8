"""Putting a run together: what is read, what an earlier run left, the plan, and who does what."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import monai
import torch

from monai_chunked.inference.call import Call
from monai_chunked.inference.calling import calling, packed, sum_dtype_of, watched
from monai_chunked.inference.fingerprint.fingerprint import fingerprint_of
from monai_chunked.inference.interruption import interruptible
from monai_chunked.inference.inverting import described_chain, inversion_of, why_whole
from monai_chunked.inference.laying_out import lay_out_call
from monai_chunked.inference.loop import run
from monai_chunked.inference.settings import Settings
from monai_chunked.inference.stitching import Stitching
from monai_chunked.inference.whole import infer_whole
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.outputs.base import ResumableOutput
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.batches import Batch, Batches, LookedAt
from monai_chunked.windows.predictions import Predictions, Seen
from monai_chunked.windows.predictor import BoundNetwork, Predictor
from monai_chunked.windows.read_ahead import ReadAhead
from monai_chunked.windows.reader import Reading, image_of

__all__ = ["infer"]


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
    inversion = inversion_of(settings, source)
    if inversion is not None and (reason := why_whole(inversion, settings, sum_dtype_of(source))):
        return infer_whole(infer, inputs, network, settings, condition, inversion, reason)

    def fingerprint(call: Call) -> tuple[dict[str, str], list[str]]:
        described = _described(call, network)
        if isinstance(call.output, ResumableOutput):
            described["output"] = (type(call.output), call.output.settings)
        ids = (settings.network_id, settings.run_id)
        return fingerprint_of(source, condition_source, network.network, *ids, described)

    with calling(settings, source, inversion, fingerprint) as call:
        recovery, recorded = call.recovery, None
        if recovery.resumed:
            recorded = lay_out_call(settings, recovery.heads, call.device, call.sum_dtype, recovery.cuts, call.skipped)
        results = _load(call, recorded)
        writes_files = settings.output_dir is not None or not call.output.in_memory
        if results is None:
            recorded = recorded if recovery.resumed else None
            kept = settings.postprocessing is None and inversion is None
            differentiable = kept and call.output.in_memory and not settings.limited
            with (
                torch.set_grad_enabled(torch.is_grad_enabled() and differentiable),
                interruptible(recovery.journal) if writes_files else nullcontext(),
            ):
                results = _predict(call, network, condition_source, recorded)
        return packed(call, results)


def _described(call: Call, network: BoundNetwork) -> dict[str, Any]:
    """What the result depends on, beside the input, the network and the output."""
    settings, device, inversion = call.settings, call.device, call.inversion
    autocast = torch.is_autocast_enabled(device.type)
    return {
        "roi_size": settings.roi_size,
        "sw_batch_size": settings.sw_batch_size,
        "overlap": settings.overlap if len(set(settings.overlap)) > 1 else settings.overlap[0],
        "importance map": call.importance(settings.windows.roi_size),
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
        "dtype": call.result_dtype,
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
    windows = settings.windows
    with ExitStack() as stack:
        observer = stack.enter_context(watched(call))
        done = call.done(recorded)
        batches = _batches(call, condition, partial(_needs, recorded, done))
        stack.callback(batches.close)
        how = (call.importance, settings.process_fn, call.device, settings.with_coord)
        predictor = Predictor(settings.seen_by(network), *how)
        predictions = Predictions(batches, predictor)
        seen = predictions.seen(windows.roi_size) or Seen(recovery.keys, recovery.heads, predictor.first_weights)
        stitching = Stitching(call, seen, recorded, done, observer)
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
