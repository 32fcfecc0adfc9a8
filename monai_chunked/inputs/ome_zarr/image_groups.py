"""Groups of OME-Zarr that are no image but hold some: what they are, and what to open instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from monai_chunked.inputs.ome_zarr.multiscales import as_stated
from monai_chunked.machine.store_names import is_url

if TYPE_CHECKING:
    import zarr

__all__ = ["what_it_holds"]


SHOWN = 3
"""Images that a message names."""


def what_it_holds(group: zarr.Group, path: str) -> str:
    """A sentence that says what a group without an image is, and which images in it can be opened."""
    stated = as_stated(dict(group.attrs))
    if "plate" in stated:  # first, since a plate of bioformats2raw says both
        wells = _paths(stated["plate"], "wells")
        images = [f"{well}/{image}" for well in wells[:SHOWN] for image in _fields(group, well)]
        return f"{path} is a plate of {len(wells)} wells, not an image; {_open_one(path, images)}"
    if "well" in stated:
        images = _paths(stated["well"], "images")
        return f"{path} is a well of a plate, with {len(images)} images; {_open_one(path, images)}"
    if "bioformats2raw.layout" in stated:
        images = _series(group)
        return f"{path} is a collection of {len(images)} images, as bioformats2raw writes it; {_open_one(path, images)}"
    if isinstance(stated.get("labels"), list):
        return f"{path} holds the labels of an image; {_open_one(path, map(str, stated['labels']))}"
    # a listing may take long over a network, or be impossible
    images = (
        [] if is_url(path) else [name for name, member in group.groups() if "multiscales" in as_stated(member.attrs)]
    )
    arrays = [] if is_url(path) else list(group.array_keys())
    return (
        f"{path} is a Zarr group without an OME-Zarr image (it has no multiscales); "
        f"{_open_one(path, sorted(images) or sorted(arrays))}"
    )


def _open_one(path: str, images: Iterable[str]) -> str:
    """What to open instead, as the end of a sentence."""
    paths = [f"{path.rstrip('/')}/{image}" for image in images]
    if not paths:
        return "pass the path of an image or an array"
    more = f", ... ({len(paths)} in all)" if len(paths) > SHOWN else ""
    return f"open one of them: {', '.join(paths[:SHOWN])}{more}"


def _paths(stated: Any, key: str) -> list[str]:
    """Paths of the wells or images that metadata list."""
    listed = stated.get(key) if isinstance(stated, Mapping) else None
    return [str(entry["path"]) for entry in listed or () if isinstance(entry, Mapping) and "path" in entry]


def _fields(group: zarr.Group, well: str) -> list[str]:
    """Images of a well."""
    return _paths(as_stated(group[well].attrs).get("well"), "images") if well in group else []


def _series(group: zarr.Group) -> list[str]:
    """Images of a collection: those that it lists, else those that are called 0, 1, ..."""
    series = as_stated(group["OME"].attrs).get("series") if "OME" in group else None
    if isinstance(series, list):
        return [str(name) for name in series]
    numbers: list[str] = []
    while str(len(numbers)) in group:
        numbers.append(str(len(numbers)))
    return numbers
