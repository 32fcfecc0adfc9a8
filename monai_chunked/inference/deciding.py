"""What an evaluator decides on before each prediction: what is done in chunks, what is left, and why, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monai.transforms import Activationsd, CastToTyped, Compose, EnsureTyped, Identityd, Invertd
from monai.utils import CommonKeys

from monai_chunked.inference.inverse.inversion import DifferentGrids, Inversion, by_invertd
from monai_chunked.inference.vouching import EachVoxeld
from monai_chunked.inputs.source import source_of
from monai_chunked.plan.resampling import Unstreamable

__all__ = ["Decision", "PredictionCall", "ends_in_scores", "text_of", "why_not_batched", "why_whole"]


SCORES = {Activationsd, CastToTyped, EnsureTyped, Identityd}
"""What leaves scores as many as they are. If there is nothing else, there is nothing to save."""


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
    """

    inferer: Any
    streamed: Compose | None
    behind: Any
    reason: str | None

    def left(self, own: Any) -> str:
        """What is not done in chunks, in words.

        Args:
            own: the evaluator's inferer.
        """
        if self.streamed is not None:
            return "Invertd and what comes behind it as they are"
        if self.inferer is own:
            return "inferer and postprocessing as they are"
        return "postprocessing as it is, and blends windows in chunks"


def why_not_batched(invert: Invertd, inputs: Any) -> str | None:
    """What stands in the way of inverting all images of a batch in chunks."""
    if len(inputs) < 2:
        return None
    try:
        Inversion(source_of(inputs), by_invertd(invert, CommonKeys.PRED)).over(tuple(inputs.shape[2:]))
    except DifferentGrids:
        return "images of a batch end on grids of other sizes; with batch_size: 1 in the data loader it runs in chunks"
    except Unstreamable as error:
        return f"{error}, and images of a batch may end on other grids"
    return None


def ends_in_scores(streamed: Compose | None) -> bool:
    """Whether what is done in chunks saves nothing."""
    return streamed is None or all(type(each) in SCORES for each in streamed.transforms)


def why_whole(behind: Any) -> str:
    """Why a postprocessing that is left needs scores."""
    if behind is None:
        return "postprocessing ends in scores"
    first = behind.transforms[0] if isinstance(behind, Compose) and behind.transforms else behind
    return f"{getattr(type(first), '__name__', first)} needs scores of the whole volume"


def text_of(transforms: Compose | None) -> str:
    """As in ``Activationsd(pred), AsDiscreted(pred)``."""
    names = [] if transforms is None else [_name(each) for each in transforms.transforms]
    return ", ".join(names) or "nothing"


def _name(transform: Any) -> str:
    own = transform.transform if isinstance(transform, EachVoxeld) else transform
    keys = ", ".join(map(str, getattr(transform, "keys", ())))
    return f"{type(own).__name__}({keys})"
