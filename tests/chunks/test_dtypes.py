"""Sums have the precision of float32 or more, whatever the dtype of inputs and predictions is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.side_by_side import Recorder, assert_same, infer, monai, scores, volume, with_and_without_gradients

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


@with_and_without_gradients
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_integer_inputs_reach_the_network_as_they_are_and_the_result_is_float32(
    dtype: torch.dtype, sw_batch_size: int
) -> None:
    inputs = (volume() * 3).to(torch.uint8 if dtype == torch.uint8 else torch.int64).to(dtype)
    recorder = Recorder(lambda w: scores(w.float()))
    ours = infer(inputs, recorder, sw_batch_size=sw_batch_size)
    assert {windows.dtype for windows in recorder.windows} == {dtype}
    assert_same(ours, monai(inputs.float(), scores, sw_batch_size=sw_batch_size))


@with_and_without_gradients
def test_the_input_itself_as_the_prediction_of_integer_inputs_is_averaged_in_float32() -> None:
    inputs = (volume() * 10).to(torch.int16)
    assert_same(infer(inputs, lambda w: w), monai(inputs.float(), lambda w: w.clone()))


def worst_and_mean(result: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    error = (result.double() - truth).abs()
    return error.max().item(), error.mean().item()


@with_and_without_gradients
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inputs_too", [True, False], ids=["half inputs", "half predictions"])
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_in_half_precision_the_error_against_float64_is_no_larger_than_monais(
    dtype: torch.dtype, inputs_too: bool, sw_batch_size: int
) -> None:
    inputs = (volume() * 100).to(dtype)  # what half precision can hold, so that all see the same

    def predict(windows: torch.Tensor) -> torch.Tensor:
        return (scores(windows.float()) * 1000).to(dtype)

    truth = monai(inputs.double(), lambda w: predict(w).double(), sw_batch_size=sw_batch_size)
    inputs = inputs if inputs_too else inputs.float()
    ours = infer(inputs, predict, sw_batch_size=sw_batch_size)
    reference = monai(inputs, predict, sw_batch_size=sw_batch_size)
    assert ours.dtype == reference.dtype == (dtype if inputs_too else torch.float32)
    our_worst, our_mean = worst_and_mean(ours, truth)
    worst, mean = worst_and_mean(reference, truth)
    assert our_worst <= worst
    assert our_mean <= mean
    # and as good as the dtype of the result allows
    assert torch.allclose(ours.double(), truth, rtol=torch.finfo(ours.dtype).eps * (1 if inputs_too else 10), atol=0)


@with_and_without_gradients
def test_under_autocast_the_error_against_float64_is_no_larger_than_monais() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)

    def run(run: Callable[..., Any], inputs: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        def predict(windows: torch.Tensor) -> torch.Tensor:
            prediction = network(windows.float())
            assert prediction.dtype == torch.bfloat16
            return prediction if dtype is None else prediction.to(dtype)

        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run(inputs, predict)

    truth = run(monai, volume().double(), torch.float64)
    ours, reference = run(infer, volume()), run(monai, volume())
    assert ours.dtype == reference.dtype == torch.float32
    for our_error, error in zip(worst_and_mean(ours, truth), worst_and_mean(reference, truth)):
        assert our_error <= error
    assert worst_and_mean(ours, truth)[0] < 1e-5


@with_and_without_gradients
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_in_double_precision_are_added_as_monai_adds_them(dtype: torch.dtype) -> None:
    inputs = volume().to(dtype)
    assert_same(infer(inputs, lambda w: scores(w.double())), monai(inputs, lambda w: scores(w.double())))
