"""Choosing one of several classes: ``"argmax"``, MONAI's transforms that do so, and what there is to choose of one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from monai.transforms import Activations, Activationsd, AsDiscrete, AsDiscreted
from monai.utils import ensure_tuple

from monai_chunked.machine.memory import addresses_limited

__all__ = ["argmax", "check_classes", "chooses_class", "is_known", "label_dtype", "needs_classes", "option"]


ROW_VOXELS = 2**17
"""Voxels whose argmax is taken at a time, so that what it needs on the way stays small and in cache."""


def label_dtype(classes: int) -> torch.dtype:
    """The smallest unsigned integer type that holds the labels ``0 .. classes - 1``.

    >>> label_dtype(256), label_dtype(257)
    (torch.uint8, torch.uint16)
    """
    return next(t for t in (torch.uint8, torch.uint16, torch.uint32) if classes - 1 <= torch.iinfo(t).max)


def argmax(scores: torch.Tensor) -> torch.Tensor:
    """The class with the highest score, the first one if there are several: ``(C, *chunk)`` to ``(1, *chunk)``.

    NaN counts as the highest, as in ``torch.argmax``.

    Raises:
        ValueError: when there is one class only.
    """
    classes = scores.shape[0]
    check_classes(classes)
    labels = torch.empty((1, *scores.shape[1:]), dtype=label_dtype(classes), device=scores.device)
    step = max(1, ROW_VOXELS // scores[0, :1].numel())
    on_cpu = scores.device.type == "cpu" and labels.dtype == torch.uint8 and scores.dtype != torch.bfloat16

    def label(start: int) -> None:
        rows, target = scores[:, start : start + step], labels[0, start : start + step]
        if not (on_cpu and _argmax_by_class(rows.numpy(), target.numpy())):
            target.copy_(torch.max(rows, dim=0).indices)

    starts = range(0, scores.shape[1], step)
    if on_cpu and len(starts) > 1 and not addresses_limited():
        with ThreadPoolExecutor(torch.get_num_threads(), "monai_chunked-argmax") as threads:
            list(threads.map(label, starts))
    else:
        for start in starts:
            label(start)
    return labels


def check_classes(channels: int, name: str = "prediction") -> None:
    """Refuse to choose the class of what has one channel.

    Raises:
        ValueError: naming what to do instead.
    """
    if channels == 1:
        more = "" if name == "prediction" else "; give one for each output of the network, in a tuple or dict"
        raise ValueError(
            f"postprocessing='argmax' chooses the channel with the highest score, but the {name} has one channel, so "
            f"that every voxel would become 0. Use AsDiscrete(threshold=0.5) if the network ends in a sigmoid, "
            f"Compose([Activations(sigmoid=True), AsDiscrete(threshold=0.5)]) if it does not, or None to get scores"
            f"{more}."
        )


def option(transform: object, name: str) -> Any:
    """An option of an array transform, or of a dictionary transform of one key; ``None``: it has none."""
    value = getattr(transform, name, None)
    return value[0] if isinstance(value, (list, tuple)) else value


def chooses_class(transform: AsDiscrete | AsDiscreted) -> bool:
    """Whether many scores become one label."""
    return bool(option(transform, "argmax")) and option(transform, "to_onehot") is None


def needs_classes(transform: object) -> tuple[str, int] | None:
    """What of a transform makes one number of all voxels of one channel, and the number; ``None``: nothing does."""
    for kinds, name, value in (((AsDiscrete, AsDiscreted), "argmax", 0), ((Activations, Activationsd), "softmax", 1)):
        if isinstance(transform, kinds) and option(transform, name):
            return f"{type(transform).__name__}({name}=True)", value
    return None


def is_known(transform: object) -> bool:
    """Whether all its code is MONAI's or PyTorch's."""
    held = (inner for name in ("func", "other") for inner in ensure_tuple(getattr(transform, name, None)))
    if not all(inner is None or is_known(inner) for inner in held):
        return False
    module = getattr(transform, "__module__", None) or type(transform).__module__
    return module.split(".")[0] in ("monai", "torch")


def _argmax_by_class(scores: np.ndarray, labels: np.ndarray) -> bool:
    """Class after class, which vectorises where ``torch.max`` does not; ``False`` if NaN is in the way.

    With NumPy, because one thread is enough for rows that stay in its cache, and none has to wait for another.
    """
    highest = scores[0].copy()
    higher = np.empty(labels.shape, bool)
    candidate = np.empty_like(labels)
    labels.fill(0)
    for label in range(1, scores.shape[0]):
        np.greater(scores[label], highest, out=higher)
        np.multiply(higher.view(np.uint8), np.uint8(label), out=candidate)
        np.maximum(labels, candidate, out=labels)
        np.maximum(highest, scores[label], out=highest)
    return not np.isnan(highest).any()
