"""Predictions that cannot be brought to the patient's grid a chunk at a time: as MONAI does it, whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor

from monai_chunked.chunks.postprocessing import argmax, check_classes
from monai_chunked.inputs.source import source_of
from monai_chunked.machine.caller import warn_caller
from monai_chunked.outputs.base import Expected, Output, Result
from monai_chunked.plan.heads import Heads
from monai_chunked.run.call import Call
from monai_chunked.run.calling import calling
from monai_chunked.run.labels import mark_labels
from monai_chunked.run.one_channel import warn_of_one_channel
from monai_chunked.run.results import with_metadata
from monai_chunked.run.settings import Settings
from monai_chunked.transforms.chain import Chain
from monai_chunked.transforms.inversion import Inversion

__all__ = ["infer_whole"]


def infer_whole(
    infer: Callable[..., Any],
    inputs: Any,
    network: Any,
    settings: Settings,
    condition: Any,
    inversion: Inversion,
    reason: str,
) -> Any:
    """The result of a call whose inverse needs the whole prediction.

    Args:
        infer: runs the network over all windows.
        inputs, network, settings, condition: as for ``infer``.
        inversion: how predictions are brought to the patients' grids.
        reason: why not a chunk at a time, for the warning.

    Raises:
        ValueError: when the network has several outputs.
    """
    warn_caller(
        f"the prediction is brought to the patient's grid as a whole, as MONAI does it, because {reason}. This takes "
        f"the scores of the whole volume, and more: about C (12 n + 8 m) + 24 m bytes, for C channels, n voxels of "
        f"the network's grid and m of the patient's"
    )
    chain = settings.postprocessing
    before: Any = None
    after: list[Any] = [] if chain is None else [argmax if chain == "argmax" else chain]
    if isinstance(chain, Chain):
        invert_only = settings.inverse is None
        before = replace(chain, invert=None, after=()) if chain.before and invert_only else None
        after = list(chain.after) if invert_only else [chain]
    parts = replace(settings, postprocessing=before, inverse=None, output="auto", output_dir=None, overwrite=False)
    reads = {"condition": condition, "network": network, "mask": settings.mask}
    writing = replace(settings, mask=None, skip=None)
    if chain == "argmax" and settings.process_fn is None:  # refused with the first batch, not behind the last one
        network = replace(network, call=partial(_several_classes, network.call or network.network))
    late = replace(chain, before=(), invert=None) if before is not None else chain
    with calling(writing, source_of(inputs), inversion, None, reads) as call:
        scores = infer(inputs, network, parts, condition)
        if not isinstance(scores, torch.Tensor):
            raise ValueError(
                "the network returns several outputs, of which no one can be brought to the patient's grid whole"
            )
        warn_of_one_channel([late], Heads.of([scores.shape[1:]]))
        images = _undone(scores, inversion, after)
        result = _written(call, [voxels for voxels, _ in images], [dict(meta.meta) for _, meta in images])
    templates = tuple(template for _, template in images)
    labelled = with_metadata([result], templates, inversion.batch(templates))
    return mark_labels(labelled, [chain])[0]


def _several_classes(call: Callable[..., Any], *windows: Any, **named: Any) -> Any:
    """What a network returns, where there must be classes to choose from."""
    returned = call(*windows, **named)
    if isinstance(returned, torch.Tensor):
        check_classes(returned.shape[1])
    return returned


def _undone(scores: torch.Tensor, inversion: Inversion, after: list[Any]) -> list[tuple[torch.Tensor, MetaTensor]]:
    """Each image on the patient's grid, with what is done to it there, and a tensor with its metadata."""
    images = []
    for number, template in enumerate(inversion.images.templates):
        image = inversion.undo(template, MetaTensor(scores[number].as_subclass(torch.Tensor)))
        voxels, meta = image.as_tensor(), image
        for function in after:
            voxels = function(voxels)
        images.append((voxels, MetaTensor(torch.zeros(0)).copy_meta_from(meta, copy_attr=False)))
    return images


def _written(call: Call, images: list[torch.Tensor], metadata: list[dict[str, Any]]) -> Any:
    """In the output that was asked for."""
    settings = call.settings
    if not isinstance(settings.output, Output) and settings.output != "disk":
        return torch.stack(images)
    shape = (len(images), *images[0].shape)
    cuts = tuple((0, size) for size in shape[2:])
    overwrite = bool(settings.overwrite)
    size = sum(image.nbytes for image in images)
    call.output.check(Expected(size, images[0].dtype, tuple(metadata), overwrite, call.used))
    result = Result("prediction", shape, images[0].dtype, cuts, tuple(metadata), overwrite)
    writer = call.recovery.writer(0, call.output, result)
    try:
        for number, image in enumerate(images):
            writer.write(number, tuple(slice(0, size) for size in shape[2:]), image)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise
