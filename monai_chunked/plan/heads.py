"""The tensors that the network returns for one window."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

__all__ = ["Head", "head_names"]


class Head(NamedTuple):
    """One of the tensors that the network returns, as the first batch shows it.

    Attributes:
        name: in messages and file names.
        channels: of a prediction.
        size: spatial size of the prediction of one window in voxels.
    """

    name: str
    channels: int
    size: tuple[int, ...]


def head_names(keys: Sequence[Hashable] | None, count: int) -> list[str]:
    """What to call each head in messages and file names; ``keys`` are those of a network that returns a dict.

    >>> head_names(None, 1), head_names(["liver", "spleen"], 2), head_names(None, 2)
    (['prediction'], ['prediction-liver', 'prediction-spleen'], ['prediction-0', 'prediction-1'])
    """
    if count == 1:
        return ["prediction"]
    return [f"prediction-{key}" for key in keys or range(count)]
