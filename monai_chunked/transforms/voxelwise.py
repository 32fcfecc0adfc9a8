"""
Which of MONAI's transforms treat each voxel by itself, so that a chunk at a time gives what the whole image would.

Those that do are listed, with what their parameters must be. All other transforms of MONAI are refused by name, and so
are those of versions to come. What is not MONAI's is taken at its word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from monai import transforms
from monai.transforms import MapTransform, Transform
from monai.transforms.traits import RandomizableTrait

__all__ = ["check_voxelwise", "instead_of", "kind_of", "refusal"]


Check = Callable[[Any], "str | None"]
"""What to do instead of a transform with these parameters; ``None`` if they are fine."""


def check_voxelwise(name: str, transform: object) -> None:
    """Refuse transforms of MONAI that do not treat each voxel by itself, inside other transforms too.

    Args:
        name: of the parameter, ``"preprocessing"`` or ``"postprocessing"``.
        transform: its value, any callable.

    Raises:
        TypeError: for dictionary transforms, and for classes that were not called.
        ValueError: for transforms that look at other voxels, or draw random numbers.
    """
    if isinstance(transform, type):
        if issubclass(transform, Transform):
            raise TypeError(f"{name}={transform.__name__} is a class; give an object, {transform.__name__}(...)")
        return
    if isinstance(transform, functools.partial):
        return check_voxelwise(name, transform.func)
    if isinstance(transform, MapTransform):
        raise TypeError(_dictionary(name, transform))
    kind = kind_of(transform)
    if kind is None:
        return
    if kind in PARTS:
        for part in PARTS[kind](transform):
            check_voxelwise(name, part)
    if kind not in PER_VOXEL:
        raise ValueError(refusal(name, kind.__name__, HINTS.get(kind.__name__)))
    if (instead := instead_of(transform)) is not None:
        raise ValueError(refusal(name, f"{kind.__name__} with these parameters", instead))


def instead_of(transform: object) -> str | None:
    """What to do instead of one of the transforms on the list, with its parameters; ``None`` if they are fine."""
    return PER_VOXEL[kind_of(transform)](transform)


def kind_of(transform: object) -> Any:
    """The class, or the function, of MONAI that says what a callable does; ``None`` if none does."""
    if str(getattr(transform, "__module__", "")).startswith("monai.transforms") and hasattr(transform, "__name__"):
        return transform
    own = [base for base in type(transform).__mro__ if base.__module__.startswith("monai.transforms")]
    concrete = [base for base in own if base.__module__ not in ABSTRACT]
    if concrete:
        return concrete[0]
    return next((base for base in own if issubclass(base, RandomizableTrait)), None)


def _dictionary(name: str, transform: MapTransform) -> str:
    own = type(transform).__name__
    array = own.removesuffix("d")
    use = f", {array}" if array != own and hasattr(transforms, array) else ""
    of = "a window" if name == "preprocessing" else "a chunk"
    return (
        f"{name} contains the dictionary transform {own}, but it is called with the tensor of {of}; use the array "
        f"transform{use}"
    )


def refusal(name: str, transform: str, instead: str | None) -> str:
    """Why a transform is refused, and what to do instead."""
    before = name == "preprocessing"
    whole = "whole image, before the inferer" if before else "result, behind the inferer"
    return (
        f"{name} contains {transform}, which does not treat each voxel by itself: it would see one "
        f"{'window' if before else 'chunk'} at a time and give another answer than for the whole image; "
        f"{instead + ', or ' if instead else ''}apply it to the {whole}"
    )


def _fine(transform: object) -> str | None:
    return None


def _along_channels(transform: transforms.Activations | transforms.AsDiscrete) -> str | None:
    return None if transform.kwargs.get("dim", 0) == 0 else "use dim=0, the channels"


def _normalize(transform: transforms.NormalizeIntensity) -> str | None:
    for value in (transform.subtrahend, transform.divisor):
        shape = None if value is None else np.shape(value)
        if shape is None or not (shape in ((), (1,)) or (transform.channel_wise and len(shape) == 1)):
            return "give subtrahend and divisor, as numbers (with channel_wise=True one for each channel)"
    return None


def _scale(transform: transforms.ScaleIntensity) -> str | None:
    fixed = transform.minv is None and transform.maxv is None
    return None if fixed else HINTS["ScaleIntensityRangePercentiles"]


ABSTRACT = {f"monai.transforms.{module}" for module in ("transform", "inverse", "traits")}
"""Modules of base classes, which say nothing about what a transform does."""


PARTS: dict[type, Callable[[Any], Iterable[object]]] = {
    transforms.Compose: lambda transform: transform.transforms,
    transforms.Lambda: lambda transform: [transform.func],
    transforms.Activations: lambda transform: [transform.other],
}
"""Callables inside a transform, which must be fine too."""


PER_VOXEL: dict[type, Check] = {
    transforms.Activations: _along_channels,
    transforms.AsDiscrete: _along_channels,
    transforms.CastToType: _fine,
    transforms.Compose: _fine,
    transforms.ConvertToMultiChannelBasedOnBratsClasses: _fine,
    transforms.EnsureType: _fine,
    transforms.Identity: _fine,
    transforms.LabelFilter: _fine,
    transforms.LabelToMask: _fine,
    transforms.Lambda: _fine,
    transforms.MapLabelValue: _fine,
    transforms.NormalizeIntensity: _normalize,
    transforms.RemoveRepeatedChannel: _fine,
    transforms.RepeatChannel: _fine,
    transforms.ScaleIntensity: _scale,
    transforms.ScaleIntensityRange: _fine,
    transforms.ShiftIntensity: _fine,
    transforms.ThresholdIntensity: _fine,
    transforms.ToDevice: _fine,
    transforms.ToNumpy: _fine,
    transforms.ToTensor: _fine,
}


HINTS = {
    "ScaleIntensityRangePercentiles": "use ScaleIntensityRange with the numbers of the whole image",
    "ClipIntensityPercentiles": "use ScaleIntensityRange(a_min, a_max, a_min, a_max, clip=True) with fixed numbers",
}
"""What to do instead, where that is more than to move the transform."""
