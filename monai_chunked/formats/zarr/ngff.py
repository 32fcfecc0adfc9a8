"""
What OME-Zarr 0.5 says of an image: axes, where its voxels lie, resolution levels. Functions of metadata and shapes.

The specification is https://ngff.openmicroscopy.org/0.5. It knows scale and translation but no rotation, so what is
written are the coordinates of a system that is turned with the image: distances are right, images on parallel grids lie
right over each other, and where the image is not turned the coordinates are those of the world. The whole affine is
beside them, under a key of our own.

Of an OME-Zarr input the order, names and units of the axes are taken over (``axes`` and ``axis_units`` of its
metadata), so that a viewer lays the result over it. Otherwise axes keep MONAI's order, ``(C, *spatial)``, so that an
array indexes as the tensor does. Where there is an affine each is called after the axis of the world that it is closest
to: ``c, x, y, z`` for what ``LoadImage`` reads of a volume in RAS or LPS orientation. Where there is none they are ``c,
z, y, x``, as the specification recommends.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from monai.data.utils import affine_to_spacing, to_affine_nd

from monai_chunked.outputs.base import Metadata
from monai_chunked.plan.units import MILLIMETERS, length_unit

__all__ = ["Placing", "attributes", "downsample", "image_label", "level_shapes", "placing"]


NAMES = "xyz"


MOST_COLORS = 1000
"""The most labels that get a colour and a name; more of them are instances, which viewers colour by themselves."""


UNITS = {1: "meter", 2: "millimeter", 3: "micrometer"}
"""By the spatial code of NIfTI's ``xyzt_units``; an unknown code has no unit."""


MILLIMETER_CODE = 2
"""The spatial code of what MONAI reads in other formats."""


