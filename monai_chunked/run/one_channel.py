"""A warning where MONAI chooses one of several classes but gets one channel: it makes one number of all voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.transforms import Activations, Activationsd, AsDiscrete, AsDiscreted, Compose
from monai.utils import ensure_tuple

from monai_chunked.machine.caller import warn_caller
from monai_chunked.plan.heads import Heads
from monai_chunked.transforms.chain import Chain, Step

__all__ = ["warn_of_one_channel"]


def warn_of_one_channel(functions: Sequence[Any], heads: Heads) -> None:
    """One warning for each head whose postprocessing is MONAI's argmax or softmax over one channel.

    What is not MONAI's or PyTorch's is not called to find out how many channels it leaves.

    Args:
        functions: the postprocessing of each head.
        heads: of the network.
    """
    for function, head in zip(functions, heads):
        if (found := _found(function, head.channels)) is not None:
            name, value = found
            warn_caller(
                f"postprocessing contains {name}, which gets one channel of the {head.name}, so that every voxel "
                f"becomes {value}, as in MONAI. If the network ends in a sigmoid, use AsDiscrete(threshold=0.5); if it "
                f"does not, Activations(sigmoid=True) before that"
            )


def _found(function: Any, channels: int) -> tuple[str, int] | None:
    """What gets one channel, and what every voxel becomes; ``None`` if nothing does."""
    voxel = torch.zeros(channels, 1, 1, 1)
    for each in _steps(function):
        transform = each.transform if isinstance(each, Step) else each
        if not _is_known(transform):
            return None
        if len(voxel) == 1 and (chosen := _chooses(transform)) is not None:
            return chosen
        voxel = torch.as_tensor(each(voxel))
    return None


def _steps(function: Any) -> Iterator[Any]:
    if isinstance(function, Chain):
        yield from (*function.before, *function.after)
    elif type(function) is Compose:
        for each in function.transforms:
            yield from _steps(each)
    elif function is not None:
        yield function


def _is_known(transform: Any) -> bool:
    """Whether all its code is MONAI's or PyTorch's."""
    inside = (each for name in ("func", "other") for each in ensure_tuple(getattr(transform, name, None)))
    if not all(each is None or _is_known(each) for each in inside):
        return False
    module = getattr(transform, "__module__", None) or type(transform).__module__
    return module.split(".")[0] in ("monai", "torch")


def _chooses(transform: Any) -> tuple[str, int] | None:
    for kinds, option, value in (((AsDiscrete, AsDiscreted), "argmax", 0), ((Activations, Activationsd), "softmax", 1)):
        given = getattr(transform, option, False)
        if isinstance(transform, kinds) and (given[0] if isinstance(given, (list, tuple)) else given):
            return f"{type(transform).__name__}({option}=True)", value
    return None
