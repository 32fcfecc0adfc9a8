"""Batches of one size, for networks that know no other: torch.compile, TensorRT and ONNX with static shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["FullBatches"]


class FullBatches:
    """A network that gets shorter batches filled up with their last window, whose further predictions are dropped.

    Args:
        network: called with windows, and what belongs to each of them: their slices, a condition.
        size: of a batch.
    """

    def __init__(self, network: Callable[..., Any], size: int) -> None:
        self.network = network
        self.size = size

    def __call__(self, windows: torch.Tensor, *coordinates: list[Any], **condition: torch.Tensor) -> Any:
        number = len(windows)
        if number >= self.size:
            return self.network(windows, *coordinates, **condition)
        filled = [each + each[-1:] * (self.size - number) for each in coordinates]
        named = {name: self._filled(tensor) for name, tensor in condition.items()}
        prediction = self.network(self._filled(windows), *filled, **named)
        if isinstance(prediction, Mapping):
            return {key: self._without(tensor, number) for key, tensor in prediction.items()}
        if isinstance(prediction, (tuple, list)):
            return [self._without(tensor, number) for tensor in prediction]
        return self._without(prediction, number)

    def _filled(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[-1:].expand(self.size - len(tensor), *tensor.shape[1:])])

    def _without(self, prediction: Any, number: int) -> Any:
        """What belongs to the windows that were there."""
        if not isinstance(prediction, torch.Tensor):
            return prediction  # refused for what it is
        if prediction.dim() == 0 or len(prediction) != self.size:
            raise ValueError(
                f"the network must return a prediction for each of the {self.size} windows of a batch (fill_batches), "
                f"got shape {tuple(prediction.shape)}"
            )
        return prediction[:number]
