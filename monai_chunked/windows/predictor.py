"""From a batch of windows to what the network says of them: predictions, and the weights to blend them with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple

from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.importance import _at_roi
from monai_chunked.windows.read_ahead import ReadAhead
from monai_chunked.windows.reader import Image

__all__ = ["BoundNetwork", "Prediction", "Predictor", "pack"]


@dataclass
class Prediction:
    """What the network says of a batch of windows.

    Attributes:
        keys: of the outputs where the network returns a dict, sorted as MONAI sorts them.
        tensors: the outputs, ``(windows, C, *prediction_size)`` each.
        weights: of each output, ``(1, *prediction_size)``.
    """

    keys: list[Hashable] | None
    tensors: list[torch.Tensor]
    weights: list[torch.Tensor]

    def names(self) -> list[str]:
        """What to call each output in messages and file names."""
        if len(self.tensors) == 1:
            return ["prediction"]
        return [f"prediction-{key}" for key in self.keys or range(len(self.tensors))]


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
    """Reads windows, runs the network on them, and checks what it returns.

    Args:
        network: called as MONAI calls it.
        image: where windows are read from.
        condition: like ``image``, or ``None``.
        importance: importance map, as MONAI hands it to ``process_fn``.
        process_fn: as in MONAI.
        ahead: read the next windows in a thread while the network runs; for what autograd need not see.
        device: where the network runs.
        with_coord: pass the position of the windows as second argument.
        args, kwargs: further arguments of the network.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        image: Image,
        condition: Image | None,
        importance: torch.Tensor,
        process_fn: Callable[..., Any] | None,
        ahead: bool,
        device: torch.device,
        with_coord: bool,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.network = network
        self.image = image
        self.condition = condition
        self.importance = importance
        self.process_fn = process_fn
        self.device = device
        self.with_coord = with_coord
        self.args = args
        self.kwargs = kwargs
        self._expected: tuple[Any, ...] | None = None
        self._weights: list[torch.Tensor] | None = None
        self._reader = ReadAhead(self._read, device) if ahead else None

    def __call__(self, batch: Sequence[Window], following: Sequence[Window] | None = None) -> Prediction:
        """Predict a batch of windows.

        Args:
            batch: the windows.
            following: the batch that will be asked for next; ``None`` if that is not known.

        Raises:
            ValueError: when the prediction does not fit the windows or the predictions before.
        """
        data, *condition = self._read(batch) if self._reader is None else self._reader.get(batch, following)
        positional: list[Any] = [data]
        if self.with_coord:
            positional.append([[slice(w.image, w.image + 1), slice(None), *w.box] for w in batch])
        named = dict(self.kwargs)
        if condition:
            (named["condition"],) = condition
        with _naming(batch, "predicting"):
            keys, tensors = _flatten(self.network(*positional, *self.args, **named))
        weights = self.importance
        if self.process_fn is not None:
            processed, weights = self.process_fn(tuple(tensors), data, weights)
            tensors = list(ensure_tuple(processed))
            if keys is not None:  # as in MONAI
                keys, tensors = keys[: len(tensors)], tensors[: len(keys)]
        self._check(batch, keys, tensors, data.dim() - 2)
        if self.process_fn is not None or self._weights is None:
            self._weights = self._resample(weights, tuple(data.shape[2:]), [tuple(t.shape[2:]) for t in tensors])
        return Prediction(keys, [t.to(self.device) for t in tensors], self._weights)

    def close(self) -> None:
        """The run is over, well or not."""
        if self._reader is not None:
            self._reader.close()

    def _read(self, batch: Sequence[Window]) -> list[torch.Tensor]:
        with _naming(batch, "reading"):
            return [image.read(batch) for image in (self.image, self.condition) if image is not None]

    def _check(
        self, batch: Sequence[Window], keys: list[Hashable] | None, tensors: list[torch.Tensor], dims: int
    ) -> None:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"the network must return tensors, got {type(tensor).__name__} for {_position(batch)}")
            if tensor.dim() != dims + 2 or len(tensor) != len(batch) or 0 in tensor.shape:
                raise ValueError(
                    f"the network must return shape ({len(batch)}, C, {'*' * dims}) with {dims} spatial dimensions, "
                    f"got {tuple(tensor.shape)} for {_position(batch)}"
                )
        found = (keys, *(tuple(t.shape[1:]) for t in tensors))
        if not tensors:
            raise ValueError(f"the network returned nothing for {_position(batch)}")
        if self._expected is None:
            self._expected = found
        if found != self._expected:
            raise ValueError(
                f"the network must return the same channels and sizes for every window: "
                f"{_outputs(self._expected)} before, {_outputs(found)} for {_position(batch)}"
            )

    def _resample(
        self, weights: torch.Tensor, roi: tuple[int, ...], sizes: Sequence[tuple[int, ...]]
    ) -> list[torch.Tensor]:
        """The importance map at the resolution of each output.

        As MONAI does it, each from the one before where an output has another size than a window.
        """
        at_roi = current = _at_roi(weights.to(self.importance), roi)
        resampled = []
        for size in sizes:
            if size == roi:
                resampled.append(at_roi)
                continue
            for d, (old, new) in enumerate(zip(current.shape[1:], size), start=1):
                nearest = F.interpolate(torch.arange(float(old))[None, None], new, mode="nearest-exact")[0, 0].long()
                current = current.index_select(d, nearest.to(self.device))
            resampled.append(current)
        return resampled


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


@contextmanager
def _naming(batch: Sequence[Window], doing: str) -> Iterator[None]:
    """Adds the position of the windows to an error of the input or the network, and leaves its type as it is."""
    try:
        yield
    except Exception as error:
        note = f"(while {doing} {_position(batch)})"
        if len(error.args) == 1 and error.args[0] == str(error):
            error.args = (f"{error} {note}",)
        elif hasattr(error, "add_note"):  # Python >= 3.11; the arguments are something else than a message
            error.add_note(note)
        raise


def _position(batch: Sequence[Window]) -> str:
    windows = "; ".join(f"image {w.image} [{', '.join(f'{s.start}:{s.stop}' for s in w.box)}]" for w in batch)
    return f"{'window' if len(batch) == 1 else 'windows'} {windows}"


def _outputs(expected: tuple[Any, ...]) -> str:
    keys, *shapes = expected
    named = shapes if keys is None else [f"{key}: {shape}" for key, shape in zip(keys, shapes)]
    return ", ".join(map(str, named))
