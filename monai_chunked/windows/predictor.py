"""From a batch of windows to what the network says of them: predictions, and the weights to blend them with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.utils import ensure_tuple

from monai_chunked.plan.boxes import sizes
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.batches import Batch
from monai_chunked.windows.errors import name_windows, windows_text
from monai_chunked.windows.importance import Importance, at_sizes

__all__ = ["BoundNetwork", "FullBatches", "Prediction", "Predictor", "flatten"]


@dataclass
class Prediction:
    """What the network says of a batch of windows.

    Attributes:
        heads: as they are of windows of this size.
        tensors: the prediction of each head, ``(windows, C, *size)``.
        weights: to blend that of each head with, ``(1, *size)``.
    """

    heads: Heads
    tensors: list[torch.Tensor]
    weights: list[torch.Tensor]

    def of_windows(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """For each window what each head says, ``(C, *size)``, and the weights to blend it with."""
        for tensors in zip(*[tensor.unbind() for tensor in self.tensors]):
            yield list(zip(tensors, self.weights))


@dataclass
class BoundNetwork:
    """A network and its further arguments, which are bound here so that none is taken for one of somebody else.

    Attributes:
        network: whose weights predictions depend on.
        args, kwargs: further arguments.
        call: what is called with them, if not the network itself.
        wrapper: what ``call`` does with the network, in a form that can be compared.
    """

    network: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    call: Callable[..., Any] | None = None
    wrapper: object = None

    def __call__(self, *windows: Any, **condition: Any) -> Any:
        return (self.call or self.network)(*windows, *self.args, **condition, **self.kwargs)


class FullBatches:
    """A network that gets shorter batches filled up with their last window, whose further predictions are dropped.

    For networks that know no other size: torch.compile, TensorRT and ONNX with static shapes.

    Args:
        network: called with windows, and what belongs to each of them: their slices, a condition.
        size: of a batch.
    """

    def __init__(self, network: Callable[..., Any], size: int) -> None:
        self.network = network
        self.size = size

    def __call__(self, windows: torch.Tensor, *coordinates: list[list[slice]], **condition: torch.Tensor) -> Any:
        number = len(windows)
        if number >= self.size:
            return self.network(windows, *coordinates, **condition)
        positions = [slices + slices[-1:] * (self.size - number) for slices in coordinates]
        named = {name: self._filled(tensor) for name, tensor in condition.items()}
        prediction = self.network(self._filled(windows), *positions, **named)
        if isinstance(prediction, Mapping):
            return {key: self._without(tensor, number) for key, tensor in prediction.items()}
        if isinstance(prediction, (tuple, list)):
            return [self._without(tensor, number) for tensor in prediction]
        return self._without(prediction, number)

    def _filled(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[-1:].expand(self.size - len(tensor), *tensor.shape[1:])])

    def _without(self, prediction: Any, number: int) -> Any:
        """The prediction for the windows that were there before."""
        if not isinstance(prediction, torch.Tensor):
            return prediction  # which is refused later
        if prediction.dim() == 0 or len(prediction) != self.size:
            raise ValueError(
                f"the network must return a prediction for each of the {self.size} windows of a batch (fill_batches), "
                f"got shape {tuple(prediction.shape)}"
            )
        return prediction[:number]


class Predictor:
    """Runs the network on windows, and checks what it returns.

    Args:
        network: with its further arguments.
        importance: makes importance maps, as MONAI hands them to ``process_fn``.
        process_fn: as in MONAI.
        device: where the network runs.
        with_coord: pass the position of the windows as second argument.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        importance: Importance,
        *,
        process_fn: Callable[..., Any] | None,
        device: torch.device,
        with_coord: bool,
    ) -> None:
        self.network = network
        self.importance = importance
        self.process_fn = process_fn
        self.device = device
        self.with_coord = with_coord
        self._expected = Heads()
        self._expected_size: tuple[int, ...] = ()
        self._before: tuple[tuple[object, ...], Heads] | None = None  # what was checked last
        self._weights: dict[tuple[int, ...], list[torch.Tensor]] = {}
        self._first_weights: dict[tuple[int, ...], list[torch.Tensor]] = {}

    def __call__(self, read: Batch) -> Prediction:
        """Predict the windows of a batch that the network gets.

        Raises:
            ValueError: when the prediction does not fit the windows or the predictions before.
        """
        batch, (data, *condition) = read.predicted, read.data
        positional: list[torch.Tensor | list[list[slice]]] = [data]
        if self.with_coord:
            positional.append([[slice(window.image, window.image + 1), slice(None), *window.box] for window in batch])
        named = {"condition": condition[0]} if condition else {}
        with name_windows(batch, "predicting"):
            returned = self.network(*positional, **named)
        return self.of(batch, returned, data)

    def of(self, batch: Sequence[Window], returned: Any, data: torch.Tensor | None = None) -> Prediction:
        """The prediction in what a network has returned for windows.

        Args:
            batch: the windows.
            returned: a tensor ``(windows, C, *size)``, or several in a tuple, list or dict.
            data: of the windows, for a ``process_fn``.

        Raises:
            ValueError: when it does not fit the windows or what was returned before.
        """
        keys, tensors = flatten(returned)
        size = sizes(batch[0].box)
        weights = self.importance(size)
        if self.process_fn is not None:
            processed, weights = self.process_fn(tuple(tensors), data, weights)
            tensors = list(ensure_tuple(processed))
            if keys is not None:  # as in MONAI
                keys, tensors = keys[: len(tensors)], tensors[: len(keys)]
        heads = self._check(batch, keys, tensors, size)
        if self.process_fn is not None or size not in self._weights:
            weights = weights.to(self.importance.device, self.importance.dtype)
            self._weights[size] = at_sizes(weights, size, [head.size for head in heads])
            self._first_weights.setdefault(size, self._weights[size])
        return Prediction(heads, [tensor.to(self.device) for tensor in tensors], self._weights[size])

    def expect(self, heads: Heads, roi_size: tuple[int, ...]) -> None:
        """What others have seen of the network, where no window is predicted here.

        Args:
            heads: of the network.
            roi_size: of a window.
        """
        self._expected, self._expected_size = heads, roi_size

    def first_weights(self, head: int, size: tuple[int, ...]) -> torch.Tensor:
        """The weights of a head, ``(1, *size)``, that came with the first batch of windows of a size.

        They are the importance map where no window of that size was predicted yet.
        """
        if size not in self._first_weights:
            heads = self._expected.scaled(self._expected_size, size)
            self._first_weights[size] = at_sizes(self.importance(size), size, [head.size for head in heads])
        return self._first_weights[size][head]

    def _check(
        self,
        batch: Sequence[Window],
        keys: tuple[Hashable, ...] | None,
        tensors: list[torch.Tensor],
        size: tuple[int, ...],
    ) -> Heads:
        shapes = [tensor.shape if isinstance(tensor, torch.Tensor) else None for tensor in tensors]
        if self._before is not None and self._before[0] == (keys, shapes, size, len(batch)):
            return self._before[1]
        dims = len(size)
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(
                    f"the network must return tensors, got {type(tensor).__name__} for {windows_text(batch)}"
                )
            if tensor.dim() != dims + 2 or len(tensor) != len(batch) or 0 in tensor.shape:
                raise ValueError(
                    f"the network must return shape ({len(batch)}, C, {'*' * dims}) with {dims} spatial dimensions, "
                    f"got {tuple(tensor.shape)} for {windows_text(batch)}"
                )
        if not tensors:
            raise ValueError(f"the network returned nothing for {windows_text(batch)}")
        heads = Heads.of([tensor.shape[1:] for tensor in tensors], keys)
        if not self._expected:
            self._expected, self._expected_size = heads, size
        expected = self._expected.scaled(self._expected_size, size)
        if heads != expected:
            raise ValueError(
                f"the network must return the same channels and sizes for every window: "
                f"{_heads_text(expected)} before, {_heads_text(heads)} for {windows_text(batch)}"
            )
        self._before = (keys, shapes, size, len(batch)), heads
        return heads


def flatten(prediction: Any) -> tuple[tuple[Hashable, ...] | None, list[torch.Tensor]]:
    """Tensors that a network returns, and their keys where it returns a dict, sorted as MONAI sorts them."""
    if isinstance(prediction, torch.Tensor):
        return None, [prediction]
    if isinstance(prediction, Mapping):
        keys = tuple(sorted(prediction))
        return keys, [prediction[key] for key in keys]
    return None, list(ensure_tuple(prediction))


def _heads_text(heads: Heads) -> str:
    shapes = [str((head.channels, *head.size)) for head in heads]
    named = shapes if heads.keys is None else [f"{key}: {shape}" for key, shape in zip(heads.keys, shapes)]
    return ", ".join(named)
