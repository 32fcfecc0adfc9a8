"""Zarr arrays, and levels of OME-Zarr images with what their metadata say of axes, units and millimeters."""

from __future__ import annotations

import os
from typing import Any

from monai_chunked.inputs.lazy.image_array import ImageArray
from monai_chunked.inputs.named_axes import NamedAxis, arrange
from monai_chunked.inputs.ome_zarr.image_groups import what_it_holds
from monai_chunked.inputs.ome_zarr.multiscales import level_of, level_with
from monai_chunked.inputs.ome_zarr.stores import may_be_in_store, member, name_in_store, open_node
from monai_chunked.machine.store_names import is_url

__all__ = ["open_zarr"]


def open_zarr(path: str, axes: str | None, level: int, time: int | None) -> ImageArray:
    """An array, or a level of an image in a group, see :py:func:`open_image`."""
    node = open_node(path)
    further = {"image_name": name_in_store(path)}
    image = path
    if hasattr(node, "shape"):
        around = _image_around(path)
        if around is None:
            if level != 0:
                raise ValueError(f"level={level} is for OME-Zarr images; {path} is an array, which has one level, 0")
            names = getattr(node.metadata, "dimension_names", None) or [None] * len(node.shape)
            described = [NamedAxis(str(name or "")) for name in names]
            return arrange(node, path, axes=axes, described=described, time=time, further=further)
        image, node, level = around
    stated = level_of(dict(node.attrs), level, image)
    if stated is None:
        raise ValueError(what_it_holds(node, path))
    array = member(node, stated.array, image)
    if not hasattr(array, "shape"):
        raise ValueError(f"{stated.array!r} in {image} is a group, though it is named as the array of level {level}")
    described = stated.described(array.shape)
    return arrange(array, path, axes=axes, described=described, time=time, further={**further, "ome_zarr": image})


def _image_around(path: str) -> tuple[str, Any, int] | None:
    """The image whose level an array is: its path, its group, and the number of the level."""
    group, _, array = (path if is_url(path) else os.path.abspath(path)).rpartition("/")
    for _ in range(2):  # some images have their levels in a folder
        if is_url(path) and not may_be_in_store(group):
            return None
        try:
            node = open_node(group)
            level = level_with(dict(node.attrs), array, group)
        except ValueError:  # no image
            return None
        if level is not None:
            return group, node, level
        group, _, name = group.rpartition("/")
        array = f"{name}/{array}"
    return None
