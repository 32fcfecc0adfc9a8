"""Putting a run together: what is read, what an earlier run left, the plan, and who does what."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import monai
import torch

from monai_chunked.inference.call import Call
from monai_chunked.inference.calling import calling, packed, sum_dtype_of
from monai_chunked.inference.fingerprint.fingerprint import fingerprint_of
from monai_chunked.inference.interruption import interruptible
from monai_chunked.inference.inverting import described_chain, inversion_of, why_whole
from monai_chunked.inference.laying_out import lay_out_call
from monai_chunked.inference.predicting import predict
from monai_chunked.inference.settings import Settings
from monai_chunked.inference.whole import infer_whole
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.outputs.base import Output, ResumableOutput
from monai_chunked.plan.layout import Layout
from monai_chunked.windows.predictor import BoundNetwork

__all__ = ["described_output", "fingerprint_of_call", "infer", "loaded"]


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
        return fingerprint_of_call(call, network, condition_source, described_output(call.output))

    with calling(settings, source, inversion, fingerprint) as call:
        recovery, recorded = call.recovery, None
        if recovery.resumed:
            recorded = lay_out_call(settings, recovery.heads, call.device, call.sum_dtype, recovery.cuts, call.skipped)
        results = loaded(call, recorded)
        writes_files = settings.output_dir is not None or not call.output.in_memory
        if results is None:
            recorded = recorded if recovery.resumed else None
            kept = settings.postprocessing is None and inversion is None
            differentiable = kept and call.output.in_memory and not settings.limited
            with (
                torch.set_grad_enabled(torch.is_grad_enabled() and differentiable),
                interruptible(recovery.journal) if writes_files else nullcontext(),
            ):
                results = predict(call, network, condition_source, recorded)
        return packed(call, results)


def described_output(output: Output) -> tuple[Any, Any] | None:
    """Type and settings of an output, where its runs can be resumed."""
    return (type(output), output.settings) if isinstance(output, ResumableOutput) else None


def fingerprint_of_call(
    call: Call, network: BoundNetwork, condition: Source | None, output: tuple[Any, Any] | None
) -> tuple[dict[str, str], list[str]]:
    """What the result of a call depends on: a text for each part, and what cannot be described.

    Args:
        call: what is known before the network runs.
        network: with its further arguments.
        condition: where windows of the condition are read from.
        output: what is said of it.
    """
    described = _described(call, network)
    if output is not None:
        described["output"] = output
    ids = (call.settings.network_id, call.settings.run_id)
    return fingerprint_of(call.source, condition, network.network, *ids, described)


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


def loaded(call: Call, layout: Layout | None) -> list[Any] | None:
    """The results, if an earlier run finished them and nobody has removed them since."""
    recovery = call.recovery
    if layout is None or not recovery.complete:
        return None
    parts = zip(recovery.heads, layout.grids)
    results = [call.result(head, call.ending(grid), *recovery.results[k]) for k, (head, grid) in enumerate(parts)]
    return recovery.load(call.output, results)
