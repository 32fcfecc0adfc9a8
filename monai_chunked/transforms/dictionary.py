"""
Which of MONAI's dictionary transforms treat each voxel by itself: those whose array transform does.

They are listed with the array transform inside them, which :py:func:`check_voxelwise` looks at, and with the parameters
that they have for each of their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from monai import transforms
from monai.transforms import Activations, AsDiscrete, Invertd, Lambda, MapTransform

from monai_chunked.transforms.voxelwise import check_voxelwise, instead_of, kind_of, refusal

__all__ = ["DICTIONARY", "check_dictionary", "check_invert", "odd_parameter", "restricted", "why_not_voxelwise"]


Odd = tuple[str, str]
"""What a parameter is, and what it should be."""


@dataclass(frozen=True)
class Inside:
    """What is inside a dictionary transform.

    Attributes:
        array: the array transform, with its parameters for the key of that number.
        of_each_key: attributes with one value for each key.
        odd: what a parameter is for the key of that number, and what it should be; ``None`` if all are fine.
    """

    array: Callable[[Any, int], Callable[..., Any]]
    of_each_key: tuple[str, ...] = ()
    odd: Callable[[Any, int], Odd | None] = lambda transform, number: None


def check_dictionary(name: str, transform: MapTransform, key: Hashable) -> None:
    """Refuse dictionary transforms of MONAI that do not treat each voxel by itself.

    Args:
        name: of the parameter.
        transform: one of its transforms; one that is not MONAI's is taken at its word.
        key: of the prediction.

    Raises:
        ValueError: for transforms that look at other voxels or at other keys, or draw random numbers.
    """
    kind = kind_of(transform)
    if kind is None:
        return
    if kind not in DICTIONARY:
        raise ValueError(refusal(name, type(transform).__name__, None))
    number = transform.keys.index(key)
    if (odd := odd_parameter(kind, transform, number)) is not None:
        given, use = odd
        raise ValueError(
            f"{name} contains {type(transform).__name__} with {given}; use {use}, or apply it to the result, behind "
            f"the inferer"
        )
    check_voxelwise(name, DICTIONARY[kind].array(transform, number))


def check_invert(name: str, invert: Invertd) -> None:
    """Refuse what ``Invertd`` does beside inverting.

    Raises:
        ValueError: naming the parameter.
    """
    if len(invert.keys) != 1 or len(invert.orig_keys) != 1:
        raise ValueError(
            f"{name} contains Invertd with keys={list(invert.keys)} and orig_keys={list(invert.orig_keys)}, but the "
            f"inferer has one prediction of one image; give one key each"
        )
    for parameter, value in (("to_tensor", True), ("post_func", None), ("device", None)):
        if (given := getattr(invert, parameter)[0]) != value:
            raise ValueError(
                f"{name} contains Invertd with {parameter}={given!r}; give {parameter}={value}, and do that to the "
                f"result, behind the inferer"
            )


def why_not_voxelwise(transform: MapTransform, key: Hashable) -> str | None:
    """What about one of the listed transforms looks at other voxels or keys; ``None`` if nothing does.

    Args:
        transform: one of MONAI's, of those that are listed.
        key: of the prediction.

    >>> why_not_voxelwise(transforms.AsDiscreted("pred", argmax=True, dim=1), "pred")
    'does not treat each voxel by itself: use dim=0, the channels'
    """
    number, kind = transform.keys.index(key), type(transform)
    if (odd := odd_parameter(kind, transform, number)) is not None:
        given, use = odd
        return f"has {given}; use {use}"
    instead = instead_of(DICTIONARY[kind].array(transform, number))
    return None if instead is None else f"does not treat each voxel by itself: {instead}"


def odd_parameter(kind: type, transform: MapTransform, number: int) -> Odd | None:
    """What a parameter is for the key of that number, and what it should be; ``None`` if all are fine."""
    return DICTIONARY[kind].odd(transform, number)


def restricted(transform: MapTransform, keys: Sequence[Hashable]) -> MapTransform:
    """The same transform of some of its keys alone.

    >>> label = restricted(transforms.AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3), ["label"])
    >>> label.keys, label.argmax, label.to_onehot
    (('label',), (False,), (3,))
    """
    names = INVERTD if isinstance(transform, Invertd) else DICTIONARY[type(transform)].of_each_key
    numbers = [number for number, key in enumerate(transform.keys) if key in keys]
    result = copy(transform)
    for name in ("keys", *names):
        values = getattr(transform, name)
        setattr(result, name, tuple(values[number] for number in numbers))
    return result


def _converter(transform: Any, number: int) -> Callable[..., Any]:
    return transform.converter


def _named(attribute: str) -> Inside:
    inside = attrgetter(attribute)
    return Inside(lambda transform, number: inside(transform))


def _keepdim(transform: transforms.AsDiscreted, number: int) -> Odd | None:
    return None if transform.converter.kwargs.get("keepdim", True) else ("keepdim=False", "keepdim=True")


def _overwrite(transform: transforms.Lambdad, number: int) -> Odd | None:
    given = transform.overwrite[number]
    return None if given is True else (f"overwrite={given!r}", "overwrite=True")


def _factor_key(transform: transforms.ShiftIntensityd, number: int) -> Odd | None:
    given = transform.factor_key[number]
    return None if given is None else (f"factor_key={given!r}", "an offset with the factor in it")


INVERTD = (
    "orig_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix",
    "nearest_interp", "to_tensor", "device", "post_func",
)  # fmt: skip
"""What ``Invertd`` has for each of its keys."""


DICTIONARY: dict[type, Inside] = {
    transforms.Activationsd: Inside(
        lambda transform, number: Activations(other=transform.other[number], **transform.converter.kwargs),
        ("sigmoid", "softmax", "other"),
    ),
    transforms.AsDiscreted: Inside(
        lambda transform, number: AsDiscrete(**transform.converter.kwargs),
        ("argmax", "to_onehot", "threshold", "rounding"),
        _keepdim,
    ),
    transforms.CastToTyped: Inside(_converter, ("dtype",)),
    transforms.ConvertToMultiChannelBasedOnBratsClassesd: Inside(_converter),
    transforms.EnsureTyped: Inside(_converter, ("dtype",)),
    transforms.Identityd: _named("identity"),
    transforms.LabelFilterd: Inside(_converter),
    transforms.LabelToMaskd: Inside(_converter),
    transforms.Lambdad: Inside(
        lambda transform, number: Lambda(transform.func[number]), ("func", "inv_func", "overwrite"), _overwrite
    ),
    transforms.MapLabelValued: _named("mapper"),
    transforms.NormalizeIntensityd: _named("normalizer"),
    transforms.RemoveRepeatedChanneld: _named("repeater"),
    transforms.RepeatChanneld: _named("repeater"),
    transforms.ScaleIntensityd: _named("scaler"),
    transforms.ScaleIntensityRanged: _named("scaler"),
    transforms.ShiftIntensityd: Inside(
        lambda transform, number: transform.shifter,
        ("factor_key", "meta_keys", "meta_key_postfix"),
        _factor_key,
    ),
    transforms.ThresholdIntensityd: _named("filter"),
    transforms.ToDeviced: Inside(_converter),
    transforms.ToNumpyd: Inside(_converter),
    transforms.ToTensord: Inside(_converter),
}
