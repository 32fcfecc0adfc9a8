"""Networks that see windows mirrored too: test-time augmentation as nnU-Net does it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.utils import ensure_tuple

__all__ = ["Mirrored"]


class Mirrored(torch.nn.Module):
    """
    A network whose output is the mean over its windows as they are and mirrored along axes, mirrored back.

    It sees each window ``2 ** len(axes)`` times: as it is, and mirrored along every subset of the axes, in the order of
    nnU-Net: by number of axes first. The outputs are added up in this order and divided at the end, in their dtype.

    It is a module that holds the network as ``network``, so that ``eval()``, ``to(device)`` and ``parameters()`` reach
    it. Keys of its ``state_dict`` begin with ``network.``: load weights into the network before, or into ``.network``.

    Args:
        network: called with ``(windows, C, *spatial)``; a module or any callable. It returns a tensor, or a tuple,
            list or dict of tensors ``(windows, C', *spatial')``.
        axes: the spatial axes, from 0; none: the network as it is.
        batch: whether it sees all that is made of its windows in one batch, ``2 ** len(axes)`` times as large, instead
            of one after the other. Faster where windows are small, takes that much more memory, and may have other last
            bits.

    Raises:
        ValueError: when an axis is negative or there twice.

    Example::

        network = Mirrored(network, axes=(0, 1, 2)).eval()
        scores = network(torch.rand(1, 1, 96, 96, 96))  # eight passes
    """

    def __init__(self, network: Callable[..., Any], axes: Sequence[int] | int, batch: bool = False) -> None:
        super().__init__()
        self.network = network
        self.axes = tuple(int(axis) for axis in ensure_tuple(axes))
        self.batch = batch
        if len(set(self.axes)) < len(self.axes) or min(self.axes, default=0) < 0:
            raise ValueError(f"axes={axes} must be spatial axes, counted from 0, each of them once")

    def forward(self, windows: torch.Tensor, *args: Any, condition: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """
        Args:
            windows: ``(windows, C, *spatial)``.
            args, kwargs: go to the network with each pass. The slices of windows, where the inferer hands them on,
                are of windows that are not mirrored.
            condition: mirrored as windows are.

        Raises:
            ValueError: when an axis is none of the spatial ones.
            TypeError: when the network returns something else than tensors.
        """
        if max(self.axes, default=-1) + 2 >= windows.dim():
            raise ValueError(f"axes={self.axes} must be less than {windows.dim() - 2}, the number of spatial axes")
        run = self._at_once if self.batch else self._in_turn
        predictions = run(windows, condition, args, kwargs)
        total = next(predictions)
        for number, prediction in enumerate(predictions):
            total = _map(torch.add if number == 0 else torch.Tensor.add_, total, prediction)
            del prediction
        return total if not self.axes else _map(lambda tensor: tensor / 2 ** len(self.axes), total)

    @property
    def _subsets(self) -> list[tuple[int, ...]]:
        """The dimensions of windows along which each pass is mirrored."""
        return [
            tuple(2 + axis for axis in subset)
            for number in range(len(self.axes) + 1)
            for subset in itertools.combinations(self.axes, number)
        ]

    def _in_turn(
        self, windows: torch.Tensor, condition: torch.Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Any]:
        """The prediction for each subset, from a pass of its own."""
        for axes in self._subsets:
            mirrored = {} if condition is None else {"condition": _flip(condition, axes)}
            yield _flip_all(self.network(_flip(windows, axes), *args, **mirrored, **kwargs), axes)

    def _at_once(
        self, windows: torch.Tensor, condition: torch.Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Any]:
        """The prediction for each subset, from one pass for all."""
        subsets = self._subsets

        def all_of(tensor: torch.Tensor) -> torch.Tensor:
            return torch.cat([_flip(tensor, axes) for axes in subsets])

        # an argument that is a list with one entry for each window holds their slices
        args = tuple(arg * len(subsets) if isinstance(arg, list) and len(arg) == len(windows) else arg for arg in args)
        mirrored = {} if condition is None else {"condition": all_of(condition)}
        prediction = self.network(all_of(windows), *args, **mirrored, **kwargs)
        for number, axes in enumerate(subsets):
            part = slice(number * len(windows), (number + 1) * len(windows))
            yield _flip_all(_map(lambda tensor, part=part: tensor[part], prediction), axes)


def _flip(tensor: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return tensor.flip(axes) if axes else tensor


def _flip_all(prediction: Any, axes: tuple[int, ...]) -> Any:
    return _map(lambda tensor: _flip(tensor, axes), prediction)


def _map(function: Callable[..., torch.Tensor], prediction: Any, *others: Any) -> Any:
    """Apply a function to each tensor that a network returns, and to the tensors in its place in other predictions."""
    if isinstance(prediction, torch.Tensor):
        return function(prediction, *others)
    if isinstance(prediction, Mapping):
        return {key: _map(function, value, *(other[key] for other in others)) for key, value in prediction.items()}
    if isinstance(prediction, (tuple, list)):
        kind = list if isinstance(prediction, list) else tuple
        return kind(_map(function, *values) for values in zip(prediction, *others))
    raise TypeError(f"the network must return tensors to be mirrored back, got {type(prediction).__name__}")
