"""Where ``grid_sample`` reads for an affine that turns a volume a very little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Oblique", "source_places"]


ZEROS, BORDER, REFLECTION = 0, 1, 2
"""How ``grid_sample`` numbers what lies beyond the border."""


@dataclass(frozen=True)
class Oblique:
    """The coordinates of ``affine_grid`` and ``grid_sample`` for an affine that is not quite without rotation.

    The affine of a patient is stored in float32, so its columns are not quite at right angles, and the grid that is
    made of it with other spacing is turned against it by 1e-8 or so. A coordinate is off by less than a thousandth of
    a voxel then, but it is off.

    Attributes:
        theta: normalised affine, ``(dims, dims + 1)``, the last dimension of the frame first.
        base: for each dimension that is read, the normalised coordinate of each voxel that is made.
        index: for each dimension that is read, from places in the frame to voxels; -1: zeros.
        voxels: how many ``affine_grid`` has made at a time.
        padding_mode: 0: zeros beyond the border of the frame, 1: the border, 2: reflection.
        align_corners: as in ``grid_sample``.
        shift: the most that coordinates are off along each axis, in voxels.
    """

    theta: np.ndarray
    base: tuple[np.ndarray, ...]
    index: tuple[np.ndarray, ...]
    voxels: int
    padding_mode: int
    align_corners: bool
    shift: float

    def points(self, voxels: Sequence[np.ndarray], frame: Sequence[int]) -> np.ndarray:
        """What :py:attr:`theta` is multiplied with, ``(voxels, dims + 1)``.

        Args:
            voxels: that are made, for each dimension that is read.
            frame: the dimensions that are read, as ``grid_sample`` orders them.
        """
        base = [self.base[d][voxels[d]] for d in reversed(frame)]
        return np.stack([*base, np.ones_like(base[0])], axis=1)

    def corners(
        self, coordinates: np.ndarray, frame: Sequence[int], nearest: bool
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """What voxels are made of: for each dimension that is read two places, -1 for a zero, and their weights.

        Args:
            coordinates: normalised, ``(voxels, dims)``: their :py:meth:`points` times :py:attr:`theta`.
            frame: the dimensions that are read, as ``grid_sample`` orders them.
            nearest: whether ``grid_sample`` takes the nearest voxel.
        """
        corners: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in frame]
        for row, d in enumerate(reversed(frame)):
            size = len(self.index[d])
            at = source_places(coordinates[:, row], size, self.padding_mode, self.align_corners)
            low = np.rint(at) if nearest else np.floor(at)
            weights = (np.ones_like(at), np.zeros_like(at)) if nearest else (low + 1 - at, at - low)
            for place, weight in zip((low, low + 1), weights):
                inside = (place >= 0) & (place < size)  # not for NaN
                index = np.where(inside, self.index[d][np.where(inside, place, 0).astype(np.int64)], -1)
                corners[d].append((index, np.where(index < 0, 0, weight)))
        return corners


def source_places(coordinate: np.ndarray, size: int, padding_mode: int, align_corners: bool) -> np.ndarray:
    """From normalised coordinates to places in a dimension of so many voxels, as ``grid_sample`` has them."""
    at = (coordinate + 1) / 2 * (size - 1) if align_corners else ((coordinate + 1) * size - 1) / 2
    if padding_mode == REFLECTION:
        least, most = (0, 2 * (size - 1)) if align_corners else (-1, 2 * size - 1)
        if least == most:
            return np.zeros_like(at)
        start, span = least / 2, (most - least) / 2
        away = np.abs(at - start)
        rest, flips = np.fmod(away, span), np.floor(away / span)
        at = np.where(flips % 2 == 0, rest + start, span - rest + start)
    return at if padding_mode == ZEROS else np.clip(at, 0, size - 1)
