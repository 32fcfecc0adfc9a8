"""Arrays whose dimensions have names, ``t``, ``c``, ``x``, ``y`` and ``z`` in any order, as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

from monai_chunked.inputs.lazy.image_array import ImageArray
from monai_chunked.inputs.lazy.lazy_array import Array, storage_chunks
from monai_chunked.machine.caller import warn_caller
from monai_chunked.plan.units import MILLIMETERS, length_unit

__all__ = ["NamedAxis", "arrange"]


LETTERS = "tcxyz"


MILLIMETER_CODE = 2
"""Millimeters in NIfTI's ``xyzt_units``."""


@dataclass(frozen=True)
class NamedAxis:
    """What a file says of a dimension of its array.

    Attributes:
        name: of the dimension; empty if it has none.
        kind: what its metadata call its type; ``"time"`` and ``"channel"`` count.
        unit: of ``scale`` and ``translation``; ``None`` if the file names none.
        scale: distance of two neighbours.
        translation: where the first one is.
    """

    name: str = ""
    kind: str | None = None
    unit: str | None = None
    scale: float = 1.0
    translation: float = 0.0

    @property
    def letter(self) -> str | None:
        """
        >>> NamedAxis("Z").letter, NamedAxis("channels", "channel").letter, NamedAxis("depth", "space").letter
        ('z', 'c', None)
        """
        name = self.name.lower()
        return name if name in tuple(LETTERS) else {"time": "t", "channel": "c"}.get(self.kind or "")


def arrange(
    array: Array,
    path: str,
    *,
    axes: str | None,
    described: Sequence[NamedAxis],
    time: int | None,
    further: Mapping[str, Any] | None = None,
) -> ImageArray:
    """An array as an image ``(t, c, x, y, z)``, without those of ``x``, ``y`` and ``z`` that it does not have.

    Args:
        array: with ``shape``, ``dtype`` and slicing.
        path: of the array, for metadata and messages.
        axes: a letter for each dimension; ``None``: as they are described.
        described: what the file says of each dimension; it holds whatever letter ``axes`` gives the dimension.
        time: the point of a time series; ``None``: all of them, as a batch.
        further: metadata beside those.

    Raises:
        ValueError: when ``axes`` or ``time`` do not fit, or there is no spacing.
    """
    shape = tuple(array.shape)
    axes = _checked(axes, shape, path, described)
    points = shape[axes.index("t")] if "t" in axes else 1
    if time is not None and not 0 <= time < points:
        raise ValueError(f"time={time} must be at least 0 and less than {points}, the time points of {path}")
    spatial = [letter for letter in "xyz" if letter in axes]
    order = tuple(axes.index(letter) if letter in axes else None for letter in ["t", "c", *spatial])
    meta = {
        **_placed(axes, path, described),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.array([shape[axes.index(letter)] for letter in spatial]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: axes.index("c") if "c" in axes else float("nan"),
        ImageMetaKey.FILENAME_OR_OBJ: path,
        **(further or {}),
    }
    names = _names(points)
    chunks: Any = storage_chunks(array)
    if time is None or "t" not in axes:
        return ImageArray(array, order, [{**meta, **name} for name in names], chunks)
    return ImageArray(array, (None, *order[1:]), [{**meta, **names[time]}], chunks, time=(axes.index("t"), time))


def _placed(axes: str, path: str, described: Sequence[NamedAxis]) -> dict[str, Any]:
    """Metadata of where voxels lie, in millimeters, and for outputs that write axes in the order of the input."""
    along = {letter: described[k] for k, letter in enumerate(axes) if letter in "xyz"}
    units = {letter: _known_unit(axis, letter, path) for letter, axis in along.items()}
    affine = np.eye(4)
    for d, letter in enumerate(letter for letter in "xyz" if letter in along):
        if along[letter].scale == 0:
            raise ValueError(f"axis {letter} of {path} has a spacing of 0 in the metadata")
        millimeters = MILLIMETERS.get(units[letter], 1.0)
        affine[d, d], affine[d, 3] = along[letter].scale * millimeters, along[letter].translation * millimeters
    return {
        MetaKeys.AFFINE: torch.as_tensor(affine, dtype=torch.float64),
        MetaKeys.ORIGINAL_AFFINE: np.array(affine),
        "axes": tuple(along),
        "axis_units": tuple(units.values()),
        # an affine is in millimeters only if all units are known
        "xyzt_units": MILLIMETER_CODE if all(units.values()) else 0,
    }


def _known_unit(axis: NamedAxis, letter: str, path: str) -> str:
    """The unit of an axis as OME-Zarr spells it; empty if it has none, or one that is not known, of which it warns."""
    unit = length_unit(axis.unit) if axis.unit else ""
    if unit is None:
        warn_caller(
            f"{axis.unit!r}, the unit of axis {letter} of {path}, is no unit of length that is known, such as "
            f"'micrometer' or 'um'; the axis counts as one without a unit, and its spacing is {axis.scale:g} as it is "
            f"in the file"
        )
    return unit or ""


def _checked(axes: str | None, shape: tuple[int, ...], path: str, described: Sequence[NamedAxis]) -> str:
    """The letters of all dimensions, as given or described, in lower case."""
    letters = [axis.letter for axis in described]
    if axes is None and all(letters):
        axes = "".join(map(str, letters))
    if axes is None:
        names = ", ".join(axis.name for axis in described)
        called = f" (in the file they are called {names})" if any(axis.name for axis in described) else ""
        raise ValueError(
            f"axes must say what the dimensions of {path} of shape {shape} are, for instance 'czyx'{called}"
        )
    given, axes = axes, axes.lower()
    letters_fit = set(axes) <= set(LETTERS) and set(axes) & set("xyz")
    if not (letters_fit and len(set(axes)) == len(axes) == len(shape)):
        raise ValueError(
            f"axes={given!r} must be a letter for each dimension of {path} of shape {shape}: out of t, c, x, y and z, "
            f"none twice, and at least one of x, y and z"
        )
    return axes


def _names(points: int) -> list[dict[str, str]]:
    """What outputs put behind the name of the image, for each point of a time series."""
    if points == 1:
        return [{}]
    digits = max(3, len(str(points - 1)))
    return [{ImageMetaKey.PATCH_INDEX: f"t{point:0{digits}}"} for point in range(points)]
