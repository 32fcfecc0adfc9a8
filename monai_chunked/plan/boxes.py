"""Boxes of voxels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

__all__ = ["Box", "Corner", "Piece", "Region", "_intervals", "_voxels", "_within", "box_text"]


Box = tuple[slice, ...]
"""One slice for each spatial dimension."""


Corner = tuple[int, ...]
"""Where a chunk begins: the number of the image, then one voxel index for each spatial dimension."""


class Piece(NamedTuple):
    """What one window and one chunk have in common.

    Attributes:
        chunk: position of the chunk in the chunk grid.
        in_window: the common voxels, counted from the start of the window's prediction.
        in_chunk: the same voxels, counted from the start of the chunk.
    """

    chunk: tuple[int, ...]
    in_window: Box
    in_chunk: Box


def _intervals(cuts: Sequence[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]


Region = tuple[slice, ...]
"""One slice for the channels and one for each spatial dimension."""


def _within(box: Box, outer: Box) -> Region:
    """A box counted from the start of another, for all channels."""
    return (slice(None), *(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer)))


def _voxels(box: Box) -> int:
    return prod(s.stop - s.start for s in box)


def box_text(box: Box) -> str:
    return f"[{', '.join(f'{s.start}:{s.stop}' for s in box)}]"
