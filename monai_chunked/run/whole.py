"""Predictions that cannot be brought to the patient's grid a chunk at a time: as MONAI does it, whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor

from monai_chunked.call.call import Call
from monai_chunked.call.settings import Settings
from monai_chunked.machine.caller import warn_caller
from monai_chunked.outputs.base import Expected, Metadata, Output, Result
from monai_chunked.plan.heads import Heads
from monai_chunked.run.begun import Run, begun
from monai_chunked.run.labels import mark_labels, with_metadata
from monai_chunked.transforms.argmax import check_classes
from monai_chunked.transforms.chain import Chain
from monai_chunked.transforms.inversion import Inversion
from monai_chunked.windows.predictor import BoundNetwork

__all__ = ["infer_whole"]


def infer_whole(call: Call, reason: str, infer_scores: Callable[[Settings, BoundNetwork], Any]) -> Any:
    """The result of a call whose inverse needs the whole prediction.

    Args:
        call: what is asked for.
        reason: why not a chunk at a time, for the warning.
        infer_scores: runs the network over all windows, with other settings.

    Raises:
        ValueError: when the network has several outputs.
    """
    warn_caller(
        f"the prediction is brought to the patient's grid as a whole, as MONAI does it, because {reason}. This takes "
        f"the scores of the whole volume, and more: about C (12 n + 8 m) + 24 m bytes, for C channels, n voxels of "
        f"the network's grid and m of the patient's"
    )
    settings, network, inversion = call.settings, call.network, call.inversion
    assert inversion is not None
    chain = settings.chains[0]
    by_chain = settings.inverse is None
    early = replace(chain, invert=None, after=()) if by_chain else Chain()
    late = Chain(after=chain.after if by_chain else chain.functions)
    parts = replace(settings, postprocessing=early, inverse=None, output="auto", output_dir=None, overwrite=False)
    if chain.is_argmax and settings.process_fn is None:  # refused with the first batch, not behind the last one
        network = replace(network, call=partial(_several_classes, network.call or network.network))
    with begun(call, None) as run:
        scores = infer_scores(parts, network)
        if not isinstance(scores, torch.Tensor):
            raise ValueError(
                "the network returns several outputs, of which no one can be brought to the patient's grid whole"
            )
        heads = Heads.of([scores.shape[1:]])
        heads.match("postprocessing", settings.postprocessing)  # one for each of several does not fit
        late.warn_of_one_channel(heads[0])
        images = _undone(scores, inversion, late)
        result = _written(run, [voxels for voxels, _ in images], [dict(meta.meta) for _, meta in images])
    templates = tuple(template for _, template in images)
    labelled = with_metadata([result], templates, inversion.batch(templates))
    return mark_labels(labelled, [chain])[0]


def _several_classes(call: Callable[..., Any], *windows: Any, **named: Any) -> Any:
    """What a network returns, which must be classes to choose from."""
    returned = call(*windows, **named)
    if isinstance(returned, torch.Tensor):
        check_classes(returned.shape[1])
    return returned


def _undone(scores: torch.Tensor, inversion: Inversion, late: Chain) -> list[tuple[torch.Tensor, MetaTensor]]:
    """Each image on the patient's grid, after what is done to it there, and a tensor with its metadata."""
    images = []
    for number, template in enumerate(inversion.images.templates):
        image = inversion.undo(template, MetaTensor(scores[number].as_subclass(torch.Tensor)))
        meta = MetaTensor(torch.zeros(0)).copy_meta_from(image, copy_attr=False)
        images.append((late(image.as_tensor()), meta))
    return images


def _written(run: Run, images: list[torch.Tensor], metadata: list[Metadata]) -> Any:
    """The result, in the output that was asked for."""
    settings = run.call.settings
    if not isinstance(settings.output, Output) and settings.output != "disk":
        return torch.stack(images)
    shape = (len(images), *images[0].shape)
    cuts = tuple((0, size) for size in shape[2:])
    overwrite = bool(settings.overwrite)
    nbytes = sum(image.nbytes for image in images)
    run.call.output.check(Expected(nbytes, images[0].dtype, tuple(metadata), overwrite, run.used))
    result = Result("prediction", shape, images[0].dtype, cuts, tuple(metadata), overwrite)
    writer = run.record.writer(0, run.call.output, result)
    try:
        for number, image in enumerate(images):
            writer.write(number, tuple(slice(0, size) for size in shape[2:]), image)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise
