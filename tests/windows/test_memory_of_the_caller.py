"""What belongs to the caller or the network is never written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from tests.side_by_side import infer, monai, random, volume, with_and_without_gradients

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


class WritesInPlace(torch.nn.Module):
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.add_(1).sin_()


VIEWS: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[torch.Tensor], Any]]] = {
    "identity": (torch.nn.Identity(), torch.clone),
    "view": (lambda w: w[:, :1], lambda w: w[:, :1].clone()),
    "permuted view": (lambda w: w.flip(1).transpose(2, 3).transpose(2, 3), lambda w: w.flip(1).clone()),
    "views in a tuple": (lambda w: (w, w[:, :1]), lambda w: (w.clone(), w[:, :1].clone())),
    "relu in place": (torch.nn.ReLU(inplace=True), torch.nn.ReLU()),
    "written to": (WritesInPlace(), lambda w: (w + 1).sin()),
}
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda t: t,
    "MetaTensor": MetaTensor,
    "transposed": lambda t: t.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2),
    "strided": lambda t: t.repeat_interleave(2, dim=4)[..., ::2],
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last_3d),
    "expanded over images": lambda t: t[:1].expand(2, -1, -1, -1, -1),
}


@with_and_without_gradients
@pytest.mark.parametrize("network", VIEWS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_the_callers_input_is_never_written_to_and_every_window_is_read_from_it(
    network: str, layout: str, sw_batch_size: int
) -> None:
    writing, pure = VIEWS[network]
    inputs = LAYOUTS[layout](volume(channels=2))
    before, version = inputs.clone(), inputs._version
    ours = infer(inputs, writing, sw_batch_size=sw_batch_size)
    assert torch.equal(inputs, before)
    assert inputs._version == version
    reference = monai(inputs, pure, sw_batch_size=sw_batch_size)
    assert torch.equal(inputs, before)
    if isinstance(reference, tuple):
        ours, reference = ours[0], reference[0]
    assert torch.allclose(ours, reference, rtol=1e-6, atol=1e-6)


@with_and_without_gradients
@pytest.mark.parametrize("how", ["whole image in one window", "padded", "buffered"])
def test_the_callers_input_is_never_written_to_however_windows_lie(how: str) -> None:
    parameters: dict[str, Any] = {
        "whole image in one window": {"roi_size": -1},
        "padded": {"roi_size": (12, 4, 4)},
        "buffered": {"buffer_steps": 1},
    }[how]
    inputs = volume()
    before = inputs.clone()
    ours = infer(inputs, WritesInPlace(), **parameters)
    assert torch.equal(inputs, before)
    assert torch.allclose(ours, monai(inputs, lambda w: (w + 1).sin(), **parameters), atol=1e-6)


@with_and_without_gradients
def test_the_callers_condition_is_never_written_to() -> None:
    condition = volume(seed=1)
    before = condition.clone()
    infer(volume(), lambda windows, condition: condition.add_(windows), call={"condition": condition})
    assert torch.equal(condition, before)


def test_an_expanded_input_is_refused_to_writers_as_pytorch_refuses_it_and_left_alone() -> None:
    inputs = volume()[..., :1].expand(-1, -1, -1, -1, 7)
    before = inputs.clone()
    for run in (infer, monai):
        with pytest.raises(RuntimeError, match="single memory location"):
            run(inputs, torch.nn.ReLU(inplace=True))
    assert torch.equal(inputs, before)
    assert torch.equal(infer(inputs, torch.nn.Identity()), monai(inputs, torch.clone))


@with_and_without_gradients
def test_what_the_network_keeps_is_not_written_to() -> None:
    constant = random(1, 3, 6, 5, 4)
    before = constant.clone()
    ours = infer(volume(), lambda windows: constant)
    assert torch.equal(constant, before)
    assert torch.equal(ours, monai(volume(), lambda windows: constant.clone()))
