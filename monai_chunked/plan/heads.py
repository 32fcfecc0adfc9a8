"""What the network returns."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RecordedOutput"]


class RecordedOutput(NamedTuple):
    """One output of the network, as the first batch showed it.

    Attributes:
        name: in messages and file names.
        channels: of the prediction.
        prediction_size: spatial size of the prediction of one window in voxels.
        cuts: for each spatial dimension, where chunks begin, and the size.
    """

    name: str
    channels: int
    prediction_size: tuple[int, ...]
    cuts: tuple[tuple[int, ...], ...]
