"""Several processes that share a volume get what one process gets, to the last bit, and so does MONAI."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from monai_chunked import chunked_sliding_window_inference
from tests.run.test_exactness import Network
from tests.side_by_side import random
from tests.workers.test_parts_of_a_run import cases
from tests.workers.torchrun.ranks import Raised, Ranks

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CASES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(CASES, max_examples=150)


def infer(group: Any, case: dict[str, Any]) -> Any:
    """What each process does; also called here, with no group."""
    image = random(*case["size"]).to(case["dtype"])
    zooms = ((1,) * (len(case["size"]) - 2),) * case["heads"]
    network = Network(1, 3, zooms, "tuple" if case["heads"] > 1 else "tensor")
    result = chunked_sliding_window_inference(image, predictor=network, process_group=group, **case["given"])
    return result if isinstance(result, tuple) else (result,)


def check(ranks: Ranks, case: dict[str, Any]) -> None:
    expected = infer(None, case)
    for answer in ranks.call(case["workers"], infer, case):
        assert not isinstance(answer, Raised), answer
        assert all(torch.equal(each, one) and each.dtype == one.dtype for each, one in zip(answer, expected))
        assert len(answer) == len(expected)


def test_each_process_has_the_labels_of_monai(ranks: Ranks) -> None:
    how = {"roi_size": (6, 5, 7), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
    case = {"size": (2, 1, 17, 14, 15), "heads": 1, "dtype": torch.float32, "given": how}
    scores = sliding_window_inference(random(*case["size"]), predictor=Network(1, 3, ((1,) * 3,), "tensor"), **how)
    labels = {**case, "given": {**how, "postprocessing": "argmax"}}
    for workers in (1, 2, 3, 5):
        for answer in ranks.call(workers, infer, labels):
            assert not isinstance(answer, Raised), answer
            assert torch.equal(answer[0], scores.argmax(1, keepdim=True).to(torch.uint8))
        for answer in ranks.call(workers, infer, case):
            assert torch.equal(answer[0], scores)


def has_nothing_bright(window: torch.Tensor) -> bool:
    return bool(window.mean() < 0)


WAYS = (
    {"skip": has_nothing_bright},
    {"cpu_memory": "1GiB"},
    {"output": "disk"},
    {"skip": 0.5, "postprocessing": "argmax"},
)
"""In which parts are independent, or the result is not in memory."""


def of_the_batch(windows: torch.Tensor) -> torch.Tensor:
    """What it says of a window depends on the others beside it."""
    return torch.cat([windows.sigmoid(), windows + windows.mean()], 1)


def in_batches(group: Any, batch_size: int, way: dict[str, Any]) -> torch.Tensor:
    how = {"roi_size": (6, 5, 7), "sw_batch_size": batch_size, "overlap": 0.5, "mode": "gaussian", **way}
    return chunked_sliding_window_inference(
        random(2, 1, 17, 14, 15), predictor=of_the_batch, process_group=group, **how
    ).clone()


@pytest.mark.parametrize("way", [{}, *WAYS], ids=lambda way: "-".join(way) or "handed on")
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_windows_are_in_the_batches_of_one_process(ranks: Ranks, workers: int, way: dict[str, Any]) -> None:
    for batch_size in (3, 4):
        expected = in_batches(None, batch_size, way)
        for answer in ranks.call(workers, in_batches, batch_size, way):
            assert not isinstance(answer, Raised), answer
            assert torch.equal(answer, expected)


def rounded(group: Any, inputs: torch.dtype, predicted: torch.dtype, way: dict[str, Any]) -> torch.Tensor:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return of_the_batch(windows).to(predicted)

    how = {"roi_size": (6, 5, 7), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
    image = random(2, 1, 17, 14, 15).to(inputs)
    if group is None:
        return sliding_window_inference(image, predictor=network, **how)
    return chunked_sliding_window_inference(
        image, predictor=network, process_group=group, rounding="monai", **how, **way
    ).clone()


@pytest.mark.parametrize("way", [{}, {"cpu_memory": "1GiB"}], ids=lambda way: "-".join(way) or "handed on")
@pytest.mark.parametrize("inputs", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_rounded_as_monai_rounds_it_has_monais_bits(
    ranks: Ranks, inputs: torch.dtype, way: dict[str, Any]
) -> None:
    for predicted in (torch.float16, torch.bfloat16):
        reference = rounded(None, inputs, predicted, way)
        for answer in ranks.call(3, rounded, inputs, predicted, way):
            assert not isinstance(answer, Raised), answer
            assert torch.equal(answer, reference)


@CASES
@given(cases(), st.sampled_from(WAYS))
def test_independent_parts_and_results_on_disk_too(ranks: Ranks, case: dict[str, Any], way: dict[str, Any]) -> None:
    check(ranks, {**case, "given": {**case["given"], **way}})


@CASES
@given(cases())
def test_every_process_has_the_bits_of_one(ranks: Ranks, case: dict[str, Any]) -> None:
    check(ranks, case)


@pytest.mark.long
@MANY
@given(cases(), st.sampled_from([2, 3, 5]), st.sampled_from([{}, *WAYS]))
def test_many_more_cases(ranks: Ranks, case: dict[str, Any], workers: int, way: dict[str, Any]) -> None:
    check(ranks, {**case, "workers": workers, "given": {**case["given"], **way}})
