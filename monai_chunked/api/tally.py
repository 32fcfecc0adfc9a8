"""What a patched program has run, and in words what that saved and what would save more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from monai_chunked.call.bill import plan_inferer
from monai_chunked.plan.chunk_plan import ChunkPlan
from monai_chunked.plan.sizes import format_bytes
from monai_chunked.windows.predictor import flatten

__all__ = ["Chunked", "Tally"]


GEOMETRY = ("roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode")
"""The parameters that a plan depends on, which hold no tensors."""


A_LOT = 0.75
"""Labels are advised if a call takes less than this fraction with them."""


class Chunked:
    """What is kept of a call that ran in chunks: sizes, no tensors.

    Args:
        inputs: of the call.
        parameters: of the call.
        result: what it returned.
        is_scores: whether that is scores as they are.
    """

    def __init__(self, inputs: torch.Tensor, parameters: Mapping[str, Any], result: Any, is_scores: bool) -> None:
        _, heads = flatten(result)
        self.is_scores = is_scores
        self.nbytes = sum(head.numel() * head.element_size() for head in heads)
        self.heads = [tuple(head.shape) for head in heads]
        self._shape = tuple(inputs.shape)
        self._is_float32 = inputs.dtype == torch.float32
        self._geometry = {name: parameters[name] for name in GEOMETRY}
        self._geometry["sw_device"] = parameters["sw_device"] or inputs.device
        self._geometry["device"] = parameters["device"] or inputs.device

    def plan(self, postprocessing: str | None) -> ChunkPlan | None:
        """What it takes with a postprocessing; ``None``: inputs are not float32, or results of another size."""
        if not self._is_float32 or any(head[2:] != self._shape[2:] for head in self.heads):
            return None
        inferer: Any = SimpleNamespace(**self._geometry, output="device", postprocessing=postprocessing)
        return plan_inferer(inferer, self._shape, [head[1] for head in self.heads])


class Tally:
    """How many calls there were, what they returned, and the largest of them."""

    def __init__(self) -> None:
        self.calls = 0
        self.scores = 0
        self.scores_bytes = 0
        self.largest: Chunked | None = None
        self.left: Counter[str] = Counter()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was called."""
        return not (self.calls or self.left)

    def add(self, call: Chunked | str) -> None:
        """One more call.

        Args:
            call: one that ran in chunks, or why one was left to MONAI's code.
        """
        if isinstance(call, str):
            self.left[call] += 1
            return
        self.calls += 1
        if not call.is_scores:
            return
        self.scores += 1
        self.scores_bytes += call.nbytes
        if self.largest is None or call.nbytes > self.largest.nbytes:
            self.largest = call

    def __str__(self) -> str:
        lines = [f"{_calls(self.calls)} of MONAI's sliding_window_inference ran in chunks"]
        lines += [f"{_calls(number)} left to MONAI's own code: {reason}" for reason, number in self.left.items()]
        if self.calls > self.scores:
            lines.append(f"made chunk by chunk: results of {_calls(self.calls - self.scores)}, by postprocessing=")
        if self.largest is not None:
            shapes = " and ".join(" x ".join(map(str, head)) for head in self.largest.heads)
            lines.append(
                f"held whole by the program: scores of {_calls(self.scores)}, {format_bytes(self.scores_bytes)}, "
                f"of which the largest takes {format_bytes(self.largest.nbytes)} ({shapes})"
            )
            lines += _advice(self.largest)
        return "\n".join(lines)


def _advice(call: Chunked) -> list[str]:
    """What was saved beside the scores, and what would save more."""
    scores = call.plan(None)
    if scores is None:
        return []
    images = call.heads[0][0]
    maps = scores.monai_bytes * len(call.heads) // sum(images * head[1] + 1 for head in call.heads)
    lines = [f"saved there: MONAI's map of weights, {format_bytes(maps)}"]
    has_classes = all(head[1] > 1 for head in call.heads)  # else there is nothing to choose from
    labels = call.plan("argmax") if has_classes else None
    if labels is None:
        return lines
    with_scores, with_labels = (plan.device_bytes + plan.cpu_bytes for plan in (scores, labels))
    if with_labels < A_LOT * with_scores:
        lines.append(
            f"to save more: it takes {format_bytes(with_scores)} with scores, {format_bytes(with_labels)} with labels "
            f"that are made chunk by chunk, as planned beside the network's own memory. In a config give "
            f"monai_chunked.split_postprocessing's two parts to monai_chunked.ChunkedSlidingWindowInferer("
            f"postprocessing=...) and to what comes behind; else postprocessing=... where the program forwards keywords"
        )
    return lines


def _calls(number: int) -> str:
    return f"{number:,} call{'s' * (number != 1)}"
