"""``rounding="monai"``: MONAI's bits in half precision, bfloat16 and under autocast, against MONAI in the same test."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer, sliding_window_inference
from monai.transforms import Flip, Spacing

from monai_chunked import (
    ChunkAggregator,
    ChunkedSliceInferer,
    ChunkedSlidingWindowInferer,
    NumpyOutput,
    WindowSampler,
    chunked_sliding_window_inference,
)
from tests.run.test_exactness import Network, assert_same, cases, make_input
from tests.side_by_side import random

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CASES = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(CASES, max_examples=1500)

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, torch.float64, *HALVES]


class Rounded(torch.nn.Module):
    """Returns what a network computes in another precision."""

    def __init__(self, network: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, windows: torch.Tensor) -> Any:
        predicted = self.network(windows.float() if self.dtype is None else windows)
        if self.dtype is None:
            return predicted
        if isinstance(predicted, dict):
            return {key: each.to(self.dtype) for key, each in predicted.items()}
        if isinstance(predicted, tuple):
            return tuple(each.to(self.dtype) for each in predicted)
        return predicted.to(self.dtype)


def under(autocast: bool) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()


how = st.fixed_dictionaries(
    {
        "inputs": st.sampled_from(DTYPES),
        "predicted": st.sampled_from([None, *DTYPES]),
        "autocast": st.booleans(),
        "labels": st.booleans(),
    }
)


def check(case: dict[str, Any], precision: dict[str, Any]) -> None:
    note(f"{case} {precision}")
    case = {**case, "dtype": precision["inputs"]}
    chunked = {**case["chunked"], "rounding": "monai"}
    if precision["inputs"] == torch.bfloat16 and chunked["output"] == "disk":
        chunked["output"] = "cpu"  # NumPy has no bfloat16
    x, template = make_input(case), case["network"]
    network = Network(case["shape"][1], case["classes"], template.zooms, template.structure)
    predictor = Rounded(network, precision["predicted"])
    with under(precision["autocast"]):
        try:
            reference = SlidingWindowInferer(**case["inferer"])(x, predictor)
        except RuntimeError as error:  # it concatenates windows, which autocast refuses for the other half precision
            if "autocast" not in str(error) or precision["inputs"] != torch.float16:
                raise
            return
        each = list(reference.values()) if isinstance(reference, dict) else reference
        if any(0 in one.shape for one in (each if isinstance(each, (list, tuple)) else [each])):
            return  # refused, as tested elsewhere
        assert_same(ChunkedSlidingWindowInferer(**case["inferer"], **chunked)(x, predictor), reference)
        if precision["labels"] and isinstance(reference, torch.Tensor) and reference.shape[1] > 1:
            chunked["output"] = "cpu"
            labels = ChunkedSlidingWindowInferer(**case["inferer"], **chunked, postprocessing="argmax")(x, predictor)
            expected = torch.as_tensor(reference).argmax(1, keepdim=True)
            assert torch.equal(torch.as_tensor(labels).long(), expected)


@CASES
@given(cases(), how)
def test_the_bits_are_monais_whatever_the_precision_of_inputs_and_predictions(
    case: dict[str, Any], precision: dict[str, Any]
) -> None:
    check(case, precision)


@pytest.mark.long
@MANY
@given(cases(), how)
def test_in_many_more_cases(case: dict[str, Any], precision: dict[str, Any]) -> None:
    check(case, precision)


def test_labels_under_autocast_are_those_that_were_validated() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 4, 3, padding=1)
    image = random(1, 1, 30, 28, 26)
    how = {"roi_size": (16, 16, 16), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = SlidingWindowInferer(**how)(image, network)
        ours = ChunkedSlidingWindowInferer(**how)(image, network)
        rounded = ChunkedSlidingWindowInferer(**how, rounding="monai")(image, network)
        labels = ChunkedSlidingWindowInferer(**how, rounding="monai", postprocessing="argmax")(image, network)
    assert expected.dtype == torch.float32
    assert not torch.equal(ours, expected)
    assert torch.equal(rounded, expected)
    assert torch.equal(labels.long(), expected.argmax(1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["gaussian", "hann", "nnunet", "crop"])
def test_where_nothing_is_half_it_makes_no_difference(dtype: torch.dtype, mode: str) -> None:
    image, network = random(1, 1, 17, 14, 15).to(dtype), Network(1, 3, ((1,) * 3,), "tensor")
    one, other = (
        chunked_sliding_window_inference(image, 6, 3, network, 0.5, mode, rounding=rounding)
        for rounding in (None, "monai")
    )
    assert torch.equal(one, other)


PRECISIONS = [(inputs, dtype) for inputs in (torch.float32, *HALVES) for dtype in HALVES]
precisions = pytest.mark.parametrize(("inputs", "predicted"), PRECISIONS, ids=str)
SIZE = (2, 1, 17, 14, 15)
HOW: dict[str, Any] = {"roi_size": (6, 5, 7), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}


def predictor(dtype: torch.dtype) -> Rounded:
    return Rounded(Network(1, 3, ((1,) * 3,), "tensor"), dtype)


def expected(inputs: torch.dtype, dtype: torch.dtype) -> torch.Tensor:
    return sliding_window_inference(random(*SIZE).to(inputs), predictor=predictor(dtype), **HOW)


def labels_of(scores: torch.Tensor) -> torch.Tensor:
    return scores.argmax(1, keepdim=True).to(torch.uint8)


@precisions
@pytest.mark.parametrize(
    "where",
    [{"chunk_size": 5}, {"cpu_memory": "30kB"}, {"skip": -1e9}, {"preprocessing": torch.nn.Identity()}],
    ids=str,
)
def test_wherever_open_chunks_are(inputs: torch.dtype, predicted: torch.dtype, where: dict[str, Any]) -> None:
    image = random(*SIZE).to(inputs)
    for postprocessing in (None, "argmax"):
        how = {**HOW, **where, "rounding": "monai", "postprocessing": postprocessing}
        found = chunked_sliding_window_inference(image, predictor=predictor(predicted), **how)
        reference = expected(inputs, predicted)
        assert torch.equal(found, reference if postprocessing is None else labels_of(reference))


@precisions
def test_with_gradients(inputs: torch.dtype, predicted: torch.dtype) -> None:
    with torch.enable_grad():
        image = random(*SIZE).to(inputs).requires_grad_()
        found = chunked_sliding_window_inference(image, predictor=predictor(predicted), **HOW, rounding="monai")
        (gradient,) = torch.autograd.grad(found.float().sum(), image)
    assert torch.equal(found.detach(), expected(inputs, predicted))
    assert gradient.float().abs().sum() > 0


@precisions
def test_what_postprocessing_gets_is_what_the_inferer_returns(inputs: torch.dtype, predicted: torch.dtype) -> None:
    seen = []

    def softmax(scores: torch.Tensor) -> torch.Tensor:
        seen.append(scores.dtype)
        return scores.softmax(0)

    image = MetaTensor(random(*SIZE).to(inputs))
    for one in (image, image.as_tensor()):
        reference = SlidingWindowInferer(**HOW)(one, predictor(predicted))
        inferer = ChunkedSlidingWindowInferer(**HOW, rounding="monai", postprocessing=softmax, chunk_size=20)
        assert torch.equal(torch.as_tensor(inferer(one, predictor(predicted))), torch.as_tensor(reference).softmax(1))
        assert set(seen) == {reference.dtype}
        seen.clear()


@precisions
def test_of_the_aggregator(inputs: torch.dtype, predicted: torch.dtype) -> None:
    image = random(*SIZE).to(inputs)
    sampler = WindowSampler(image, HOW["roi_size"], HOW["overlap"])
    with ChunkAggregator(sampler, HOW["mode"], rounding="monai") as aggregator:
        for start in range(0, len(sampler), 3):
            items = [sampler[k] for k in range(start, min(start + 3, len(sampler)))]
            data, windows = (torch.stack(each) for each in zip(*items))
            aggregator.add_batch(predictor(predicted)(data), windows)
        assert torch.equal(aggregator.finish(), expected(inputs, predicted))


@precisions
def test_of_slices(inputs: torch.dtype, predicted: torch.dtype) -> None:
    image, network = random(1, 1, 12, 11, 5).to(inputs), Rounded(Network(1, 3, ((1,) * 2,), "tensor"), predicted)
    how = {"roi_size": (6, 5), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian", "spatial_dim": 2}
    ours = ChunkedSliceInferer(**how, rounding="monai")(image, network)
    assert torch.equal(ours, SliceInferer(**how)(image, network))


def test_process_fn_gets_the_weights_that_monai_has() -> None:
    seen: list[Any] = []

    def process_fn(outputs: Any, data: torch.Tensor, weights: torch.Tensor) -> Any:
        seen.append(weights.clone())
        return outputs, weights * weights

    image = random(*SIZE).half()
    reference = sliding_window_inference(image, predictor=predictor(torch.float16), process_fn=process_fn, **HOW)
    theirs, seen[:] = list(seen), []
    ours = chunked_sliding_window_inference(
        image, predictor=predictor(torch.float16), process_fn=process_fn, rounding="monai", **HOW
    )
    assert torch.equal(ours, reference)
    assert all(
        one.dtype == other.dtype and torch.equal(one.flatten(), other.flatten()) for one, other in zip(seen, theirs)
    )


def test_a_volume_of_scores_in_half_precision_is_brought_to_the_patients_grid_as_monai_does_it() -> None:
    image = Spacing((1.5, 1.0, 0.8))(Flip(0)(MetaTensor(random(1, 12, 13, 14), affine=torch.eye(4))))[None].half()
    how = {"roi_size": (6, 5, 7), "overlap": 0.5, "mode": "gaussian", "rounding": "monai"}
    with pytest.warns(UserWarning, match=r"scores are torch\.float16"):
        found = ChunkedSlidingWindowInferer(**how, inverse="image")(image, predictor(torch.float16))
    assert found.shape == (1, 3, 12, 13, 14)


def test_in_a_config() -> None:
    config = {"_target_": "monai_chunked.ChunkedSlidingWindowInferer", **HOW, "rounding": "monai"}
    inferer = ConfigParser({"inferer": config}).get_parsed_content("inferer")
    image = random(*SIZE).half()
    assert torch.equal(inferer(image, predictor(torch.bfloat16)), expected(torch.float16, torch.bfloat16))


def test_a_run_goes_on_only_with_the_rounding_that_it_began_with(tmp_path: Path) -> None:
    image = MetaTensor(random(*SIZE)[:1], meta={"filename_or_obj": "scan.nii"})

    def run(rounding: Any) -> Any:
        how = {**HOW, "rounding": rounding, "output": NumpyOutput(tmp_path)}
        return ChunkedSlidingWindowInferer(**how)(image, predictor(torch.bfloat16))

    first = np.asarray(run("monai"))
    with pytest.raises(FileExistsError, match=r"what differs: rounding \('monai' before, None now\)"):
        run(None)
    with pytest.warns(UserWarning, match="is returned as an earlier run finished it"):
        assert np.array_equal(run("monai"), first)


def test_the_plan_counts_sums_in_their_own_precision() -> None:
    inferer = ChunkedSlidingWindowInferer(6, overlap=0.5, postprocessing="argmax", rounding="monai")
    image = random(*SIZE)
    assert 2 * inferer.plan(image.half(), 3).cpu_peak == inferer.plan(image, 3).cpu_peak


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rounding": "float16"}, "rounding='float16' must be 'monai'"),
        ({"rounding": True}, "rounding=True must be 'monai'"),
        ({"rounding": "monai", "buffer_steps": 2}, "but buffer_steps=2 adds up in another"),
        ({"rounding": "monai", "skip": 0.5, "background": [0, 0.5]}, r"but background=\[0, 0\.5\] stands for it"),
        ({"rounding": "monai", "mask": torch.ones(17, 14, 15), "background": {"a": 1}}, "but background={'a': 1}"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_before_the_first_window(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ChunkedSlidingWindowInferer(6, **how)(random(*SIZE), functools.partial(pytest.fail, "it was called"))
