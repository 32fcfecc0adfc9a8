"""Whether, and how, a call brings its predictions to the patients' grids."""

from __future__ import annotations

import torch
from monai.transforms import Invertd

from monai_chunked.inputs.source import Source
from monai_chunked.run.settings import Settings
from monai_chunked.transforms.chain import inside
from monai_chunked.transforms.inversion import Images, Inversion, Undo, by_invertd
from monai_chunked.transforms.reasons import stays_in_memory
from monai_chunked.transforms.resampling.axes import Unstreamable

__all__ = ["inversion_of", "why_whole"]


def inversion_of(settings: Settings, source: Source) -> Inversion | None:
    """What ``inverse`` or an ``Invertd`` in ``postprocessing`` asks for; ``None`` if there is neither.

    Raises:
        ValueError: when the input does not say what was done to it.
    """
    undo: Undo | Invertd | None = settings.inverse
    template = source.template
    images = Images(source.templates, template is not None and template.is_batch)
    for chain in settings.chains:
        if chain.invert is None:
            continue
        undo, images = by_invertd(chain.invert, chain.key), chain.images or images
        if len(images.templates) not in (0, source.shape[0]):
            raise ValueError(
                f"postprocessing has an Invertd that was split for a batch of {len(images.templates)} image(s), but "
                f"the input has {source.shape[0]}; call split_postprocessing(..., batch=) for each batch"
            )
    if undo is None:
        return None
    if isinstance(undo, Invertd):
        undo = by_invertd(undo, undo.keys[0])
    size = padded = settings.image_size
    before = (inside(function) for chain in settings.chains for function in chain.before)
    if all(map(stays_in_memory, before)):  # a prediction that was cut from a larger one lies with gaps in between
        padded = tuple(map(max, size, settings.roi_size))
    return Inversion(images, undo, (size, padded))


def why_whole(inversion: Inversion, settings: Settings, sum_dtype: torch.dtype) -> str | None:
    """Why it cannot be done a chunk at a time; ``None`` if it can."""
    if sum_dtype != torch.float32:
        return f"scores are {sum_dtype}"
    try:
        inversion.over(settings.image_size)
    except Unstreamable as error:
        return str(error)
    return None
