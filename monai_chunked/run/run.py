"""Putting a run together: what is read, what an earlier run left, the plan, and who does what."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from monai_chunked.inputs.source import source_of
from monai_chunked.machine.signals import interruptible
from monai_chunked.plan.layout import Layout
from monai_chunked.run.call import Call
from monai_chunked.run.calling import calling, packed, sum_dtype_of
from monai_chunked.run.identity import fingerprint_of_call
from monai_chunked.run.inverting import inversion_of, why_whole
from monai_chunked.run.laying_out import lay_out_call
from monai_chunked.run.predicting import predict
from monai_chunked.run.settings import Settings
from monai_chunked.run.whole import infer_whole
from monai_chunked.windows.predictor import BoundNetwork

__all__ = ["infer", "load"]


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
    if inversion is not None and (reason := why_whole(inversion, settings, sum_dtype_of(source, settings))):
        return infer_whole(infer, inputs, network, settings, condition, inversion, reason)

    described = partial(fingerprint_of_call, network=network, condition=condition_source)
    reads = {"condition": condition_source, "network": network}
    with calling(settings, source, inversion, described, reads) as call:
        recovery, recorded = call.recovery, None
        if recovery.resumed:
            recorded = lay_out_call(settings, recovery.heads, call.device, call.sum_dtype, recovery.cuts, call.skipped)
        results = load(call, recorded)
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


def load(call: Call, layout: Layout | None) -> list[Any] | None:
    """The results, if an earlier run finished them and nobody has removed them since."""
    recovery = call.recovery
    if layout is None or not recovery.complete:
        return None
    parts = zip(recovery.heads, layout.grids)
    results = [call.result(head, call.ending(grid), recovery.results[k]) for k, (head, grid) in enumerate(parts)]
    return recovery.load(call.output, results)