@dataclass(frozen=True)
class Placing:
    """Where the voxels of an image lie. All is in the order of the store.

    Attributes:
        names: of the spatial axes.
        units: of ``scale`` and ``translation``, for each spatial axis; ``None``: voxels, or it is not known.
        scale: distance of two neighbouring voxels, for each spatial axis.
        translation: coordinates of the centre of the first voxel.
        order: for each dimension of the store, that of ``(C, *spatial)``.
    """

    names: tuple[str, ...]
    units: tuple[str | None, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    order: tuple[int, ...]

    def at(self, level: int, shapes: Sequence[Sequence[int]]) -> Placing:
        """Where the voxels of a level lie, which cover those of the first. Shapes are of all levels in the store."""
        factors = [2 ** sum(above[d] > 1 for above in shapes[:level]) for d in range(1, len(shapes[0]))]
        scale = tuple(step * factor for step, factor in zip(self.scale, factors))
        translation = tuple(start + (n - 1) / 2 * step for start, step, n in zip(self.translation, self.scale, factors))
        return Placing(self.names, self.units, scale, translation, self.order)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all dimensions."""
        return ("c", *self.names)


def placing(metadata: Metadata, dims: int) -> Placing:
    """Where the metadata of an image say that its voxels lie.

    Args:
        metadata: as in ``MetaTensor.meta``; of use are ``affine``, ``xyzt_units``, ``axes`` and ``axis_units``.
        dims: number of spatial dimensions, 2 or 3.

    >>> placing({"affine": np.diag([-1.0, 1.0, 2.5, 1.0])}, 3).names
    ('x', 'y', 'z')
    >>> placing({"affine": np.diag([-1.0, 1.0, 2.5, 1.0]), "axes": "zyx", "axis_units": ["micrometer", "", ""]}, 3)
    ... # doctest: +NORMALIZE_WHITESPACE
    Placing(names=('z', 'y', 'x'), units=('micrometer', None, None), scale=(2500.0, 1.0, 1.0),
            translation=(0.0, 0.0, 0.0), order=(0, 3, 2, 1))
    """
    unmoved = tuple(range(dims + 1))
    if metadata.get("affine") is None:
        return Placing(tuple(NAMES[:dims][::-1]), (None,) * dims, (1.0,) * dims, (0.0,) * dims, unmoved)
    affine = to_affine_nd(dims, np.asarray(metadata["affine"], np.float64))
    scale = affine_to_spacing(affine, dims)
    directions = affine[:dims, :dims] / scale
    translation = directions.T @ affine[:dims, dims] + 0.0  # no negative zeros
    closest = nibabel.io_orientation(affine)[:, 0]
    names = tuple(NAMES[:dims]) if np.isnan(closest).any() else tuple(NAMES[int(world)] for world in closest)
    wanted = tuple(metadata.get("axes", ()))
    if sorted(wanted) != sorted(names):
        code = int(np.max(metadata.get("xyzt_units", MILLIMETER_CODE))) & 7
        units: tuple[str | None, ...] = (UNITS.get(code),) * dims
        return Placing(names, units, tuple(scale.tolist()), tuple(translation.tolist()), unmoved)
    order = [names.index(name) for name in wanted]
    units = tuple(length_unit(unit) for unit in metadata.get("axis_units", ("",) * dims))
    lengths = [MILLIMETERS.get(unit or "", 1.0) for unit in units]

    def in_units(values: np.ndarray) -> tuple[float, ...]:
        return tuple(float(f"{values[d] / length:.15g}") for d, length in zip(order, lengths))  # 0.3, not 0.3 + 6e-17

    return Placing(wanted, units, in_units(scale), in_units(translation), (0, *(d + 1 for d in order)))


def level_shapes(shape: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Shapes ``(C, *spatial)`` of all resolution levels; each halves the one before, and rounds up.

    >>> level_shapes((4, 9, 2), 4)
    [(4, 9, 2), (4, 5, 1), (4, 3, 1), (4, 2, 1)]
    """
    shapes = [tuple(shape)]
    while len(shapes) < levels:
        shapes.append((shape[0], *((size + 1) // 2 for size in shapes[-1][1:])))
    return shapes


def downsample(array: np.ndarray, nearest: bool) -> np.ndarray:
    """``(C, *spatial)`` at half the resolution, from an even voxel on. A last voxel without a pair stays as it is.

    Args:
        array: of any dtype.
        nearest: take the first voxel of each two in every dimension, as for labels; otherwise the mean of all.
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


def attributes(
    metadata: Metadata, name: str, shapes: Sequence[Sequence[int]], *, nearest: bool, label: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Attributes of the group that holds the levels, as arrays ``"0"``, ``"1"``, ...

    Args:
        metadata: of the image.
        name: of the image.
        shapes: of the levels in the store.
        nearest: how levels are made, see :py:func:`downsample`.
        label: what :py:func:`image_label` says if voxels are labels.
    """
    first = placing(metadata, len(shapes[0]) - 1)
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    for axis, unit in zip(first.names, first.units):
        axes.append({"name": axis, "type": "space"} | ({} if unit is None else {"unit": unit}))
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
    if label is not None:
        ome["image-label"] = dict(label)
    ours: dict[str, Any] = {}
    if metadata.get("affine") is not None:
        ours["affine"] = np.asarray(metadata["affine"], np.float64).tolist()
        if "space" in metadata:
            ours["space"] = str(getattr(metadata["space"], "value", metadata["space"]))
    return {"ome": ome, "monai_chunked": ours}


def image_label(greatest: int, names: Mapping[int, str], source: str | None) -> dict[str, Any]:
    """What OME-Zarr says of labels: a colour and a name for each but the background, and the image that they lie over.

    Args:
        greatest: of the labels in the image.
        names: of labels, as far as they have one.
        source: path of the image, from the group of the labels; ``None``: it is no OME-Zarr image.

    >>> image_label(1, {1: "nucleus"}, "../../")["properties"]
    [{'label-value': 1, 'name': 'nucleus'}]
    """
    stated: dict[str, Any] = {"version": "0.5"}
    values = sorted({*range(1, greatest + 1), *names}) if greatest <= MOST_COLORS else sorted(names)
    if values:
        stated["colors"] = [{"label-value": value, "rgba": _color(value)} for value in values]
        stated["properties"] = [{"label-value": value, "name": names.get(value, f"label {value}")} for value in values]
    if source is not None:
        stated["source"] = {"image": source}
    return stated


def _color(label: int) -> list[int]:
    """A colour of a label; the golden ratio gives neighbouring labels hues that are far from each other."""
    if label == 0:
        return [0, 0, 0, 0]
    hue, dark = label * 0.618034 % 1, label // 12 % 3
    return [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 1 - 0.2 * dark)] + [255]
