"""Gradients are MONAI's wherever the result is in memory and not postprocessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from tests.side_by_side import infer, monai, random, scores, volume, with_gradients

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


def gradients(
    run: Callable[..., Any], structure: Callable[[torch.Tensor], Any], **parameters: Any
) -> tuple[list[torch.Tensor], bool]:
    """Of the inputs and of all parameters of a network; and whether all results require them."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.Tanh())
    inputs = volume().requires_grad_()
    results = run(inputs, lambda windows: structure(network(windows)), overlap=0.25, **parameters)
    results = list(results.values()) if isinstance(results, Mapping) else results
    results = [results] if isinstance(results, torch.Tensor) else results
    loss = sum((result * random(*result.shape, seed=3)).sum() for result in results)
    loss.backward()
    return [inputs.grad, *(p.grad for p in network.parameters())], all(r.requires_grad for r in results)


def assert_monais_gradients(structure: Callable[[torch.Tensor], Any], sw_batch_size: int, **parameters: Any) -> None:
    ours, ours_required = gradients(infer, structure, sw_batch_size=sw_batch_size, **parameters)
    reference, required = gradients(monai, structure, sw_batch_size=sw_batch_size)
    assert ours_required is required is True
    for one, other in zip(ours, reference):
        assert other.abs().sum() > 0
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@with_gradients
@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize(
    "structure",
    [lambda t: t * 1, lambda t: (t * 1, t * 2), lambda t: {"b": t * 1, "a": t * 2}],
    ids=["tensor", "tuple", "dict"],
)
def test_gradients_of_inputs_and_parameters_are_monais(
    structure: Callable[[torch.Tensor], Any], sw_batch_size: int
) -> None:
    assert_monais_gradients(structure, sw_batch_size)


@with_gradients
@pytest.mark.parametrize(
    "parameters",
    [{"chunk_size": 4}, {"output": "device"}, {"output": "cpu"}, {"buffer_steps": 1}],
    ids=lambda parameters: next(iter(parameters)),
)
def test_gradients_are_monais_for_any_chunks_and_any_place_in_memory(parameters: dict[str, Any]) -> None:
    assert_monais_gradients(lambda t: t * 1, 2, **parameters)


@with_gradients
def test_gradients_reach_networks_whose_predictions_monai_overwrites() -> None:
    """Tanh needs its own result for its gradient; MONAI weighs that in place."""
    ours, required = gradients(infer, lambda t: t)
    reference, _ = gradients(monai, lambda t: t.clone())
    assert required
    for one, other in zip(ours, reference):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_values_are_the_same_bits_with_and_without_gradients() -> None:
    network = torch.nn.Conv3d(1, 3, 1)
    without_gradients = infer(volume(), network)
    assert not without_gradients.requires_grad
    with torch.enable_grad():
        with_gradients = infer(volume(), network)
    assert with_gradients.requires_grad
    assert torch.equal(with_gradients, without_gradients)
    assert torch.equal(without_gradients, monai(volume(), network))


@with_gradients
def test_gradients_reach_a_metatensor() -> None:
    results = []
    for run in (infer, monai):
        inputs = MetaTensor(volume()).requires_grad_()
        result = run(inputs, lambda windows: scores(windows) * 1)
        assert result.requires_grad
        (result * random(*result.shape, seed=3)).sum().backward()
        results.append(torch.as_tensor(inputs.grad))
    assert torch.allclose(*results, rtol=1e-4, atol=1e-6)


@with_gradients
@pytest.mark.parametrize(
    "parameters",
    [{"output": "disk"}, {"postprocessing": torch.neg}, {"postprocessing": "argmax", "output": "disk"}],
    ids=["disk", "postprocessing", "both"],
)
def test_on_disk_and_with_postprocessing_inference_runs_without_gradients(parameters: dict[str, Any]) -> None:
    enabled = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        enabled.append(torch.is_grad_enabled())
        return convolution(windows)

    convolution = torch.nn.Conv3d(1, 3, 1)
    result = infer(volume().requires_grad_(), network, **parameters)
    assert not any(enabled)
    assert not result.requires_grad
    assert torch.is_grad_enabled()
    expected = monai(volume(), convolution).detach()
    if "postprocessing" in parameters:
        expected = -expected if parameters["postprocessing"] is torch.neg else expected.argmax(1, keepdim=True)
    assert torch.equal(result.to(expected.dtype), expected)
