"""What makes calls in two states, and what they share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from monai_chunked import ChunkedSlidingWindowInferer, NumpyOutput
from monai_chunked import chunked_sliding_window_inference as infer

SHAPE = (1, 1, 9, 8, 7)
MAKERS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {}


def maker(function: Callable[[Path, bool], dict[str, Any]]) -> Callable[[Path, bool], dict[str, Any]]:
    MAKERS[function.__name__] = function
    return function


def image(changed: bool = False) -> np.ndarray:
    values = np.random.default_rng(5).random(SHAPE, np.float32)
    values[0, 0, 4, 4, 4] += changed
    return values


def named(values: np.ndarray, **meta: Any) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values), meta={"filename_or_obj": "scan.nii", **meta})


def module(name: str, source: str) -> ModuleType:
    """As a notebook or a script of the user has it."""
    made = ModuleType(name)
    sys.modules[name] = made
    exec(source, vars(made))
    return made


class Network(torch.nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, 2, 1)
        torch.nn.init.constant_(self.convolution.weight, 0.5)
        torch.nn.init.constant_(self.convolution.bias, 0.25)
        self.factor = factor

    def forward(self, windows: torch.Tensor, shift: Any = 0.0, condition: Any = None) -> torch.Tensor:
        shift = 0.5 if isinstance(shift, list) else shift  # coordinates
        result = self.convolution(windows) * self.factor + shift
        return result if condition is None else result + condition.mean(1, keepdim=True)


def call(made: dict[str, Any], folder: Path, **more: Any) -> Any:
    """Of the function or a class, with what is not given as it always is."""
    usual = {"inputs": named(image()), "network": Network(), "roi_size": 4, "sw_batch_size": 1}
    made = {**usual, **made, **more}
    inputs, network, args = made.pop("inputs"), made.pop("network"), made.pop("args", ())
    kwargs, inferer = made.pop("kwargs", {}), made.pop("inferer", None)
    made["output"] = NumpyOutput(folder)
    with torch.no_grad():
        if "roi_weight_map" in made or "process_fn" in made:
            return infer(inputs, predictor=network, **made)
        return (inferer or ChunkedSlidingWindowInferer)(**made)(inputs, network, *args, **kwargs)
