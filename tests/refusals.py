"""A network that counts its calls, ways to make it fail, and errors as users read them; a helper."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.data.utils import dense_patch_slices

from monai_chunked import ChunkedSlidingWindowInferer, chunked_sliding_window_inference

VOLUME = torch.linspace(0, 1, 12**3).reshape(1, 1, 12, 12, 12)
WINDOWS = dense_patch_slices((12, 12, 12), (8, 8, 8), (6, 6, 6))


class Network:
    """Two scores for each voxel, and a count of the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return torch.cat([windows, 1 - windows], 1)


def never(windows: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the network ran")


def by_class(inputs: Any, network: Any, condition: Any = None, **parameters: Any) -> Any:
    condition = {} if condition is None else {"condition": condition}
    return ChunkedSlidingWindowInferer(**{"roi_size": 8, **parameters})(inputs, network, **condition)


def by_function(inputs: Any, network: Any, **parameters: Any) -> Any:
    parameters = {"roi_size": 8, "sw_batch_size": 1, **parameters}
    return chunked_sliding_window_inference(inputs, predictor=network, **parameters)


both_entries = pytest.mark.parametrize("infer", [by_class, by_function])


def shown(error: BaseException) -> str:
    """The error as a user reads it at the end of a traceback."""
    return "".join(traceback.format_exception_only(type(error), error))


def position(window: tuple[slice, ...]) -> str:
    return ", ".join(f"{s.start}:{s.stop}" for s in window)


def failing_at(call: int, error: BaseException) -> Callable[[torch.Tensor], torch.Tensor]:
    calls = iter(range(1, 1000))

    def network(windows: torch.Tensor) -> torch.Tensor:
        if next(calls) == call:
            raise error
        return windows

    return network


def changing_at(call: int, change: Callable[[torch.Tensor], Any], before: Any = None) -> Callable[[torch.Tensor], Any]:
    calls = iter(range(1, 1000))
    before = before or (lambda windows: windows)
    return lambda windows: change(windows) if next(calls) >= call else before(windows)
