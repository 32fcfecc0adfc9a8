"""Postprocessing, the stage in which scores become what the user wants of them, each voxel by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils import ensure_tuple

from monai_chunked.chunks.stages import Finished
from monai_chunked.machine.memory import addresses_limited
from monai_chunked.plan.boxes import box_text
from monai_chunked.plan.heads import Heads

__all__ = [
    "Cast",
    "Postprocess",
    "Postprocessing",
    "argmax",
    "check_classes",
    "functions_of",
    "is_argmax",
    "label_dtype",
]


Postprocessing = Callable[[torch.Tensor], torch.Tensor]


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


def is_argmax(postprocessing: Any) -> bool:
    """Whether every head of the network ends in labels."""
    if isinstance(postprocessing, dict):
        postprocessing = list(postprocessing.values())
    return all(isinstance(one, str) and one == "argmax" for one in ensure_tuple(postprocessing))


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


def functions_of(heads: Heads, postprocessing: Any) -> list[Postprocessing | None]:
    """One postprocessing for each head of the network.

    Args:
        heads: of the network.
        postprocessing: what the user gave: one for all heads, or one for each.

    Raises:
        ValueError: when it does not fit the heads, or chooses a class where there is only one.
    """
    each = heads.match("postprocessing", postprocessing)
    chosen = [isinstance(one, str) and one == "argmax" for one in each]
    for head in (head for head, labels in zip(heads, chosen) if labels):
        check_classes(head.channels, head.name)
    return [argmax if labels else one for one, labels in zip(each, chosen)]


def check_classes(channels: int, name: str = "prediction") -> None:
    """Refuse to choose the class of what has one channel.

    Raises:
        ValueError: naming what to do instead.
    """
    if channels == 1:
        each = "" if name == "prediction" else "; give one for each output of the network, in a tuple or dict"
        raise ValueError(
            f"postprocessing='argmax' chooses the channel with the highest score, but the {name} has one channel, so "
            f"that every voxel would become 0. Use AsDiscrete(threshold=0.5) if the network ends in a sigmoid, "
            f"Compose([Activations(sigmoid=True), AsDiscrete(threshold=0.5)]) if it does not, or None to get scores"
            f"{each}."
        )


class Cast:
    """The stage of a head without postprocessing: scores get the dtype of the result.

    Args:
        dtype: of the result.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def put(self, finished: Finished) -> Iterator[Finished]:
        same = finished.values.dtype == self.dtype
        yield finished if same else finished.become(finished.values.to(self.dtype))

    def finish(self) -> Iterable[Finished]:
        return ()


class Postprocess:
    """The stage in which a function is applied to each chunk.

    Args:
        function: ``(C, *chunk)`` to ``(C', *chunk)``.
        name: of the head in messages.
    """

    def __init__(self, function: Postprocessing, name: str) -> None:
        self.function = function
        self.name = name

    def put(self, finished: Finished) -> Iterator[Finished]:
        shape = tuple(finished.values.shape)
        # of skipped windows channels may share their memory, which is nobody's business but ours
        values = finished.values if self.function is argmax else finished.values.contiguous()
        result = self._checked(self.function(values), shape, f"the {self.name} at {box_text(finished.box)}")
        if self.function is argmax:
            yield finished.become(result)
        else:  # it may be a part of what came in, or memory that the function uses every time
            yield replace(finished, values=result, borrowed=True)

    def finish(self) -> Iterable[Finished]:
        return ()

    def _checked(self, result: Any, shape: tuple[int, ...], where: str) -> torch.Tensor:
        if not isinstance(result, (torch.Tensor, np.ndarray)):
            raise TypeError(f"postprocessing must return a tensor, got {type(result).__name__} for {where}")
        result = torch.as_tensor(result)
        if isinstance(result, MetaTensor):
            result = result.as_tensor()
        if result.dim() != len(shape) or tuple(result.shape[1:]) != shape[1:]:
            raise ValueError(
                f"postprocessing must keep the spatial size of a chunk: it got {shape} and returned "
                f"{tuple(result.shape)} for {where}"
            )
        return result
