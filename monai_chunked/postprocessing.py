"""What is applied to finished chunks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

__all__ = ["Postprocessing", "argmax", "label_dtype", "match_postprocessing"]

Postprocessing = Callable[[torch.Tensor], torch.Tensor]

ROW_VOXELS = 2**18
"""Voxels whose argmax is taken at a time: PyTorch gives it as int64, eight times the size of the labels."""


def label_dtype(classes: int) -> torch.dtype:
    """The smallest unsigned integer type that holds the labels ``0 .. classes - 1``.

    >>> label_dtype(256), label_dtype(257)
    (torch.uint8, torch.uint16)
    """
    return next(t for t in (torch.uint8, torch.uint16, torch.uint32) if classes - 1 <= torch.iinfo(t).max)


def argmax(scores: torch.Tensor) -> torch.Tensor:
    """The class with the highest score, the first one if there are several: ``(C, *chunk)`` to ``(1, *chunk)``."""
    labels = torch.empty((1, *scores.shape[1:]), dtype=label_dtype(scores.shape[0]), device=scores.device)
    step = max(1, ROW_VOXELS // max(scores[0, :1].numel(), 1))
    for start in range(0, scores.shape[1], step):
        rows = slice(start, start + step)
        # torch.max is about twice as fast as torch.argmax along the first dimension on a CPU, and breaks ties alike
        labels[0, rows] = torch.max(scores[:, rows], dim=0).indices
    return labels


def match_postprocessing(postprocessing: Any, keys: list[Hashable] | None, outputs: int) -> list[Postprocessing | None]:
    """One postprocessing for each output of the network, ``keys`` being their names where it returns a dict."""
    if isinstance(postprocessing, dict):
        if keys is None or set(keys) != set(postprocessing):
            found = f"{outputs} output(s) without names" if keys is None else f"the outputs {keys}"
            raise ValueError(f"postprocessing is for the outputs {sorted(postprocessing)} but the network has {found}")
        each = [postprocessing[key] for key in keys]
    elif isinstance(postprocessing, (tuple, list)):
        if len(postprocessing) != outputs:
            raise ValueError(
                f"postprocessing has {len(postprocessing)} entries but the network has {outputs} output(s); give one "
                f"for each, or one for all"
            )
        each = list(postprocessing)
    else:
        each = [postprocessing] * outputs
    return [argmax if one == "argmax" else one for one in each]
