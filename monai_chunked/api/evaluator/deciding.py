"""What an evaluator decides on before each prediction: what is done in chunks, what is left, and why, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monai.transforms import Activationsd, CastToTyped, Compose, EnsureTyped, Identityd, Invertd, ToDeviced
from monai.utils import CommonKeys

from monai_chunked.resampling.axes import Unstreamable
from monai_chunked.transforms.each_voxel import EachVoxeld
from monai_chunked.transforms.inversion import DifferentGrids, Images, Inversion, by_invertd

__all__ = ["Decision", "PredictionCall", "ends_in_scores", "text_of", "why_not_batched"]


SCORES = {Activationsd, CastToTyped, EnsureTyped, Identityd, ToDeviced}
"""Transforms that keep the number of scores. If there are no others, chunks save nothing."""


@dataclass(frozen=True)
class PredictionCall:
    """What the inferer of an iteration is called with.

    Attributes:
        batch: of the iteration.
        inputs: what is predicted, ``(B, C, *spatial)``.
        has_more: whether there are further arguments for the network.
    """

    batch: Any
    inputs: Any
    has_more: bool


@dataclass(frozen=True)
class Decision:
    """What an iteration runs.

    Attributes:
        inferer: what predicts.
        streamed: what it does to each chunk; ``None``: nothing.
        behind: what is left for the whole result; ``None``: nothing.
        reason: why that is more than one may expect; ``None``: it is not.
        left_by: why anything that is done to the prediction is left; ``None``: nothing is.
    """

    inferer: Any
    streamed: Compose | None
    behind: Any
    reason: str | None
    left_by: str | None = None

    def left(self, own: object) -> str:
        """What is not done in chunks, in words.

        Args:
            own: the evaluator's inferer.
        """
        if self.streamed is not None:
            return "Invertd and what comes behind it as they are"
        if self.inferer is own:
            return "inferer and postprocessing as they are"
        return "postprocessing as it is, and blends windows in chunks"


def why_not_batched(invert: Invertd, images: Images, size: tuple[int, ...]) -> str | None:
    """What stands in the way of inverting all images of a batch in chunks.

    Args:
        invert: what inverts them.
        images: whose operations it undoes.
        size: spatial size of what the network sees, in voxels.
    """
    if len(images.templates) < 2:
        return None
    try:
        Inversion(images, by_invertd(invert, CommonKeys.PRED), (size, size)).over(size)
    except DifferentGrids:
        return "images of a batch end on grids of other sizes; with batch_size: 1 in the data loader it runs in chunks"
    except Unstreamable as error:
        return f"{error}, and images of a batch may end on other grids"
    return None


def ends_in_scores(streamed: Compose | None) -> bool:
    """Whether what is done in chunks saves nothing."""
    return streamed is None or all(type(transform) in SCORES for transform in streamed.transforms)


def text_of(transforms: Compose | None) -> str:
    """The transforms by name, as in ``Activationsd(pred), AsDiscreted(pred)``."""
    names = [] if transforms is None else [_name(transform) for transform in transforms.transforms]
    return ", ".join(names) or "nothing"


def _name(transform: Any) -> str:
    own = transform.transform if isinstance(transform, EachVoxeld) else transform
    keys = ", ".join(map(str, getattr(transform, "keys", ())))
    return f"{type(own).__name__}({keys})"
