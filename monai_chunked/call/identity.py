"""What the result of a call depends on, so that it can be compared with that of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import monai
import torch

from monai_chunked.call.call import Call, Fingerprint
from monai_chunked.outputs.base import Output, ResumableOutput
from monai_chunked.recovery.fingerprint import fingerprint_of
from monai_chunked.transforms.chain import of_each

__all__ = ["described_output", "fingerprint_of_call"]


def fingerprint_of_call(call: Call, output: tuple[type[Output], Mapping[str, Any]] | None = None) -> Fingerprint:
    """A text for each part that the result depends on, and what of them cannot be described.

    Args:
        call: what is asked for.
        output: what is said of the output, where the call has another one.
    """
    described = _described(call)
    if (output := output or described_output(call.output)) is not None:
        described["output"] = output
    ids = {"network_id": call.settings.network_id, "run_id": call.settings.run_id}
    return fingerprint_of(call.source, call.condition, call.network.network, described, **ids)


def described_output(output: Output) -> tuple[type[Output], Mapping[str, Any]] | None:
    """Type and settings of an output whose runs can be resumed."""
    return (type(output), output.settings) if isinstance(output, ResumableOutput) else None


def _described(call: Call) -> dict[str, object]:
    """What the result depends on, beside the input, the network and the output."""
    settings, network, device, inversion = call.settings, call.network, call.device, call.inversion
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
        "postprocessing": of_each(lambda chain: chain.given, settings.postprocessing),
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
        "rounding": settings.rounding,
        "torch": torch.__version__,
        "monai": monai.__version__,
    }
