"""Our inferer and MONAI's on the same inputs, and a network that keeps what it is called with; a helper."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer

SETTINGS: dict[str, Any] = {"roi_size": (6, 5, 4), "overlap": 0.5, "mode": "gaussian"}
SIZE = (9, 8, 7)
with_gradients = pytest.mark.parametrize("grad", [pytest.param(True, id="gradients")], indirect=True)
with_and_without_gradients = pytest.mark.parametrize("grad", [True, False], ids=["gradients", "none"], indirect=True)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def volume(images: int = 2, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return random(images, channels, *SIZE, seed=seed)


def scores(windows: torch.Tensor, classes: int = 3) -> torch.Tensor:
    """Some function of the windows whose result is memory of its own."""
    k = torch.arange(1, classes + 1).reshape(-1, *[1] * (windows.dim() - 2)).to(windows)
    return torch.sigmoid(windows[:, :1] * k)


def infer(inputs: torch.Tensor, network: Callable[..., Any], *args: Any, call: Any = None, **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, network, *args, **(call or {}))


def monai(inputs: torch.Tensor, network: Callable[..., Any], *args: Any, call: Any = None, **parameters: Any) -> Any:
    return SlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, network, *args, **(call or {}))


def assert_same(ours: Any, reference: Any) -> None:
    """The same structure, keys in the same order, and the same bits."""
    assert isinstance(ours, type(reference))  # labels are tensors that know what they are
    if isinstance(reference, dict):
        assert list(ours) == list(reference)
        ours, reference = tuple(ours.values()), tuple(reference.values())
    if isinstance(reference, tuple):
        assert len(ours) == len(reference)
        for one, other in zip(ours, reference):
            assert_same(one, other)
        return
    assert ours.dtype == reference.dtype
    assert torch.equal(ours, reference)


needs_condition = pytest.mark.skipif(
    "condition" not in inspect.signature(SliceInferer.network_wrapper).parameters, reason="MONAI has no condition"
)


class Recorder:
    """Keeps a copy of all that a network is called with, in order."""

    def __init__(self, network: Callable[[torch.Tensor], Any] = scores) -> None:
        self.network = network
        self.windows: list[torch.Tensor] = []
        self.args: list[tuple[Any, ...]] = []
        self.kwargs: list[dict[str, Any]] = []

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.windows.append(windows.clone())
        self.args.append(args)
        self.kwargs.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
        return self.network(windows)


def assert_same_calls(ours: Recorder, reference: Recorder) -> None:
    assert len(ours.windows) == len(reference.windows) > 0
    for one, other in zip(ours.windows, reference.windows):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert ours.args == reference.args
    for one, other in zip(ours.kwargs, reference.kwargs):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert torch.equal(one[key], value) if isinstance(value, torch.Tensor) else one[key] == value


def added(entry: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(entry).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


STRUCTURES: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": scores,
    "tuple": lambda w: (scores(w), w.sin()),
    "list": lambda w: [scores(w), w.sin(), w.cos()],
    "list of one": lambda w: [scores(w)],
    "tuple of one": lambda w: (scores(w),),
    "dict": lambda w: {"a": scores(w), "b": w.sin()},
    "dict in another order": lambda w: {"z": scores(w), "b": w.sin(), "m": w.cos()},
    "dict of one": lambda w: {"scores": scores(w)},
    "dict with numbers for keys": lambda w: {10: scores(w), 9: w.sin()},
    "ordered dict": lambda w: OrderedDict(z=scores(w), b=w.sin()),
    "tuple for keys": lambda w: {("a", 2): scores(w), ("a", 1): w.sin()},
    "other channels": lambda w: (scores(w, 1), scores(w, 5)),
    "half the size": lambda w: scores(w)[..., ::2].contiguous(),
    "twice the size": lambda w: scores(w).repeat_interleave(2, dim=2),
    "both at once": lambda w: scores(w)[..., ::2].repeat_interleave(3, dim=3),
    "mixed sizes in a tuple": lambda w: (scores(w), w.sin()[:, :, ::2, ::2, ::2].contiguous()),
    "mixed sizes in a dict": lambda w: {"full": scores(w), "half": w.sin()[:, :, ::2].contiguous()},
}
