"""A user's word that a callable treats each voxel by itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["EachVoxel", "EachVoxeld", "each_voxel"]


def each_voxel(transform: Callable[..., Any], keys: KeysCollection | None = None) -> EachVoxel | EachVoxeld:
    """Vouch that a transform treats each voxel by itself, so that it may run on a chunk at a time.

    It must never look at other voxels, at where a voxel is, or at random numbers. What it gets is a plain tensor.

    Args:
        transform: a dictionary transform; or a callable that maps ``(C, *spatial)`` to ``(C', *spatial)``.
        keys: of what the transform changes, where it is called with a dictionary but is no ``MapTransform``.

    Raises:
        TypeError: when ``transform`` is a class or cannot be called, or ``keys`` are given to a ``MapTransform``.

    Returns:
        what takes the place of the transform, in a ``Compose`` too.

    Example::

        merge = each_voxel(Lambdad("pred", func=lambda masks: masks.any(0, keepdim=True)))
        streamed, behind = split_postprocessing(Compose([Activationsd("pred", sigmoid=True), merge]))
    """
    if isinstance(transform, type) or not callable(transform):
        name = getattr(transform, "__name__", repr(transform))
        raise TypeError(f"transform={name} must be an object that can be called, such as {name}(...)")
    if isinstance(transform, MapTransform):
        if keys is not None:
            raise TypeError(f"keys={keys!r} are those of {type(transform).__name__}, {transform.keys}; leave keys out")
        return EachVoxeld(transform, transform.keys)
    return EachVoxel(transform) if keys is None else EachVoxeld(transform, keys)


class EachVoxel:
    """A callable on arrays that was vouched for.

    Args:
        transform: what it does.
    """

    def __init__(self, transform: Callable[..., Any]) -> None:
        self.transform = transform

    def __call__(self, data: Any) -> Any:
        return self.transform(data)


class EachVoxeld(MapTransform):
    """A callable on dictionaries that was vouched for.

    Args:
        transform: what it does.
        keys: of what it changes.
    """

    def __init__(self, transform: Callable[..., Any], keys: KeysCollection) -> None:
        super().__init__(keys)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return dict(self.transform(data))
