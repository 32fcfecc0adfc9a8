"""What a phantom is made of: ellipsoids and tubes in mm, painted into a volume where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Canvas", "Ellipsoid", "Shape", "Tube"]

Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]
Coordinates = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Ellipsoid:
    """
    An ellipsoid along the axes, or leaning sidewards.

    Attributes:
        center: in mm.
        radii: half of its length in each dimension, in mm; `math.inf`: it has no end.
        lean: mm to the right for each mm upwards.
    """

    center: Point
    radii: Point
    lean: float = 0

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        reach = np.array(self.radii) + (abs(self.lean) * self.radii[2] if self.lean else 0, 0, 0)
        return self.center - reach, self.center + reach

    def level(self, points: Coordinates) -> np.ndarray:
        """Squared distance from the center, 1 at the surface."""
        total = np.zeros(points[0].shape, np.float32)
        for dimension, radius in enumerate(self.radii):
            if np.isfinite(radius):
                offset = (points[dimension] - self.center[dimension]) / radius
                if self.lean and dimension == 0:
                    offset -= (points[2] - self.center[2]) * (self.lean / radius)
                total += np.square(offset, out=offset)
        return total

    def contains(self, points: Coordinates) -> np.ndarray:
        return self.level(points) <= 1


@dataclass(frozen=True)
class Tube:
    """
    A tube with round ends from one point to the next, as thick as its radii say, in between as thick as in between.

    Attributes:
        points: of its axis, in mm.
        radii: at each point, in mm.
    """

    points: tuple[Point, Point]
    radii: tuple[float, float]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        reach = max(self.radii)
        return np.min(self.points, 0) - reach, np.max(self.points, 0) + reach

    def contains(self, points: Coordinates) -> np.ndarray:
        start, end = (np.array(point, np.float32) for point in self.points)
        axis = end - start
        offset = [each - begin for each, begin in zip(points, start, strict=True)]
        along = sum(each * step for each, step in zip(offset, axis, strict=True)) / max(float(axis @ axis), 1e-6)
        along = np.clip(along, 0, 1)
        distance = sum((each - along * step) ** 2 for each, step in zip(offset, axis, strict=True))
        first, last = self.radii
        return distance <= (first + along * (last - first)) ** 2


Shape = Ellipsoid | Tube


def tubes(points: Sequence[Point], radii: Sequence[float]) -> Iterator[Tube]:
    """One tube for each piece of a line.

    >>> [tube.radii for tube in tubes([(0, 0, 0), (0, 0, 9), (5, 0, 9)], [3, 2, 1])]
    [(3, 2), (2, 1)]
    """
    for (start, first), (end, last) in zip(zip(points, radii), zip(points[1:], radii[1:])):
        yield Tube((start, end), (first, last))


class Canvas:
    """
    Intensities and labels, and where each voxel lies.

    The points are bent by waves of low frequency, so that what is painted is bent too.

    Args:
        axes: coordinate of the voxels in each dimension, in mm.
        intensity: of all voxels to begin with.
        waves: draws the waves; ``None``: there are none.
        bend: amplitude of the waves in mm.
    """

    def __init__(
        self, axes: Sequence[np.ndarray], intensity: float, waves: np.random.Generator | None = None, bend: float = 0
    ) -> None:
        size = tuple(len(axis) for axis in axes)
        self.axes = axes
        self.bend = bend if waves is not None else 0
        self.points = tuple(np.empty(size, np.float32) for _ in size)
        for dimension, points in enumerate(self.points):
            points[:] = _along(axes[dimension], dimension)
            if waves is not None:
                points += _waves(axes, waves, bend)
        self.intensity = np.full(size, intensity, np.float32)
        self.labels = np.zeros(size, np.uint8)

    def box(self, shape: Shape) -> Box:
        """Where a shape lies."""
        low, high = shape.bounds()
        found = []
        for axis, start, stop in zip(self.axes, low - 2 * self.bend, high + 2 * self.bend, strict=True):
            found.append(slice(int(np.searchsorted(axis, start)), int(np.searchsorted(axis, stop))))
        return found[0], found[1], found[2]

    def paint(
        self,
        shapes: Sequence[Shape],
        intensity: float,
        label: int | None = None,
        within: np.ndarray | None = None,
        without: Sequence[Shape] = (),
    ) -> None:
        """Paint shapes over what is there.

        Args:
            shapes: what is painted.
            intensity: of its voxels.
            label: of its voxels; ``None``: they keep theirs.
            within: a mask of the volume, outside which nothing is painted.
            without: shapes in which nothing is painted.
        """
        for shape in shapes:
            box = self.box(shape)
            points = self.points[0][box], self.points[1][box], self.points[2][box]
            mask = shape.contains(points)
            if within is not None:
                mask &= within[box]
            for other in without:
                mask &= ~other.contains(points)
            self.intensity[box][mask] = intensity
            if label is not None:
                self.labels[box][mask] = label


def _along(axis: np.ndarray, dimension: int) -> np.ndarray:
    shape = [1, 1, 1]
    shape[dimension] = -1
    return axis.astype(np.float32).reshape(shape)


def _waves(axes: Sequence[np.ndarray], rng: np.random.Generator, bend: float) -> np.ndarray:
    """Two waves of 120 to 250 mm in each dimension, of at most `bend` mm together."""
    total = np.zeros([len(axis) for axis in axes], np.float32)
    for _ in range(2):
        wave = np.full((1, 1, 1), bend * rng.uniform(0.2, 0.5), np.float32)
        for dimension, axis in enumerate(axes):
            phase, length = rng.uniform(0, 2 * np.pi), rng.uniform(120, 250)
            wave = wave * np.sin(2 * np.pi * _along(axis, dimension) / length + phase, dtype=np.float32)
        total += wave
    return total
