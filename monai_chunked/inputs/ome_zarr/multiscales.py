"""
What the versions of OME-Zarr, 0.1 to 0.6, say of an image in the attributes of its group.

Axes are not named in 0.1 and 0.2, where they are ``tczyx``, have a name in 0.3, and a unit since 0.4. Since then, too,
scales and translations lead from voxels to the world; in 0.6 they lead to a coordinate system, which has the axes. What
leads from there to further systems is not followed. The specifications are at https://ngff.openmicroscopy.org.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_chunked.inputs.named_axes import NamedAxis

__all__ = ["Level", "as_stated", "level_of", "level_with"]


FIRST_VERSIONS = (None, "0.1", "0.2")


FIRST_AXES = "tczyx"
"""Of all images of the first versions."""


@dataclass(frozen=True)
class Level:
    """A level of an image.

    Attributes:
        array: the path of its array in the group of the image.
        axes: as the metadata have them; ``None``: they do not say.
        steps: transformations from voxels to the world, in turn.
        path: of the group, for messages.
    """

    array: str
    axes: Sequence[Any] | None
    steps: Sequence[Any]
    path: str

    def described(self, shape: Sequence[int]) -> list[NamedAxis]:
        """What is said of each dimension of an array of this shape.

        Raises:
            ValueError: when that does not fit, or is of an unknown kind.
        """
        axes = [""] * len(shape) if self.axes is None else self.axes
        if len(axes) != len(shape):
            raise ValueError(f"{self.path} has metadata of {len(axes)} axes, but its {self.array!r} has shape {shape}")
        scale, translation = [1.0] * len(shape), [0.0] * len(shape)
        for kind, values in self._transformations(self.steps, len(shape)):
            if kind == "scale":
                scale = [before * value for before, value in zip(scale, values)]
                translation = [before * value for before, value in zip(translation, values)]
            else:
                translation = [before + value for before, value in zip(translation, values)]
        objects = (axis if isinstance(axis, Mapping) else {"name": axis} for axis in axes)
        return [
            NamedAxis(str(axis.get("name") or ""), axis.get("type"), axis.get("unit"), *placed)
            for axis, placed in zip(objects, zip(scale, translation))
        ]

    def _transformations(self, steps: Any, dims: int) -> Iterator[tuple[str, list[float]]]:
        """Scales and translations, also those in sequences."""
        for step in steps:
            kind = step.get("type") if isinstance(step, Mapping) else None
            if kind == "sequence":
                yield from self._transformations(step.get("transformations", ()), dims)
            elif kind in ("scale", "translation"):
                values = step.get(kind)
                if not _are_numbers(values, dims):
                    raise ValueError(f"{self.path} has a {kind} of {values}; it should be {dims} numbers, one an axis")
                yield kind, [float(value) for value in values]
            elif kind != "identity":
                shown = dict(step) if isinstance(step, Mapping) else step
                raise ValueError(
                    f"coordinate transformation {shown} of {self.path} is no scale, translation or identity, nor a "
                    f"sequence of these"
                )


def level_of(attributes: Mapping[str, Any], number: int, path: str) -> Level | None:
    """A level of the image that a group holds; ``None`` if it holds none.

    Args:
        attributes: of the group.
        number: of the level, 0 for the finest.
        path: of the group, for messages.

    Raises:
        ValueError: when there is no such level, or the metadata say too little.
    """
    stated = as_stated(attributes)
    if "multiscales" not in stated:
        return None
    image = next(iter(_listed(stated, "multiscales", path)))
    datasets = _listed(image, "datasets", path)
    if not 0 <= number < len(datasets):
        raise ValueError(f"level={number} must be at least 0 and less than {len(datasets)}, the levels of {path}")
    dataset = datasets[number]
    steps = dataset.get("coordinateTransformations") or []
    if "coordinateSystems" in image:
        axes: object = _system(_listed(image, "coordinateSystems", path), steps, path)
    else:
        steps = [*steps, *(image.get("coordinateTransformations") or [])]
        first = image.get("version", stated.get("version")) in FIRST_VERSIONS
        axes = image.get("axes", FIRST_AXES if first else None)
    if axes is not None and not isinstance(axes, Sequence):
        raise ValueError(f"{path} has OME-Zarr metadata whose axes are {axes!r}, and should be a list")
    return Level(_array_of(dataset, path), axes, steps, path)


def level_with(attributes: Mapping[str, Any], array: str, path: str) -> int | None:
    """The level of an image that has this array; ``None`` if none has."""
    stated = as_stated(attributes)
    if "multiscales" not in stated:
        return None
    datasets = _listed(next(iter(_listed(stated, "multiscales", path))), "datasets", path)
    return next((k for k, dataset in enumerate(datasets) if dataset.get("path") == array), None)


def as_stated(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """What attributes of a group say of OME-Zarr: since 0.5 under a name of its own."""
    stated = attributes.get("ome", attributes)
    return stated if isinstance(stated, Mapping) else {}


def _listed(stated: Mapping[str, Any], key: str, path: str) -> Sequence[Mapping[str, Any]]:
    """A list of objects that is not empty."""
    listed = stated.get(key)
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(entry, Mapping) for entry in listed):
        raise ValueError(f"{path} has OME-Zarr metadata whose {key} are {listed!r}, and should be a list of objects")
    return listed


def _array_of(dataset: Mapping[str, Any], path: str) -> str:
    if not isinstance(dataset.get("path"), str):
        raise ValueError(f"{path} has OME-Zarr metadata with a level without a path: {dict(dataset)}")
    return str(dataset["path"])


def _system(systems: Sequence[Mapping[str, Any]], steps: Sequence[Any], path: str) -> Sequence[Any]:
    """Axes of the coordinate system that a level's transformation leads to."""
    outputs = [step.get("output") for step in steps if isinstance(step, Mapping) and "output" in step]
    names = [output.get("name") if isinstance(output, Mapping) else output for output in outputs]
    matching = [system for system in systems if system.get("name") in names] or list(systems)
    if len(matching) != 1:
        all_names = ", ".join(str(system.get("name")) for system in systems)
        raise ValueError(f"{path} has the coordinate systems {all_names}, and a level that leads to {names or 'none'}")
    return _listed(matching[0], "axes", path)


def _are_numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    )
