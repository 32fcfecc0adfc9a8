"""
From one grid of voxels to another: which voxels each voxel is made of, and what that means for chunks.

The inverse of a bundle's preprocessing is made of few things: dimensions are swapped and turned round, voxels are cut
off or added at the borders, and the grid gets another spacing. All of it is separable: where a voxel lies in one
dimension says which two voxels of the other grid it lies between there. Along one dimension, from five voxels to nine::

    read     0       1       2       3       4
    made     0   1   2   3   4   5   6   7   8
    low      0   0   1   1   2   2   3   3   4
    high     1   1   2   2   3   3   4   4   4

A chunk makes the voxels whose last voxel to read lies in it. Besides itself it needs a face of the chunk before it,
which scan order has finished by then, so nothing ever waits for what comes later, and only faces are kept. Where the
chunk before it is thinner than the face, it needs one of the chunk before that too.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple

import numpy as np

from monai_chunked.plan.boxes import Box
from monai_chunked.resampling.oblique import Oblique

__all__ = ["Axis", "AxisPart", "ChunkResampling", "Face", "Kind", "Resampling", "Unstreamable", "in_one_order"]


Kind = Literal["copy", "product", "nested", "mean"]
"""How a voxel is made: copied, or of the corners around it as ``grid_sample`` does (corners times the product of their
weights), as ``interpolate`` does (dimension by dimension), or as a mean of them."""


class Unstreamable(ValueError):
    """What cannot be done a chunk at a time; the message says why."""


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid, made of one of another. An array has one element for each voxel that is made.

    Attributes:
        low, high: the two voxels that it is made of, int64; -1: there is none, and a zero in its place. A copy is made
            of the first; another second one means that only the coordinates tell which it is.
        low_weight, high_weight: their weights, of the dtype of the computation.
        first, last: the first and the last voxel that may be needed for it; -1: none is.
        size: of the dimension that is read.
    """

    low: np.ndarray
    high: np.ndarray
    low_weight: np.ndarray
    high_weight: np.ndarray
    first: np.ndarray
    last: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.low)

    @property
    def corners(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """The low and the high voxels, with their weights."""
        return (self.low, self.low_weight), (self.high, self.high_weight)

    @classmethod
    def of(
        cls, low: np.ndarray, high: np.ndarray, *, low_weight: np.ndarray, high_weight: np.ndarray, size: int
    ) -> Axis:
        """An axis that needs both voxels, also one whose weight is 0: zero times what is not finite is not zero."""
        first = np.where(low < 0, high, np.where(high < 0, low, np.minimum(low, high)))
        return cls(low, high, low_weight, high_weight, first, np.maximum(low, high), size)

    @classmethod
    def copy(cls, index: np.ndarray, size: int) -> Axis:
        """An axis whose voxels are those of another one, at these places (-1: zeros)."""
        weight = (index >= 0).astype(np.float64)
        return cls.of(index, index, low_weight=weight, high_weight=np.zeros_like(weight), size=size)

    def take(self, index: np.ndarray) -> Axis:
        """The voxels at these places, also in another order; -1: a voxel that is made of nothing."""
        nothing, at = index < 0, np.where(index < 0, 0, index)

        def taken(values: np.ndarray, none: float) -> np.ndarray:
            return np.where(nothing, none, values[at]).astype(values.dtype)

        low, high, first, last = (taken(voxels, -1) for voxels in (self.low, self.high, self.first, self.last))
        return Axis(low, high, taken(self.low_weight, 0), taken(self.high_weight, 0), first, last, self.size)

    def part(self, made: slice, read: slice) -> Axis:
        """The voxels of a slice, made of those of another slice alone, which are counted from its start."""

        def moved(index: np.ndarray) -> np.ndarray:
            here = index[made]
            return np.where((here >= read.start) & (here < read.stop), here - read.start, -1)

        weights = self.low_weight[made], self.high_weight[made]
        places = moved(self.low), moved(self.high)
        return Axis(*places, *weights, moved(self.first), moved(self.last), read.stop - read.start)


class AxisPart(NamedTuple):
    """What one chunk makes along one dimension.

    Attributes:
        made: the voxels that it makes; may be empty.
        halo: how many voxels before the chunk that needs.
        back: in how many chunks before it these lie: one, unless that is thinner than they are.
    """

    made: slice
    halo: int
    back: int


class Face(NamedTuple):
    """What chunks behind a chunk need of it along one dimension.

    Attributes:
        depth: how many of its last voxels.
        users: how many chunks along the dimension.
    """

    depth: int
    users: int


@dataclass(frozen=True)
class Resampling:
    """A grid made of another one.

    Attributes:
        axes: for each dimension of the grid that is read.
        order: for each dimension of the grid that is made, the dimension that is read.
        frame: the dimensions that are read, as the computation orders them: of two voxels that lie beside each other
            along the last one the products are added up first.
        kind: how voxels are made.
        oblique: what coordinates are made of where they also depend, a little, on where a voxel lies in the other
            dimensions, so that the axes hold what is nearly so; ``None``: they do not.
    """

    axes: tuple[Axis, ...]
    order: tuple[int, ...]
    frame: tuple[int, ...]
    kind: Kind
    oblique: Oblique | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size of the grid that is made, in voxels."""
        return tuple(len(self.axes[d]) for d in self.order)

    def over(self, cuts: Sequence[Sequence[int]]) -> ChunkResampling:
        """How chunks make it.

        Args:
            cuts: for each dimension that is read, where chunks begin, and the size; ascending from 0.
        """
        parts = [tuple(_parts(axis, along)) for axis, along in zip(self.axes, cuts)]
        return ChunkResampling(self, tuple(parts), tuple(map(_faces, parts, cuts)))


@dataclass(frozen=True)
class ChunkResampling:
    """A grid made chunk by chunk of another one.

    Attributes:
        resampling: from which voxels to which.
        parts: what chunks make, for each dimension that is read, and each chunk along it.
        faces: what chunks behind need of a chunk, likewise.
    """

    resampling: Resampling
    parts: tuple[tuple[AxisPart, ...], ...]
    faces: tuple[tuple[Face, ...], ...]

    @cached_property
    def cuts(self) -> tuple[tuple[int, ...], ...]:
        """For each dimension of the grid that is made, where the boxes that chunks make begin, and the size."""
        return tuple(tuple(sorted({0, *(part.made.stop for part in self.parts[d])})) for d in self.resampling.order)

    def of(self, position: Sequence[int]) -> tuple[AxisPart, ...]:
        """What a chunk makes, for each dimension that is read."""
        return tuple(parts[k] for parts, k in zip(self.parts, position))

    def made(self, position: Sequence[int]) -> Box:
        """The box that a chunk makes, in the grid that is made."""
        parts = self.of(position)
        return tuple(parts[d].made for d in self.resampling.order)

    def place(self, position: Sequence[int]) -> tuple[int, ...]:
        """Which box of the grid that is made a chunk makes, counted along each dimension."""
        return tuple(cuts.index(side.start) for cuts, side in zip(self.cuts, self.made(position)))

    def needed(self, places: Container[tuple[int, ...]]) -> set[tuple[int, ...]]:
        """The chunks of which some boxes are made, and those before them of which that takes a face."""
        chunks: set[tuple[int, ...]] = set()
        for position in itertools.product(*[range(len(parts)) for parts in self.parts]):
            if self.makes(position) and self.place(position) in places:
                chunks.update((position, *(earlier for _, earlier in self.before(position))))
        return chunks

    def makes(self, position: Sequence[int]) -> bool:
        """Whether a chunk makes any voxel."""
        return all(part.made.stop > part.made.start for part in self.of(position))

    def kept(self, position: Sequence[int]) -> list[int]:
        """For each dimension, how many of the last voxels of a chunk those behind it need."""
        return [faces[k].depth for faces, k in zip(self.faces, position)]

    def before(self, position: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The chunks of which a chunk needs a face: along which dimension it lies, and which chunk.

        A chunk that lies before it in several dimensions has the voxels in several of its faces. It is asked for the
        one along the first of these, so that others can be dropped early.
        """
        for steps in itertools.product(*[range(part.back + 1) for part in self.of(position)]):
            if any(steps):
                dim = next(d for d, step in enumerate(steps) if step)
                yield dim, tuple(k - step for k, step in zip(position, steps))

    def users(self, position: Sequence[int], dim: int) -> int:
        """How many chunks will ask for a face of a chunk."""
        users = [faces[k].users for faces, k in zip(self.faces, position)]
        return users[dim] * prod(1 + more for more in users[dim + 1 :])


def in_one_order(images: Sequence[Sequence[Resampling]]) -> tuple[tuple[Resampling, ...], ...]:
    """The same grids, of which chunks make the same boxes for all images of a batch.

    A voxel is made with the last chunk that it needs in any of the images.

    Args:
        images: for each image, the resamplings that it goes through.

    Raises:
        Unstreamable: when images come to their grids over grids of other sizes.
    """
    sizes = [[(step.size, step.order, [axis.size for axis in step.axes]) for step in image] for image in images]
    if any(of_image != sizes[0] for of_image in sizes):
        raise Unstreamable(
            "the images of the batch were cropped, padded or resampled each in another way; with batch_size: 1 in the "
            "data loader it is done a chunk at a time"
        )
    last = [
        [np.maximum.reduce([step.axes[d].last for step in steps]) for d in range(len(steps[0].axes))]
        for steps in zip(*images)
    ]
    return tuple(
        tuple(
            replace(step, axes=tuple(replace(axis, last=latest) for axis, latest in zip(step.axes, of_step)))
            for step, of_step in zip(image, last)
        )
        for image in images
    )


def _parts(axis: Axis, cuts: Sequence[int]) -> Iterator[AxisPart]:
    """What each chunk along a dimension makes."""
    first, last = axis.first, axis.last
    count = len(cuts) - 1
    reading = np.flatnonzero(last >= 0)
    if not len(reading):  # nothing of it is read: all is made at the end
        yield from (AxisPart(slice(0, 0), 0, 0) for _ in range(count - 1))
        yield AxisPart(slice(0, len(axis)), 0, 0)
        return
    # a voxel that is made of nothing, or of voxels further back, goes with the one before it
    turned = last[reading[0]] > last[reading[-1]]
    order = slice(None, None, -1 if turned else 1)
    latest = np.maximum.accumulate(last[order])
    latest[latest < 0] = latest[latest >= 0][0]
    chunks = (np.searchsorted(cuts, latest, side="right") - 1)[order]
    for k in range(count):
        at = np.flatnonzero(chunks == k)
        if not len(at):
            # between its neighbours, so that all parts together cover the grid
            edge = int(np.sum(chunks > k if turned else chunks < k))
            yield AxisPart(slice(edge, edge), 0, 0)
            continue
        needed = first[at][first[at] >= 0]
        start = min(cuts[k], int(needed.min())) if len(needed) else cuts[k]
        back = k + 1 - int(np.searchsorted(cuts, start, side="right"))
        yield AxisPart(slice(int(at[0]), int(at[-1]) + 1), cuts[k] - start, back)


def _faces(parts: Sequence[AxisPart], cuts: Sequence[int]) -> tuple[Face, ...]:
    """What is needed of each chunk along a dimension."""
    faces = []
    for j, (start, stop) in enumerate(itertools.pairwise(cuts)):
        firsts = [cuts[k] - part.halo for k, part in enumerate(parts) if k > j and k - part.back <= j]
        faces.append(Face(stop - max(start, min(firsts)) if firsts else 0, len(firsts)))
    return tuple(faces)
