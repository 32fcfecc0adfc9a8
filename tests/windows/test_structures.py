"""Predictions of any structure, size and layout come back as from MONAI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.side_by_side import STRUCTURES, assert_same, infer, monai, random, scores, volume, with_and_without_gradients

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


@with_and_without_gradients
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, (3, 4, 5)], ids=str)
def test_predictions_of_any_structure_come_back_as_from_monai(
    structure: str, sw_batch_size: int, chunk_size: Any
) -> None:
    network = STRUCTURES[structure]
    parameters: dict[str, Any] = {"roi_size": 4, "sw_batch_size": sw_batch_size}
    inputs = random(2, 1, 6, 8, 4)
    reference = monai(inputs, network, **parameters)
    assert_same(infer(inputs, network, **parameters, chunk_size=chunk_size), reference)


@with_and_without_gradients
def test_outputs_that_share_memory_are_each_as_if_they_did_not() -> None:
    def shared(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = scores(windows)
        return result, result, result[:, 1:]

    def separate(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return scores(windows), scores(windows), scores(windows)[:, 1:].clone()

    assert_same(infer(volume(), shared), monai(volume(), separate))


@pytest.mark.parametrize(
    "layout",
    [lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1), lambda t: t.flip(-1).flip(-1), lambda t: t[:, :1]],
    ids=["channels last", "copied", "sliced"],
)
def test_predictions_of_any_layout_are_added_as_monai_adds_them(layout: Callable[[torch.Tensor], Any]) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return layout(scores(windows))

    assert_same(infer(volume(), network, sw_batch_size=2), monai(volume(), network, sw_batch_size=2))


@with_and_without_gradients
def test_predictions_that_monai_cannot_scale_in_place_are_blended_all_the_same() -> None:
    """Expanded ones, integers, and those of a network that always runs in inference mode."""
    networks: list[tuple[Callable[[torch.Tensor], Any], Callable[[torch.Tensor], Any]]] = [
        (lambda w: w.sin().expand(-1, 4, -1, -1, -1), lambda w: w.sin().repeat(1, 4, 1, 1, 1)),
        (lambda w: (w > 0).long(), lambda w: (w > 0).float()),
        (lambda w: w > 0, lambda w: (w > 0).float()),
        (torch.inference_mode()(lambda w: w.sin()), lambda w: w.sin()),
    ]
    for network, equivalent in networks:
        assert_same(infer(volume(), network), monai(volume(), equivalent))
