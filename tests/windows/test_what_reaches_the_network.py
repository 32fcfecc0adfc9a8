"""Windows, conditions, coordinates and further arguments reach the network as with MONAI's inferer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer, sliding_window_inference

from monai_chunked import ChunkedSliceInferer, ChunkedSlidingWindowInferer, chunked_sliding_window_inference
from tests.side_by_side import (
    SETTINGS,
    SIZE,
    STRUCTURES,
    Recorder,
    added,
    assert_same,
    assert_same_calls,
    infer,
    monai,
    needs_condition,
    random,
    scores,
    volume,
    with_and_without_gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


@pytest.mark.parametrize("sw_batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("chunk_size", [None, 4], ids=str)
def test_each_window_is_predicted_exactly_once_in_monais_order_and_batches(sw_batch_size: int, chunk_size: Any) -> None:
    inputs = torch.arange(2.0 * 9 * 8 * 7).reshape(2, 1, *SIZE)  # tells every window from every other
    ours, reference = Recorder(), Recorder()
    assert_same(
        infer(inputs, ours, sw_batch_size=sw_batch_size, chunk_size=chunk_size),
        monai(inputs, reference, sw_batch_size=sw_batch_size),
    )
    assert_same_calls(ours, reference)
    firsts = [int(window.flatten()[0]) for batch in ours.windows for window in batch]
    assert len(set(firsts)) == len(firsts) == 2 * (2 * 3 * 3)
    if sw_batch_size == 100:
        assert len(ours.windows) == 1  # one batch runs over from one image to the next


@pytest.mark.parametrize("padding_mode", ["constant", "replicate", "reflect", "circular"])
def test_windows_larger_than_the_image_are_padded_as_by_monai(padding_mode: str) -> None:
    parameters = {"roi_size": (12, 5, 9), "padding_mode": padding_mode}
    if padding_mode == "constant":
        parameters["cval"] = 7.0
    ours, reference = Recorder(), Recorder()
    assert_same(infer(volume(), ours, **parameters), monai(volume(), reference, **parameters))
    assert_same_calls(ours, reference)


class Stateful(torch.nn.Module):
    """Every call is answered differently."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return windows * self.calls


RANDOM: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {
    "counting": Stateful,
    "noise": lambda: lambda windows: windows + torch.rand_like(windows),
    "dropout": lambda: torch.nn.Dropout(0.5).train(),
    "batch norm in training": lambda: torch.nn.BatchNorm3d(1, momentum=0.3).train(),
}


@with_and_without_gradients
@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 3], ids=str)
def test_a_network_with_a_state_or_random_numbers_answers_as_under_monai(
    kind: str, sw_batch_size: int, chunk_size: Any
) -> None:
    results, states = [], []
    for run, more in ((infer, {"chunk_size": chunk_size}), (monai, {})):
        torch.manual_seed(7)
        network = RANDOM[kind]()
        results.append(run(volume(), network, sw_batch_size=sw_batch_size, **more))
        states.append([torch.rand(1), *(network.state_dict().values() if hasattr(network, "state_dict") else [])])
    assert torch.equal(*results)
    for one, other in zip(*states):
        assert torch.equal(one, other)


