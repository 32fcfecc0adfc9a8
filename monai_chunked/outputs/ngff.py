"""
What OME-Zarr 0.5 says of an image: axes, where its voxels lie, resolution levels. Functions of metadata and shapes.

The specification is https://ngff.openmicroscopy.org/0.5. It knows scale and translation but no rotation, so what is
written are the coordinates of a system that is turned with the image: distances are right, images on parallel grids lie
right over each other, and where the image is not turned the coordinates are those of the world. The whole affine is
beside them, under a key of our own.

Axes keep MONAI's order, ``(C, *spatial)``, so that an array indexes as the tensor does, and each is called after the
axis of the world that it is closest to: ``c, x, y, z`` for what ``LoadImage`` reads of a volume in RAS or LPS
orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from monai.data.utils import affine_to_spacing, to_affine_nd

from monai_chunked.outputs.base import Metadata

__all__ = ["Placing", "attributes", "axis_names", "downsample", "level_shapes", "placing"]

NAMES = "xyz"

UNITS = {1: "meter", 2: "millimeter", 3: "micrometer"}
"""By the spatial code of NIfTI's ``xyzt_units``; MONAI takes what is unknown for millimeters."""


@dataclass(frozen=True)
class Placing:
    """Where the voxels of an image lie.

    Attributes:
        names: of the spatial axes.
        unit: of ``scale`` and ``translation``; ``None``: voxels.
        scale: distance of two neighbouring voxels, for each spatial axis.
        translation: coordinates of the centre of the first voxel.
    """

    names: tuple[str, ...]
    unit: str | None
    scale: tuple[float, ...]
    translation: tuple[float, ...]

    def at(self, level: int, shapes: Sequence[Sequence[int]]) -> Placing:
        """That of a level whose voxels cover those of the first. Shapes are those of all levels, ``(C, *spatial)``."""
        factors = [2 ** sum(above[d] > 1 for above in shapes[:level]) for d in range(1, len(shapes[0]))]
        scale = tuple(s * f for s, f in zip(self.scale, factors))
        translation = tuple(t + (f - 1) / 2 * s for t, s, f in zip(self.translation, self.scale, factors))
        return Placing(self.names, self.unit, scale, translation)


def placing(metadata: Metadata, dims: int) -> Placing:
    """Where the metadata of an image say that its voxels lie.

    Args:
        metadata: as in ``MetaTensor.meta``; of use are ``affine`` and ``xyzt_units``.
        dims: number of spatial dimensions, 2 or 3.

    >>> placing({"affine": np.diag([-1.0, 1.0, 2.5, 1.0])}, 3)
    Placing(names=('x', 'y', 'z'), unit='millimeter', scale=(1.0, 1.0, 2.5), translation=(0.0, 0.0, 0.0))
    """
    if metadata.get("affine") is None:
        return Placing(tuple(NAMES[:dims]), None, (1.0,) * dims, (0.0,) * dims)
    affine = to_affine_nd(dims, np.asarray(metadata["affine"], np.float64))
    scale = affine_to_spacing(affine, dims)
    directions = affine[:dims, :dims] / scale
    translation = directions.T @ affine[:dims, dims] + 0.0  # no negative zeros
    closest = nibabel.io_orientation(affine)[:, 0]
    names = NAMES[:dims] if np.isnan(closest).any() else [NAMES[int(world)] for world in closest]
    code = int(np.max(metadata.get("xyzt_units", 2))) & 7
    return Placing(tuple(names), UNITS.get(code, UNITS[2]), tuple(scale.tolist()), tuple(translation.tolist()))


def axis_names(metadata: Metadata, dims: int) -> tuple[str, ...]:
    """Of ``(C, *spatial)``."""
    return ("c", *placing(metadata, dims).names)


def level_shapes(shape: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Of ``(C, *spatial)`` at each resolution level; each halves what is longer than one voxel, and rounds up.

    >>> level_shapes((4, 9, 2), 4)
    [(4, 9, 2), (4, 5, 1), (4, 3, 1), (4, 2, 1)]
    """
    shapes = [tuple(shape)]
    while len(shapes) < levels:
        shapes.append((shape[0], *((size + 1) // 2 for size in shapes[-1][1:])))
    return shapes


def downsample(array: np.ndarray, nearest: bool) -> np.ndarray:
    """Half the resolution of ``(C, *spatial)``, from an even voxel on; a last one without a pair stays as it is.

    Args:
        array: of any dtype.
        nearest: the first voxel of each two in every dimension, as for labels; otherwise the mean of all.
    """
    if nearest:
        return array[(slice(None), *[slice(None, None, 2)] * (array.ndim - 1))]
    result = array.astype(np.promote_types(array.dtype, np.float32), copy=False)
    for axis in range(1, array.ndim):
        first = result.take(range(0, result.shape[axis], 2), axis)
        second = result.take(range(1, result.shape[axis], 2), axis)
        pairs = (slice(None),) * axis + (slice(0, second.shape[axis]),)
        first[pairs] += second
        first[pairs] *= 0.5
        result = first
    return result.astype(array.dtype, copy=False)


def attributes(metadata: Metadata, name: str, shapes: Sequence[Sequence[int]], nearest: bool, label: bool) -> dict:
    """Of the group that holds the levels, as arrays ``"0"``, ``"1"``, ...

    Args:
        metadata: of the image.
        name: of the image.
        shapes: of the levels, ``(C, *spatial)``.
        nearest: how levels are made, see :py:func:`downsample`.
        label: whether voxels are labels.
    """
    first = placing(metadata, len(shapes[0]) - 1)
    unit = {} if first.unit is None else {"unit": first.unit}
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", **unit} for n in first.names)]
    datasets = []
    for level in range(len(shapes)):
        at = first.at(level, shapes)
        scale = {"type": "scale", "scale": [1.0, *at.scale]}
        translation = {"type": "translation", "translation": [0.0, *at.translation]}
        datasets.append({"path": str(level), "coordinateTransformations": [scale, translation]})
    multiscale: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets}
    if len(shapes) > 1:
        multiscale["type"] = "nearest" if nearest else "mean"
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
    if label:
        ome["image-label"] = {"version": "0.5"}
    ours: dict[str, Any] = {}
    if metadata.get("affine") is not None:
        ours["affine"] = np.asarray(metadata["affine"], np.float64).tolist()
        if "space" in metadata:
            ours["space"] = str(getattr(metadata["space"], "value", metadata["space"]))
    return {"ome": ome, "monai_chunked": ours}
