"""Zarr arrays, and OME-Zarr images with what their metadata say of axes, units and millimeters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_chunked.inputs.image_array import ImageArray
from monai_chunked.inputs.named_axes import arrange, axes_of
from monai_chunked.plan.sizes import MILLIMETERS

__all__ = ["open_zarr"]


def open_zarr(path: str, axes: str | None, level: int, time: int | None) -> ImageArray:
    """An array, or a level of an image in a group, see :py:func:`open_image`."""
    try:
        import zarr
    except ImportError:
        raise ImportError("reading Zarr needs zarr 3: pip install 'zarr>=3'") from None
    try:
        node = zarr.open(path, mode="r")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is no .nii, .nii.gz or .npy file, nor a Zarr array or group") from error
    if isinstance(node, zarr.Array):
        names = getattr(node.metadata, "dimension_names", None)
        known = "".join(map(str, names)) if names and all(names) else None
        letters = axes or known
        return arrange(node, letters, path, np.eye(4), axes_of(letters or ""), time)
    attributes: Any = dict(node.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise ValueError(
            f"{path} is a Zarr group without an OME-Zarr image (multiscales); pass the path of an array in it"
        )
    image = multiscales[0]
    if not 0 <= level < len(image["datasets"]):
        raise ValueError(
            f"level={level} must be at least 0 and less than {len(image['datasets'])}, the levels of {path}"
        )
    described = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image["axes"]]
    names = "".join(axis["name"] for axis in described)
    dataset = image["datasets"][level]
    affine = _affine(
        described, dataset.get("coordinateTransformations", []), image.get("coordinateTransformations", [])
    )
    units = {axis["name"]: axis.get("unit") or "" for axis in described}
    more = {**axes_of(axes or names, units), "ome_zarr": path}
    return arrange(node[dataset["path"]], axes or names, path, affine, more, time)


def _affine(axes: Sequence[Mapping[str, Any]], *steps: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """From voxels to millimeters, along x, y and z, after scales and translations in turn."""
    scale, translation = np.ones(len(axes)), np.zeros(len(axes))
    for transformation in (t for step in steps for t in step):
        if transformation["type"] == "scale":
            scale, translation = scale * transformation["scale"], translation * transformation["scale"]
        elif transformation["type"] == "translation":
            translation = translation + transformation["translation"]
        elif transformation["type"] != "identity":
            raise ValueError(f"coordinate transformation {dict(transformation)} is no scale, translation or identity")
    affine = np.eye(4)
    spatial = [k for letter in "xyz" for k, axis in enumerate(axes) if axis["name"] == letter]
    for d, k in enumerate(spatial):
        millimeters = MILLIMETERS.get(axes[k].get("unit", ""), 1.0)
        affine[d, d], affine[d, 3] = scale[k] * millimeters, translation[k] * millimeters
    return affine