@needs_condition
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_windows_of_a_condition_reach_the_network_beside_those_of_the_input(sw_batch_size: int) -> None:
    def network(windows: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return scores(windows) + condition

    parameters: dict[str, Any] = {"sw_batch_size": sw_batch_size, "call": {"condition": volume(seed=1)}}
    ours, reference = Recorder(), Recorder()
    infer(volume(), ours, **parameters)
    monai(volume(), reference, **parameters)
    assert_same_calls(ours, reference)
    assert all(kwargs.keys() == {"condition"} for kwargs in ours.kwargs)
    assert_same(infer(volume(), network, **parameters), monai(volume(), network, **parameters))


@needs_condition
def test_a_condition_is_padded_like_the_input() -> None:
    parameters: dict[str, Any] = {
        "roi_size": 10,
        "padding_mode": "reflect",
        "call": {"condition": volume(seed=1)},
    }
    ours, reference = Recorder(), Recorder()
    infer(volume(), ours, **parameters)
    monai(volume(), reference, **parameters)
    assert_same_calls(ours, reference)


@needs_condition
@pytest.mark.parametrize("how", ["class", "function", "slices"])
def test_no_condition_is_no_argument_of_the_network_as_with_monai(how: str) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return windows.sin()

    if how == "class":
        ours, reference = infer(volume(), network, call={"condition": None}), monai(volume(), network)
    elif how == "function":
        ours = chunked_sliding_window_inference(volume(), 4, 1, network, condition=None)
        reference = sliding_window_inference(volume(), 4, 1, network, condition=None)
    else:
        ours = ChunkedSliceInferer(1, (4, 5))(volume(), network, condition=None)
        reference = SliceInferer(1, (4, 5))(volume(), network, condition=None)
    assert_same(ours, reference)


def test_further_arguments_reach_the_network_also_those_named_like_a_parameter_of_ours() -> None:
    extra: dict[str, Any] = {"gain": 2, **dict.fromkeys(added(ChunkedSlidingWindowInferer), "something")}
    assert {"output", "chunk_size", "postprocessing"} < extra.keys()
    ours, reference = Recorder(), Recorder()
    assert_same(
        infer(volume(), ours, "positional", 5, call=extra, chunk_size=4, postprocessing=torch.neg),
        -monai(volume(), reference, "positional", 5, call=extra),
    )
    assert_same_calls(ours, reference)
    assert ours.args[0] == ("positional", 5)
    assert ours.kwargs[0] == extra


def test_further_arguments_of_the_function_reach_the_network() -> None:
    defaults = (0.25, "constant", 0.125, "constant", 0.0, None, None, False, None, None, None, -1, False)
    ours, reference = Recorder(), Recorder()
    assert_same(
        chunked_sliding_window_inference(volume(), 4, 2, ours, *defaults, "positional", gain=2, chunk_size=3),
        sliding_window_inference(volume(), 4, 2, reference, *defaults, "positional", gain=2),
    )
    assert_same_calls(ours, reference)
    assert ours.args[0] == ("positional",)
    assert ours.kwargs[0] == {"gain": 2}


@pytest.mark.parametrize("sw_batch_size", [1, 3])
@pytest.mark.parametrize("how", ["class", "function"])
def test_with_coord_the_network_gets_monais_slices_in_front_of_further_arguments(how: str, sw_batch_size: int) -> None:
    ours, reference = Recorder(), Recorder()
    if how == "class":
        parameters: dict[str, Any] = {"sw_batch_size": sw_batch_size, "with_coord": True}
        infer(volume(), ours, "more", **parameters)
        monai(volume(), reference, "more", **parameters)
    else:
        settings = ((6, 5, 4), sw_batch_size)
        defaults = (0.5, "constant", 0.125, "constant", 0.0, None, None, False, None, None, None, -1, True)
        chunked_sliding_window_inference(volume(), *settings, ours, *defaults, "more")
        sliding_window_inference(volume(), *settings, reference, *defaults, "more")
    assert_same_calls(ours, reference)
    (first, *_), more = ours.args[0]
    assert list(first) == [slice(0, 1), slice(None), slice(0, 6), slice(0, 5), slice(0, 4)]
    assert more == "more"


@pytest.mark.parametrize("shape", [(6, 5, 4), (1, 1, 6, 5, 4)], ids=str)
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_a_roi_weight_map_weighs_windows_as_in_monai(shape: tuple[int, ...], sw_batch_size: int) -> None:
    weights = random(*shape).abs() + 0.1
    arguments = (volume(), (6, 5, 4), sw_batch_size, scores, 0.5)
    reference = sliding_window_inference(*arguments, roi_weight_map=weights)
    assert not torch.equal(reference, sliding_window_inference(*arguments))
    assert_same(chunked_sliding_window_inference(*arguments, roi_weight_map=weights, chunk_size=4), reference)


@pytest.mark.parametrize("structure", ["tensor", "tuple", "dict", "mixed sizes in a tuple"])
@pytest.mark.parametrize("given", [False, True], ids=["computed weights", "roi_weight_map"])
def test_process_fn_changes_predictions_and_weights_as_in_monai(structure: str, given: bool) -> None:
    def process_fn(predictions: Any, windows: torch.Tensor, weights: torch.Tensor) -> tuple[Any, torch.Tensor]:
        assert type(predictions) is tuple
        seen.append((tuple(weights.shape), weights.dtype))
        return tuple(p * windows.mean() for p in predictions), weights * (1 + windows.abs().amax())

    arguments: tuple[Any, ...] = (random(2, 1, 6, 8, 4), 4, 2, STRUCTURES[structure], 0.5, "gaussian")
    parameters: dict[str, Any] = {
        "process_fn": process_fn,
        "roi_weight_map": random(1, 1, 4, 4, 4).abs() + 0.1 if given else None,
    }
    seen: list[Any] = []
    ours = chunked_sliding_window_inference(*arguments, **parameters, chunk_size=3)
    seen_by_ours, seen = seen, []
    assert_same(ours, sliding_window_inference(*arguments, **parameters))
    assert seen_by_ours == seen


def test_process_fn_may_return_more_or_fewer_outputs_than_the_network() -> None:
    def one(windows: torch.Tensor) -> torch.Tensor:
        return scores(windows)

    def named(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"only": scores(windows)}

    def add(predictions: Any, windows: torch.Tensor, weights: torch.Tensor) -> Any:
        return (*predictions, windows.sin()), weights

    def drop(predictions: Any, windows: torch.Tensor, weights: torch.Tensor) -> Any:
        return predictions[:1], weights

    for network, process_fn in ((one, add), (named, add), (STRUCTURES["tuple"], drop), (STRUCTURES["dict"], drop)):
        arguments: tuple[Any, ...] = (volume(), 4, 1, network, 0.5, "gaussian")
        reference = sliding_window_inference(*arguments, process_fn=process_fn)
        assert_same(chunked_sliding_window_inference(*arguments, process_fn=process_fn), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cached_weight_map_is_made_once_and_used_as_by_monai(dtype: torch.dtype) -> None:
    inputs = volume().to(dtype)
    ours = ChunkedSlidingWindowInferer(**SETTINGS, cache_roi_weight_map=True)
    reference = SlidingWindowInferer(**SETTINGS, cache_roi_weight_map=True)
    cached = ours.roi_weight_map
    assert torch.equal(cached, reference.roi_weight_map)
    assert_same(ours(inputs, scores), reference(inputs, scores))
    assert ours.roi_weight_map is cached
    ours.roi_weight_map = reference.roi_weight_map = cached.flip(0) + torch.arange(4)
    assert_same(ours(inputs, scores), reference(inputs, scores))


def test_a_weight_map_that_cannot_be_cached_is_warned_about_as_by_monai() -> None:
    for inferer in (SlidingWindowInferer, ChunkedSlidingWindowInferer):
        with pytest.warns(UserWarning, match="cache is not created"):
            inferer((6, -1, 4), cache_roi_weight_map=True)


@pytest.mark.parametrize("call", [{}, {"device": "meta"}, {"buffer_steps": 2, "buffer_dim": 1}], ids=str)
@pytest.mark.parametrize("device", [None, "cpu", "meta"])
@pytest.mark.parametrize("cpu_thresh", [None, 9 * 8 * 7 - 1, 9 * 8 * 7])
def test_cpu_thresh_device_and_buffer_of_a_call_choose_what_they_choose_in_monai(
    cpu_thresh: int | None, device: Any, call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a second device still shows which one the function is asked for."""
    asked: dict[str, tuple[Any, ...]] = {}

    def ask(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def inference(*args: Any, **kwargs: Any) -> torch.Tensor:
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            asked[name] = tuple(bound.arguments[key] for key in ("sw_device", "device", "buffer_steps", "buffer_dim"))
            return volume()

        return inference

    ours, theirs = chunked_sliding_window_inference, sliding_window_inference
    monkeypatch.setattr("monai_chunked.api.inferer.chunked_sliding_window_inference", ask("ours", ours))
    monkeypatch.setattr("monai.inferers.inferer.sliding_window_inference", ask("monai", theirs))
    for run in (infer, monai):
        run(volume(), scores, cpu_thresh=cpu_thresh, device=device, sw_device="cpu", call=call)
    assert asked["ours"] == asked["monai"]
