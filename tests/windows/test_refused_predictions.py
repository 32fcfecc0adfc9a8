"""Predictions that are no scores of the windows are refused, with what was expected and the window."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer
from tests.refusals import VOLUME, WINDOWS, by_class, changing_at, position

CHANGES = {
    "more channels": (changing_at, lambda w: torch.cat([w, w], 1), "(1, 8, 8, 8)", "(2, 8, 8, 8)"),
    "another size": (changing_at, lambda w: w[..., ::2], "(1, 8, 8, 8)", "(1, 8, 8, 4)"),
    "more outputs": (changing_at, lambda w: (w, w), "(1, 8, 8, 8)", "(1, 8, 8, 8), (1, 8, 8, 8)"),
    "names for its outputs": (changing_at, lambda w: {"scores": w}, "(1, 8, 8, 8)", "scores: (1, 8, 8, 8)"),
    "other names": (
        functools.partial(changing_at, before=lambda w: {"scores": w}),
        lambda w: {"logits": w},
        "scores: (1, 8, 8, 8)",
        "logits: (1, 8, 8, 8)",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("sw_batch_size", [1, 2])
def test_predictions_that_change_from_one_window_to_the_next_are_refused_with_both_and_the_window(
    case: str, sw_batch_size: int
) -> None:
    make, change, before, after = CHANGES[case]
    with pytest.raises(ValueError, match="the network must return the same") as caught:
        by_class(VOLUME, make(3, change), sw_batch_size=sw_batch_size)
    text = str(caught.value)
    assert f"{before} before, {after} for " in text
    assert f"image 0 [{position(WINDOWS[2 * sw_batch_size])}]" in text


@pytest.mark.parametrize("call", [1, 3])
def test_predictions_for_another_number_of_windows_are_refused_with_both_numbers_and_the_windows(call: int) -> None:
    with pytest.raises(ValueError, match="the network must return") as caught:
        by_class(VOLUME, changing_at(call, lambda w: w[:1]), sw_batch_size=2)
    text = str(caught.value)
    assert "(2, C, " in text
    assert "(1, 1, 8, 8, 8)" in text
    assert f"image 0 [{position(WINDOWS[2 * (call - 1)])}]" in text


def test_as_many_predictions_for_a_smaller_last_batch_as_for_those_before_are_refused() -> None:
    size = next(size for size in range(2, len(WINDOWS)) if len(WINDOWS) % size)

    def network(windows: torch.Tensor) -> torch.Tensor:
        return windows[:1].expand(size, *windows.shape[1:])

    with pytest.raises(ValueError, match=rf"must return shape \({len(WINDOWS) % size}, C, .*got \({size}, 1, "):
        by_class(VOLUME, network, sw_batch_size=size)


@pytest.mark.parametrize(
    ("prediction", "error", "words"),
    [
        (lambda w: w.numpy(), TypeError, ["tensors", "ndarray"]),
        (lambda w: None, TypeError, ["tensors", "NoneType"]),
        (lambda w: {"scores": w, "note": "fine"}, TypeError, ["tensors", "str"]),
        (lambda w: (), ValueError, ["nothing"]),
        (lambda w: {}, ValueError, ["nothing"]),
        (lambda w: w[:, 0], ValueError, ["(1, 8, 8, 8)", "3 spatial dimensions"]),
        (lambda w: w[:, :0], ValueError, ["(1, 0, 8, 8, 8)"]),
    ],
)
def test_predictions_that_are_no_scores_of_the_windows_are_refused(
    prediction: Callable[[torch.Tensor], Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error, match="the network") as caught:
        by_class(VOLUME, prediction)
    text = str(caught.value)
    assert [word for word in [*words, f"image 0 [{position(WINDOWS[0])}]"] if word not in text] == []


def test_windows_whose_size_in_the_output_is_rounded_to_another_one_are_refused_with_both_sizes() -> None:
    def enlarge(windows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(windows, 15)  # 11 * (15 / 11) is less than 15 in floating point

    with pytest.raises(RuntimeError, match="must match the size"):
        SlidingWindowInferer(11)(torch.zeros(1, 1, 44), enlarge)
    with pytest.raises(ValueError, match=r"the network maps 11 voxels of spatial dimension 0 to 15.* window at 0"):
        ChunkedSlidingWindowInferer(11)(torch.zeros(1, 1, 44), enlarge)
