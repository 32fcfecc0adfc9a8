"""The plan of an evaluator's image, said when the network's first prediction shows how many classes there are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from monai_chunked.api.adapt_inferer import ChunkedSlidingWindowInfererAdapt
from monai_chunked.api.inferer import ChunkedSlidingWindowInferer
from monai_chunked.call.settings import Settings
from monai_chunked.outputs.base import ResumableOutput
from monai_chunked.windows.predictor import flatten

__all__ = ["plan_logged", "what_plans"]


logger = logging.getLogger("monai_chunked")


PLAIN = (bool, int, float, str, list, tuple, torch.device)


@contextmanager
def plan_logged(network: Any, inferer: ChunkedSlidingWindowInferer, image: Any, which: str) -> Iterator[None]:
    """Log the plan once, after the first prediction.

    Args:
        network: its forward pass is watched.
        inferer: plans.
        image: what it runs on.
        which: what the log calls the image, such as "the first image".
    """

    def say(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        handle.remove()
        _, heads = flatten(outputs)
        if all(isinstance(head, torch.Tensor) and head.dim() > 2 for head in heads):
            classes = [head.shape[1] for head in heads]
            logger.info("%s:\n%s", which, inferer.plan(image, classes, heads[0].shape[2:]))

    if not _can_be_watched(network, inferer):
        yield
        return
    handle = network.register_forward_hook(say)
    try:
        yield
    finally:
        handle.remove()


def what_plans(inferer: ChunkedSlidingWindowInferer) -> str:
    """The parameters that a plan depends on, as text: if it stays the same, so does the plan."""
    given = Settings.given(inferer)
    return repr({name: value for name, value in given.items() if isinstance(value, PLAIN)})


def _can_be_watched(network: object, inferer: ChunkedSlidingWindowInferer) -> bool:
    """Whether a hook changes nothing. Runs that may be resumed or are shared compare the network with its hooks."""
    plans = type(inferer) in (ChunkedSlidingWindowInferer, ChunkedSlidingWindowInfererAdapt)
    if not plans or isinstance(inferer.output, ResumableOutput):
        return False
    compared = inferer.output_dir is not None or inferer.process_group is not None
    return isinstance(network, torch.nn.Module) and not isinstance(network, torch.jit.ScriptModule) and not compared
