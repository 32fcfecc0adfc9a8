"""Whether, and how, a call brings its predictions to the patients' grids."""

from __future__ import annotations

from typing import Any

import torch

from monai_chunked.inference.chains import Chain
from monai_chunked.inference.inverse.inversion import ImageInverse, Inversion, by_invertd
from monai_chunked.inference.settings import Settings
from monai_chunked.inputs.source import Source
from monai_chunked.plan.resampling import Unstreamable

__all__ = ["described_chain", "inversion_of", "why_whole"]


def inversion_of(settings: Settings, source: Source) -> Inversion | None:
    """What ``inverse`` or an ``Invertd`` in ``postprocessing`` asks for; ``None`` if there is neither.

    Raises:
        ValueError: when the input does not say what was done to it.
    """
    chain = settings.postprocessing
    if isinstance(chain, Chain) and chain.invert is not None:
        return Inversion(source, by_invertd(chain.invert, chain.key))
    if settings.inverse is None:
        return None
    undo = settings.inverse
    if isinstance(undo, ImageInverse):
        return Inversion(source, undo)
    return Inversion(source, by_invertd(undo, undo.keys[0]))


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
