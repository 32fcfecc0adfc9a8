"""Boxes of voxels, a slice for each dimension, and what can be said of them: size, common part, text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod

__all__ = ["Box", "Region", "box_text", "intersection", "intervals", "sizes", "voxels", "within"]

Box = tuple[slice, ...]
"""One slice for each spatial dimension."""

Region = tuple[slice, ...]
"""One slice for the channels and one for each spatial dimension."""


def sizes(box: Box) -> tuple[int, ...]:
    """
    >>> sizes((slice(2, 4), slice(0, 5)))
    (2, 5)
    """
    return tuple([side.stop - side.start for side in box])


def voxels(box: Box) -> int:
    """
    >>> voxels((slice(2, 4), slice(0, 5)))
    10
    """
    return prod(side.stop - side.start for side in box)


def intersection(first: Box, second: Box) -> Box:
    """What two boxes that touch have in common.

    >>> intersection((slice(0, 4), slice(0, 5)), (slice(2, 6), slice(1, 9)))
    (slice(2, 4, None), slice(1, 5, None))
    """
    return tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(first, second))


def within(box: Box, outer: Box) -> Region:
    """A box counted from the start of another, for all channels.

    >>> within((slice(2, 4),), (slice(1, 9),))
    (slice(None, None, None), slice(1, 3, None))
    """
    return (slice(None), *(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer)))


def intervals(cuts: Sequence[int]) -> list[slice]:
    """
    >>> intervals((0, 2, 5))
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]


def box_text(box: Box) -> str:
    """As messages show it.

    >>> box_text((slice(0, 4), slice(1, 5)))
    '[0:4, 1:5]'
    """
    return f"[{', '.join(f'{side.start}:{side.stop}' for side in box)}]"
