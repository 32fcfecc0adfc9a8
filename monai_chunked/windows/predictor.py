"""From a batch of windows to what the network says of them: predictions, and the weights to blend them with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.utils import ensure_tuple

from monai_chunked.plan.boxes import sizes
from monai_chunked.plan.heads import Head
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.batches import Batch
from monai_chunked.windows.errors import name_windows, windows_text
from monai_chunked.windows.importance import Importance, at_sizes

__all__ = ["BoundNetwork", "Prediction", "Predictor", "at_size", "pack"]


@dataclass
class Prediction:
    """What the network says of a batch of windows.

    Attributes:
        keys: of the heads where the network returns a dict, sorted as MONAI sorts them.
        tensors: the heads, ``(windows, C, *size)`` each.
        weights: of each head, ``(1, *size)``.
    """

    keys: list[Hashable] | None
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
    wrapper: Any = None

    def __call__(self, *windows: Any, **condition: Any) -> Any:
        return (self.call or self.network)(*windows, *self.args, **condition, **self.kwargs)


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
        process_fn: Callable[..., Any] | None,
        device: torch.device,
        with_coord: bool,
    ) -> None:
        self.network = network
        self.importance = importance
        self.process_fn = process_fn
        self.device = device
        self.with_coord = with_coord
        self._expected: tuple[Any, ...] = ()
        self._checked: tuple[Any, ...] | None = None  # of the batch before
        self._first_size: tuple[int, ...] = ()
        self._weights: dict[tuple[int, ...], list[torch.Tensor]] = {}
        self._first_weights: dict[tuple[int, ...], list[torch.Tensor]] = {}

    def __call__(self, read: Batch) -> Prediction:
        """Predict the windows of a batch that the network gets.

        Raises:
            ValueError: when the prediction does not fit the windows or the predictions before.
        """
        batch, (data, *condition) = read.predicted, read.data
        positional: list[Any] = [data]
        if self.with_coord:
            positional.append([[slice(w.image, w.image + 1), slice(None), *w.box] for w in batch])
        named = {"condition": condition[0]} if condition else {}
        with name_windows(batch, "predicting"):
            returned = self.network(*positional, **named)
        return self.of(batch, returned, data)

    def of(self, batch: Sequence[Window], returned: Any, data: torch.Tensor | None = None) -> Prediction:
        """What a network has returned of windows.

        Args:
            batch: the windows.
            returned: a tensor ``(windows, C, *size)``, or several in a tuple, list or dict.
            data: of the windows, for a ``process_fn``.

        Raises:
            ValueError: when it does not fit the windows or what was returned before.
        """
        keys, tensors = _flatten(returned)
        size = sizes(batch[0].box)
        weights = self.importance(size)
        if self.process_fn is not None:
            processed, weights = self.process_fn(tuple(tensors), data, weights)
            tensors = list(ensure_tuple(processed))
            if keys is not None:  # as in MONAI
                keys, tensors = keys[: len(tensors)], tensors[: len(keys)]
        self._check(batch, keys, tensors, size)
        if self.process_fn is not None or size not in self._weights:
            weights = weights.to(self.importance.device, self.importance.dtype)
            self._weights[size] = at_sizes(weights, size, [tuple(t.shape[2:]) for t in tensors])
            self._first_weights.setdefault(size, self._weights[size])
        return Prediction(keys, [t.to(self.device) for t in tensors], self._weights[size])

    def expect(self, keys: list[Hashable] | None, heads: Sequence[Head], roi_size: tuple[int, ...]) -> None:
        """What others have seen of the network, where no window is predicted here.

        Args:
            keys: of the heads where the network returns a dict.
            heads: of the network.
            roi_size: of a window.
        """
        self._expected = (keys, *((head.channels, *head.size) for head in heads))
        self._first_size = roi_size

    def first_weights(self, head: int, size: tuple[int, ...]) -> torch.Tensor:
        """The weights of a head, ``(1, *size)``, that came with the first batch of windows of a size.

        They are the importance map where no window of that size was predicted yet.
        """
        if size not in self._first_weights:
            shapes: Any = self._expected[1:]
            heads = [self._at_size(shape[1:], size) for shape in shapes]
            self._first_weights[size] = at_sizes(self.importance(size), size, heads)
        return self._first_weights[size][head]

    def _at_size(self, predicted: Sequence[int], size: tuple[int, ...]) -> tuple[int, ...]:
        """The size of a prediction of a window of some size, from that of the first one."""
        return at_size(predicted, self._first_size, size)

    def _check(
        self, batch: Sequence[Window], keys: list[Hashable] | None, tensors: list[torch.Tensor], size: tuple[int, ...]
    ) -> None:
        shapes = [tensor.shape if isinstance(tensor, torch.Tensor) else None for tensor in tensors]
        if (keys, shapes, size) == self._checked:
            return
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
        found = (keys, *(tuple(t.shape[1:]) for t in tensors))
        if not tensors:
            raise ValueError(f"the network returned nothing for {windows_text(batch)}")
        if not self._expected:
            self._expected, self._first_size = found, size
        before: Any = self._expected[1:]
        scaled = (self._expected[0], *((shape[0], *self._at_size(shape[1:], size)) for shape in before))
        if found != scaled:
            raise ValueError(
                f"the network must return the same channels and sizes for every window: "
                f"{_heads_text(scaled)} before, {_heads_text(found)} for {windows_text(batch)}"
            )
        self._checked = keys, shapes, size


def at_size(predicted: Sequence[int], window: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """The spatial size of a prediction of a window of another size.

    >>> at_size((4, 8), window=(8, 8), other=(6, 8))
    (3, 8)
    """
    return tuple(n * new // old for n, old, new in zip(predicted, window, other))


def pack(keys: list[Hashable] | None, results: Sequence[torch.Tensor]) -> Any:
    """The structure that MONAI returns: a dict, a tuple, or the only tensor."""
    if keys is not None:
        return dict(zip(keys, results))
    return results[0] if len(results) == 1 else tuple(results)


def _flatten(prediction: Any) -> tuple[list[Hashable] | None, list[torch.Tensor]]:
    if isinstance(prediction, torch.Tensor):
        return None, [prediction]
    if isinstance(prediction, Mapping):
        keys = sorted(prediction)
        return keys, [prediction[key] for key in keys]
    return None, list(ensure_tuple(prediction))


def _heads_text(expected: tuple[Any, ...]) -> str:
    keys, *shapes = expected
    named = shapes if keys is None else [f"{key}: {shape}" for key, shape in zip(keys, shapes)]
    return ", ".join(map(str, named))
