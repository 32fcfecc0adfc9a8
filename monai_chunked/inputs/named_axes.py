"""Arrays whose dimensions have names, ``t``, ``c``, ``x``, ``y`` and ``z`` in any order, as images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

from monai_chunked.inputs.image_array import ImageArray
from monai_chunked.inputs.lazy_array import storage_chunks

__all__ = ["arrange", "axes_of"]


def arrange(
    array: Any, axes: str | None, path: str, affine: np.ndarray, known: Mapping[str, Any], time: int | None
) -> ImageArray:
    """An array as an image ``(t, c, x, y, z)``, without those of ``x``, ``y`` and ``z`` that it does not have.

    Args:
        array: with ``shape``, ``dtype`` and slicing.
        axes: a letter for each dimension.
        path: of the array, for metadata and messages.
        affine: from voxels to millimeters, along x, y and z.
        known: further metadata.
        time: the point of a time series; ``None``: all of them, as a batch.

    Raises:
        ValueError: when ``axes`` or ``time`` do not fit.
    """
    shape = tuple(array.shape)
    axes = _checked(axes, shape, path)
    points = shape[axes.index("t")] if "t" in axes else 1
    if time is not None and not 0 <= time < points:
        raise ValueError(f"time={time} must be at least 0 and less than {points}, the time points of {path}")
    spatial = [letter for letter in "xyz" if letter in axes]
    order = tuple(axes.index(letter) if letter in axes else None for letter in ["t", "c", *spatial])
    meta = {
        MetaKeys.AFFINE: torch.as_tensor(affine, dtype=torch.float64),
        MetaKeys.ORIGINAL_AFFINE: np.array(affine),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.array([shape[axes.index(letter)] for letter in spatial]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: axes.index("c") if "c" in axes else float("nan"),
        ImageMetaKey.FILENAME_OR_OBJ: path,
        **known,
    }
    names = _names(points)
    chunks: Any = storage_chunks(array)
    if time is None or "t" not in axes:
        return ImageArray(array, order, [{**meta, **name} for name in names], chunks)
    return ImageArray(array, (None, *order[1:]), [{**meta, **names[time]}], chunks, time=(axes.index("t"), time))


def axes_of(names: str, units: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Metadata for outputs that write axes in the order of the input."""
    spatial = [letter for letter in names if letter in "xyz"]
    return {"axes": tuple(spatial), "axis_units": tuple((units or {}).get(letter, "") for letter in spatial)}


def _checked(axes: str | None, shape: tuple[int, ...], path: str) -> str:
    if axes is None:
        raise ValueError(f"axes must say what the dimensions of {path} of shape {shape} are, for instance 'czyx'")
    if (
        len(axes) != len(shape)
        or len(set(axes)) != len(axes)
        or not set(axes) <= set("tcxyz")
        or not set(axes) & set("xyz")
    ):
        raise ValueError(
            f"axes={axes!r} must be a letter for each dimension of {path} of shape {shape}: out of t, c, x, y and z, "
            f"none twice, and at least one of x, y and z"
        )
    return axes


def _names(points: int) -> list[dict[str, str]]:
    """What outputs put behind the name of the image, for each point of a time series."""
    if points == 1:
        return [{}]
    digits = max(3, len(str(points - 1)))
    return [{ImageMetaKey.PATCH_INDEX: f"t{point:0{digits}}"} for point in range(points)]
