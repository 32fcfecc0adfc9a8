"""Whether, and how, a call brings its predictions to the patients' grids."""

from __future__ import annotations

from typing import Any

import torch
from monai.transforms import Invertd

from monai_chunked.inputs.source import Source
from monai_chunked.run.settings import Settings
from monai_chunked.transforms.chain import Chain
from monai_chunked.transforms.inversion import Images, Inversion, Undo, by_invertd
from monai_chunked.transforms.reasons import stays_in_memory
from monai_chunked.transforms.resampling.axes import Unstreamable

__all__ = ["described_chain", "inversion_of", "why_whole"]


def inversion_of(settings: Settings, source: Source) -> Inversion | None:
    """What ``inverse`` or an ``Invertd`` in ``postprocessing`` asks for; ``None`` if there is neither.

    Raises:
        ValueError: when the input does not say what was done to it.
    """
    undo: Undo | Invertd | None = settings.inverse
    chain, template = settings.postprocessing, source.template
    images = Images(source.templates, template is not None and template.is_batch)
    if isinstance(chain, Chain) and chain.invert is not None:
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
    size = settings.image_size
    padded = size if _moves_to_new_memory(chain) else tuple(map(max, size, settings.roi_size))
    return Inversion(images, undo, (size, padded))


def _moves_to_new_memory(postprocessing: Any) -> bool:
    """Whether a prediction that was cut from a larger one lies without gaps when it comes to be inverted."""
    before = postprocessing.before if isinstance(postprocessing, Chain) else ()
    return any(not stays_in_memory(step.transform) for step in before)


def why_whole(inversion: Inversion, settings: Settings, sum_dtype: torch.dtype) -> str | None:
    """Why it cannot be done a chunk at a time; ``None`` if it can."""
    if sum_dtype != torch.float32:
        return f"scores are {sum_dtype}"
    try:
        inversion.over(settings.image_size)
    except Unstreamable as error:
        return str(error)
    return None


def described_chain(postprocessing: Any) -> Any:
    """A postprocessing without the preprocessing that its ``Invertd`` undoes: what that does is known better."""
    if isinstance(postprocessing, Chain) and postprocessing.invert is not None:
        return postprocessing.key, postprocessing.before, postprocessing.after
    return postprocessing
