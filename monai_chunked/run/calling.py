"""Beginning a call: what is known before the network runs; and what is made of its results at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import Any

import torch

from monai_chunked.chunks.postprocessing import functions_of
from monai_chunked.inputs.source import Source
from monai_chunked.machine.accelerator import with_index
from monai_chunked.outputs.base import Expected, Metadata
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.recovery.record import NoRecovery
from monai_chunked.recovery.recovery import recovering
from monai_chunked.run.call import Call
from monai_chunked.run.labels import mark_labels
from monai_chunked.run.observer import Observer, observer_of
from monai_chunked.run.results import result_dtype_of, with_metadata
from monai_chunked.run.settings import Settings
from monai_chunked.run.used_files import used_files
from monai_chunked.transforms.inversion import Inversion
from monai_chunked.windows.importance import Importance

__all__ = ["calling", "packed", "sum_dtype_of", "watched"]


def sum_dtype_of(source: Source, settings: Settings) -> torch.dtype:
    """Of weights, and of what predictions are added up in."""
    as_input = source.dtype.is_floating_point and settings.rounding is not None
    return source.dtype if as_input or source.dtype == torch.float64 else torch.float32


def _result_dtype(source: Source, settings: Settings) -> torch.dtype:
    padded = tuple(settings.windows.image_size) != tuple(settings.image_size)
    return result_dtype_of(source, settings.padding_mode if padded else "constant")


@contextmanager
def calling(
    settings: Settings,
    source: Source,
    inversion: Inversion | None,
    fingerprint: Callable[[Call], tuple[Mapping[str, str], Sequence[str]]] | None,
    reads: Mapping[str, Any] = MappingProxyType({}),
    skipped: Skipped | None = None,
) -> Iterator[Call]:
    """A call, with what an earlier run left of it.

    Args:
        settings: what is asked for.
        source: where windows are read from.
        inversion: how predictions are brought to the patients' grids, a chunk at a time.
        fingerprint: what the result depends on, as for :py:func:`recovering`; ``None``: nobody can know.
        reads: what else is read, beside what is said here: a source, or a network, by the name of the parameter.
        skipped: the windows that the mask skips, where it has been read already.

    Raises:
        FileExistsError: when a result would take the place of what is read.
        ValueError, TypeError, OSError: when the output cannot take the result.
    """
    device = with_index(settings.sw_device or source.device)
    sum_dtype, result_dtype = sum_dtype_of(source, settings), _result_dtype(source, settings)
    output = settings.target(source.device)
    known_dtype = result_dtype if settings.postprocessing is None and inversion is None else None
    output.check(Expected(0, known_dtype))
    importance = Importance(settings.roi_weight_map, settings.mode, settings.sigma_scale, device, sum_dtype)
    importance(settings.windows.roi_size)  # one that does not fit is refused now
    known = (device, sum_dtype, result_dtype, importance)
    call = Call(settings, source, *known, output, NoRecovery(), source.metadata, inversion, None)
    if settings.names_results:
        call = replace(call, used=used_files(settings, source, reads))
    described = None if fingerprint is None else lambda: fingerprint(call)

    def check(metadata: tuple[Metadata, ...]) -> None:
        output.check(Expected(0, None, metadata, True, call.used))

    with recovering(output, source.metadata, described, settings.overwrite, check) as (recovery, metadata):
        call = replace(call, recovery=recovery, metadata=metadata)
        if not recovery.resumed:
            size = source.shape[0] * prod(settings.image_size) * (1 if known_dtype is None else known_dtype.itemsize)
            output.check(Expected(size, known_dtype, metadata, call.replaces))
        yield replace(call, skipped=settings.skipped() if skipped is None else skipped)


@contextmanager
def watched(call: Call) -> Iterator[Observer]:
    """Who watches the run, and is told that it begins and ends."""
    observer, images = observer_of(call.settings.progress), call.source.shape[0]
    observer.start(len(call.numbers))
    if call.skipped is not None:
        observer.skips(call.skipped.count(images))
    try:
        yield observer
    finally:
        observer.close()


def packed(call: Call, results: list[Any]) -> Any:
    """Results in the structure that the network returns, with the metadata of the input, labels known as such."""
    heads, inversion, source = call.recovery.heads, call.inversion, call.source
    functions = functions_of(heads, call.settings.postprocessing)
    if inversion is None:
        labelled = with_metadata(results, source.templates, source.template)
    else:
        undone = inversion.over(call.settings.image_size)
        labelled = with_metadata(results, undone.templates, inversion.batch(undone.templates))
    return heads.pack(mark_labels(labelled, functions))
