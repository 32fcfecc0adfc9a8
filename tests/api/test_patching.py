"""In a patched program MONAI's function works in chunks, wherever the program has it from, with the same bits."""

from __future__ import annotations

import importlib
import inspect
import logging
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt, sliding_window_inference
from monai.visualize import OcclusionSensitivity

import monai_chunked
from monai_chunked import chunked_sliding_window_inference
from tests.api.test_signatures import positional
from tests.run.test_exactness import cases, flat, make_input
from tests.side_by_side import (
    SETTINGS,
    STRUCTURES,
    Recorder,
    added,
    assert_same,
    assert_same_calls,
    random,
    scores,
    volume,
)

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CODE = sliding_window_inference.__code__
SIGNATURE = inspect.signature(sliding_window_inference)
WINDOWS: dict[str, Any] = {"sw_batch_size": 2, **SETTINGS}

PROGRAM = """
import functools
import pickle

import monai.inferers as mi
import monai.inferers.utils
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from monai.inferers import sliding_window_inference as slide

WINDOWS = {"sw_batch_size": 2, "roi_size": (6, 5, 4), "overlap": 0.5, "mode": "gaussian"}
by_partial = functools.partial(sliding_window_inference, **WINDOWS)
PICKLED = pickle.dumps(SlidingWindowInferer(**WINDOWS))
METHODS = {"sliding": [slide]}


class Own(SlidingWindowInferer):
    def __call__(self, inputs, network, *args, **kwargs):
        return super().__call__(inputs, network, *args, **kwargs) * 2


class Holding:
    def __init__(self, run=sliding_window_inference):
        self.run = run


def make(run):
    return lambda image, network: run(image, predictor=network, **WINDOWS)


by_closure, holding = make(sliding_window_inference), Holding()


def by_name(image, network):
    return sliding_window_inference(image, predictor=network, **WINDOWS)


def by_module(image, network):
    return mi.sliding_window_inference(inputs=image, predictor=network, **WINDOWS)


def by_whole_path(image, network):
    return monai.inferers.utils.sliding_window_inference(image, predictor=network, **WINDOWS)


def by_positional_arguments(image, network):
    return slide(image, (6, 5, 4), 2, network, 0.5, "gaussian")


def by_table(image, network):
    return METHODS["sliding"][0](image, predictor=network, **WINDOWS)


def by_default_argument(image, network, run=sliding_window_inference):
    return run(image, predictor=network, **WINDOWS)


def by_attribute(image, network):
    return holding.run(image, predictor=network, **WINDOWS)


def by_partial_of_the_module(image, network):
    return by_partial(image, predictor=network)


def by_class(image, network):
    return SlidingWindowInferer(**WINDOWS)(image, network)


def by_subclass(image, network):
    return Own(**WINDOWS)(image, network)


def by_pickle(image, network):
    return pickle.loads(PICKLED)(image, network)


def by_pickled_function(image, network):
    return pickle.loads(pickle.dumps(slide))(image, predictor=network, **WINDOWS)


def by_late_import(image, network):
    from monai.inferers import sliding_window_inference as late

    return late(image, predictor=network, **WINDOWS)
"""
STYLES = [line[4 : line.index("(")] for line in PROGRAM.splitlines() if line.startswith("def by_")]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    assert sliding_window_inference.__code__ is CODE
    assert inspect.signature(sliding_window_inference) == SIGNATURE


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Imports a program that nobody edits."""
    (tmp_path / "unedited_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "unedited_program", raising=False)
    return lambda: importlib.import_module("unedited_program")


def reference(inputs: Any = None, network: Any = scores, /, **parameters: Any) -> Any:
    """What MONAI's function returns."""
    assert sliding_window_inference.__code__ is CODE
    return sliding_window_inference(volume() if inputs is None else inputs, predictor=network, **WINDOWS | parameters)


def patched(inputs: Any = None, network: Any = scores, /, **parameters: Any) -> Any:
    """What the program gets in a patched program, in chunks."""
    with monai_chunked.patch() as patch:
        result = sliding_window_inference(
            volume() if inputs is None else inputs, predictor=network, **WINDOWS | parameters
        )
        assert (patch.tally.calls, patch.tally.left) == (1, {})
    return result


# ---------------------------------------------------------------- what it reaches


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("imported", ["before", "after"])
def test_wherever_a_program_has_the_function_from_it_works_in_chunks(
    style: str, imported: str, program: Callable[[], Any]
) -> None:
    expected = getattr(program(), style)(volume(), scores)
    if imported == "after":
        del sys.modules["unedited_program"]
    with monai_chunked.patch() as patch:
        result = getattr(program(), style)(volume(), scores)
        assert (patch.tally.calls, patch.tally.left) == (1, {})
    assert_same(result, expected)
    assert_same(getattr(program(), style)(volume(), scores), expected)
    assert patch.tally.calls == 1  # over


@pytest.mark.parametrize(
    "run",
    [
        lambda: SlidingWindowInferer(**WINDOWS)(volume(), scores),
        lambda: SlidingWindowInfererAdapt(**WINDOWS)(volume(), scores),
        lambda: SliceInferer(1, (6, 4), overlap=0.5)(volume(), lambda w: scores(w)),
        lambda: OcclusionSensitivity(OCCLUDED, mask_size=6, n_batch=3, overlap=0.5, verbose=False)(random(1, 1, 12, 9)),
        lambda: hovernet()(random(1, 1, 40, 33), torch.neg),
    ],
    ids=["SlidingWindowInferer", "Adapt", "SliceInferer", "OcclusionSensitivity", "HoVerNet"],
)
def test_what_monai_builds_on_it_works_in_chunks(run: Callable[[], Any]) -> None:
    expected = run()
    with monai_chunked.patch() as patch:
        result = run()
        assert (patch.tally.calls, patch.tally.left) == (1, {})
    assert_same(result, expected)


OCCLUDED = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12 * 9, 3))


def hovernet() -> Any:
    from monai.apps.pathology.inferers import SlidingWindowHoVerNetInferer

    return SlidingWindowHoVerNetInferer((16, 16), overlap=0.25, extra_input_padding=(4, 4, 4, 4))


def test_the_function_and_the_classes_stay_the_objects_that_they_are() -> None:
    import monai.inferers

    before = dict(vars(monai.inferers)), dict(vars(monai.inferers.utils)), dict(vars(monai.inferers.inferer))
    pickled = pickle.dumps(sliding_window_inference)
    with monai_chunked.patch():
        after = dict(vars(monai.inferers)), dict(vars(monai.inferers.utils)), dict(vars(monai.inferers.inferer))
        assert all(
            name in each and each[name] is value for old, each in zip(before, after) for name, value in old.items()
        )
        assert pickle.dumps(sliding_window_inference) == pickled


def ask(connection: Any) -> None:
    inside = sliding_window_inference.__code__ is not CODE
    connection.send((inside, sliding_window_inference(volume(), predictor=scores, **WINDOWS).numpy()))


def test_a_forked_process_works_in_chunks_too() -> None:
    context = multiprocessing.get_context("fork")
    receives, sends = context.Pipe(duplex=False)
    with monai_chunked.patch():
        process = context.Process(target=ask, args=(sends,))
        process.start()
        inside, result = receives.recv()
        process.join()
    assert inside
    assert_same(torch.from_numpy(result), reference())


def test_calls_in_threads_are_all_counted() -> None:
    expected = reference()
    results: list[Any] = []
    with monai_chunked.patch() as patch:
        threads = [
            threading.Thread(
                target=lambda: results.append(sliding_window_inference(volume(), predictor=scores, **WINDOWS))
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert patch.tally.calls == 8
    for result in results:
        assert_same(result, expected)


# ---------------------------------------------------------------- until it is undone


def test_it_takes_effect_at_once_and_is_undone_once() -> None:
    patch = monai_chunked.patch()
    assert sliding_window_inference.__code__ is not CODE
    patch.undo()
    assert sliding_window_inference.__code__ is CODE
    other = monai_chunked.patch()
    patch.undo()
    assert sliding_window_inference.__code__ is not CODE
    other.undo()


def test_the_last_of_several_restores() -> None:
    with monai_chunked.patch() as outer:
        with monai_chunked.patch() as inner:
            sliding_window_inference(volume(), predictor=scores, **WINDOWS)
        sliding_window_inference(volume(), predictor=scores, **WINDOWS)
        assert (outer.tally.calls, inner.tally.calls) == (2, 1)
        later = monai_chunked.patch()
    assert sliding_window_inference.__code__ is not CODE
    later.undo()


def test_an_error_of_the_program_undoes_it() -> None:
    with pytest.raises(ZeroDivisionError), monai_chunked.patch():
        raise ZeroDivisionError


def test_tests_of_the_program_may_mock_it() -> None:
    with mock.patch("monai.inferers.inferer.sliding_window_inference", return_value=3) as mocked:
        with monai_chunked.patch():
            assert SlidingWindowInferer(8)(volume(), scores) == 3
        assert mocked.call_count == 1
    with monai_chunked.patch() as patch:
        with mock.patch("monai.inferers.inferer.sliding_window_inference", wraps=sliding_window_inference):
            SlidingWindowInferer(8)(volume(), scores)
        SlidingWindowInferer(8)(volume(), scores)
        assert patch.tally.calls == 2


def test_programs_that_ask_for_parameters_see_monais_and_the_one_that_they_may_forward() -> None:
    with monai_chunked.patch():
        assert (
            positional(sliding_window_inference)[:17]
            == [(p.name, p.kind, p.default) for p in SIGNATURE.parameters.values()][:17]
        )
        new = inspect.signature(sliding_window_inference).parameters.keys() - SIGNATURE.parameters.keys()
        assert new == {"postprocessing"}
        assert inspect.getfullargspec(sliding_window_inference).args == list(SIGNATURE.parameters)[:17]


# ---------------------------------------------------------------- the same answer


@given(case=cases())
@settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_the_bits_and_the_places_in_memory_are_monais(case: dict[str, Any]) -> None:
    check_same(case)


def test_where_rounding_leaves_nothing_the_answer_is_monais() -> None:
    network = torch.nn.AvgPool1d(2)
    expected = sliding_window_inference(random(1, 1, 2), 8, 1, network, overlap=0)
    with monai_chunked.patch() as patch:
        result = sliding_window_inference(random(1, 1, 2), 8, 1, network, overlap=0)
        assert "1 call left to MONAI's own code: no output voxel is left" in patch.summary()
    assert result.shape == expected.shape == (1, 1, 0)


@pytest.mark.long
@given(case=cases())
@settings(max_examples=3000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_the_bits_and_the_places_in_memory_are_monais_in_many_more_cases(case: dict[str, Any]) -> None:
    check_same(case)


def check_same(case: dict[str, Any]) -> None:
    network = type(case["network"])(case["shape"][1], case["classes"], case["network"].zooms, case["network"].structure)
    inferer = SlidingWindowInferer(**case["inferer"])
    expected = inferer(make_input(case), network)
    with monai_chunked.patch() as patch:
        result = inferer(make_input(case), network)
        empty = any(each.numel() == 0 for each in flat(expected))  # rounding left nothing of a small image
        assert (patch.tally.calls, len(patch.tally.left)) == ((0, 1) if empty else (1, 0))
    assert type(result) is type(expected)
    for one, other in zip(flat(result), flat(expected), strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        if {*sum(case["network"].zooms, ())} == {1}:
            assert one.stride() == other.stride()
        if isinstance(other, MetaTensor):
            assert torch.equal(one.affine, other.affine)


def test_a_sigmoid_of_scores_of_a_padded_image_has_monais_bits() -> None:
    image = random(1, 1, 5, 40, 3)
    network = torch.nn.Conv3d(1, 7, 1)
    for seed in range(20):
        expected = sliding_window_inference(image * seed, 8, 2, network).sigmoid()
        with monai_chunked.patch():
            assert torch.equal(sliding_window_inference(image * seed, 8, 2, network).sigmoid(), expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_of_outputs_is_monais(structure: str) -> None:
    inputs, network = MetaTensor(volume()[..., :6, :6, :4]), STRUCTURES[structure]
    windows = {"roi_size": (4, 4, 4), "overlap": 0.5}
    assert_same(patched(inputs, network, **windows), reference(inputs, network, **windows))


MORE: dict[str, dict[str, Any]] = {
    "coordinates": {"with_coord": True},
    "condition": {"condition": volume(seed=1)},
    "weights of the caller": {"roi_weight_map": random(6, 5, 4).abs() + 0.1},
    "weights with batch and channel": {"roi_weight_map": random(1, 1, 6, 5, 4).abs() + 0.1},
    "device": {"device": "cpu", "sw_device": torch.device("cpu")},
    "no buffer": {"buffer_steps": 0, "buffer_dim": 1},
    "arguments of the network": {"args": (3, "x"), "a": 5, "args of it": None},
}


@pytest.mark.parametrize("name", MORE)
def test_the_network_is_called_as_monai_calls_it(name: str) -> None:
    ours, theirs = Recorder(scores), Recorder(scores)
    assert_same(patched(None, ours, **MORE[name]), reference(None, theirs, **MORE[name]))
    assert_same_calls(ours, theirs)


@pytest.mark.parametrize("name", [*added(chunked_sliding_window_inference), "network", "kind", "call"])
def test_keywords_of_the_network_that_are_called_as_ours_are_the_networks(name: str) -> None:
    ours, theirs = Recorder(scores), Recorder(scores)
    more = {name: object()}
    assert_same(patched(None, ours, **more), reference(None, theirs, **more))
    assert ours.kwargs == theirs.kwargs == [more] * len(ours.kwargs)


def test_a_process_fn_is_called_as_monai_calls_it() -> None:
    def process(seen: list[Any]) -> Callable[..., Any]:
        def function(outputs: tuple[torch.Tensor, ...], data: torch.Tensor, weights: torch.Tensor) -> Any:
            seen.append((data.clone(), weights.clone()))
            return tuple(each * 2 for each in outputs), weights * data.mean().abs()

        return function

    seen: list[Any] = []
    theirs: list[Any] = []
    assert_same(patched(process_fn=process(seen)), reference(process_fn=process(theirs)))
    assert all(map(torch.equal, *zip(*[(a, b) for one, other in zip(seen, theirs) for a, b in zip(one, other)])))


def test_gradients_are_monais() -> None:
    def gradients(run: Callable[..., Any]) -> torch.Tensor:
        weight = torch.linspace(0.5, 1.5, 3).reshape(1, 3, 1, 1, 1).requires_grad_()
        with torch.enable_grad():
            (run(None, lambda w: scores(w) * weight) ** 2).sum().backward()
        assert weight.grad is not None
        return weight.grad

    assert torch.allclose(gradients(patched), gradients(reference), rtol=1e-6)


def test_the_order_of_random_numbers_is_monais() -> None:
    dropout = torch.nn.Dropout(0.5).train()

    def run(run: Callable[..., Any]) -> Any:
        torch.manual_seed(0)
        return run(None, lambda w: dropout(scores(w)))

    assert_same(run(patched), run(reference))


def test_a_predictor_that_slides_windows_itself_does_so_in_chunks() -> None:
    def predict(windows: torch.Tensor) -> torch.Tensor:
        return sliding_window_inference(windows, 3, 2, scores, 0.5)

    expected = reference(None, predict)
    with monai_chunked.patch() as patch:
        assert_same(sliding_window_inference(volume(), predictor=predict, **WINDOWS), expected)
        assert patch.tally.calls > 10


# ---------------------------------------------------------------- what is left to MONAI's own code


def outcome(run: Callable[[], Any]) -> tuple[Any, str]:
    """What it returns, or what its error says."""
    try:
        return run(), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def traced(image: torch.Tensor) -> torch.Tensor:
    with pytest.warns():
        module = torch.jit.trace(
            lambda x: sliding_window_inference(x, 6, 1, torch.sigmoid, 0.5), image, check_trace=False
        )
    return module(image + 1)


LEFT: dict[str, Callable[[], Any]] = {
    "buffered": lambda: sliding_window_inference(volume(), predictor=scores, **WINDOWS, buffer_steps=2),
    "buffered by an array's number": lambda: sliding_window_inference(volume(), 4, 1, scores, buffer_steps=np.int64(1)),
    "integers": lambda: sliding_window_inference(volume().long(), predictor=scores, **WINDOWS),
    "complex": lambda: sliding_window_inference(volume().to(torch.complex64), 4, 1, lambda w: w * 2),
    "numpy": lambda: sliding_window_inference(volume().numpy(), predictor=scores, **WINDOWS),
    "a list": lambda: sliding_window_inference([1], predictor=scores, **WINDOWS),
    "no voxels": lambda: sliding_window_inference(volume()[..., :0], predictor=scores, **WINDOWS),
    "no images": lambda: sliding_window_inference(volume()[:0], predictor=scores, **WINDOWS),
    "overlap": lambda: sliding_window_inference(volume(), 4, 1, scores, 1.5),
    "mode": lambda: sliding_window_inference(volume(), 4, 1, scores, mode="none"),
    "our mode": lambda: sliding_window_inference(volume(), 4, 1, scores, mode="hann"),
    "a padding mode that nobody needs": lambda: sliding_window_inference(volume(), 4, 1, scores, padding_mode="none"),
    "weights that do not fit": lambda: sliding_window_inference(
        volume(), 4, 1, scores, roi_weight_map=random(2, 4, 4, 4).abs()
    ),
    "a condition that is none": lambda: sliding_window_inference(
        volume(), 4, 1, lambda w, condition: w, condition=volume().numpy()
    ),
    "roi_size": lambda: sliding_window_inference(volume(), (4, 4), 1, scores),
    "batch of none": lambda: sliding_window_inference(volume(), 4, 0, scores),
    "traced": lambda: traced(volume()[..., :6, :6, :7]),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", LEFT)
def test_where_the_answer_might_be_another_one_monais_own_code_runs(name: str) -> None:
    expected = outcome(LEFT[name])
    with monai_chunked.patch() as patch:
        result = outcome(LEFT[name])
        assert patch.tally.calls == 0
        assert sum(patch.tally.left.values()) == 1
    assert result[1] == expected[1]
    if expected[0] is not None:
        assert_same(result[0], expected[0])


def test_autocast_has_monais_bits() -> None:
    network = torch.nn.Conv3d(1, 5, 3, padding=1)

    def run() -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return sliding_window_inference(volume(), predictor=network, **WINDOWS)

    expected = run()
    with monai_chunked.patch():
        assert_same(run(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_in_half_precision_have_monais_bits(dtype: torch.dtype) -> None:
    expected = reference(volume().to(dtype))
    with monai_chunked.patch():
        assert_same(sliding_window_inference(volume().to(dtype), predictor=scores, **WINDOWS), expected)


def test_networks_that_return_half_precision_have_monais_bits() -> None:
    assert_same(patched(None, lambda w: scores(w).half()), reference(None, lambda w: scores(w).half()))


@pytest.mark.parametrize("call", [(), (1,), (volume(), 4, 1, scores, 0.25, "constant")])
@pytest.mark.parametrize("more", [{}, {"inputs": 3, "mode": 4}])
def test_arguments_that_do_not_fit_are_refused_in_monais_words(call: Any, more: Any) -> None:
    expected = outcome(lambda: sliding_window_inference(*call, **more))
    with monai_chunked.patch():
        result = outcome(lambda: sliding_window_inference(*call, **more))
    assert result[1] == expected[1]
    assert (result[0] is None) == (expected[0] is None)


def test_an_error_of_the_network_is_the_programs_own() -> None:
    class Own(Exception):
        pass

    def fail(windows: torch.Tensor) -> Any:
        raise Own(5, "apples")

    with pytest.raises(Own) as caught:
        patched(None, fail)
    assert caught.value.args == (5, "apples")
    calls = Recorder(lambda windows: exec("raise ValueError('mine')"))
    with pytest.raises(ValueError, match="mine"):
        patched(None, calls)
    assert len(calls.windows) == 1  # not once more by MONAI's code


# ---------------------------------------------------------------- one keyword more


class Refusing(torch.nn.Module):
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows, windows.sin(), windows.cos()], 1)


class Taking(torch.nn.Module):
    def forward(self, windows: torch.Tensor, postprocessing: str = "") -> torch.Tensor:
        return torch.cat([windows, windows.sin() * len(postprocessing)], 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("network", [Refusing(), Refusing().forward, torch.jit.script(Refusing())])
def test_postprocessing_is_ours_where_the_network_has_no_such_parameter(network: Any) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        reference(None, network, postprocessing="argmax")
    with monai_chunked.patch() as patch:
        labels = sliding_window_inference(volume(), predictor=network, **WINDOWS, postprocessing="argmax")
        assert patch.tally.scores == 0
        assert "made chunk by chunk: results of 1 call" in patch.summary()
    assert_same(labels.as_subclass(torch.Tensor), reference(None, network).argmax(1, keepdim=True).to(torch.uint8))
    inferer = SlidingWindowInferer(**WINDOWS)
    with monai_chunked.patch():
        assert torch.equal(inferer(volume(), network, postprocessing="argmax"), labels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("network", [Taking(), lambda w, **k: Taking()(w, **k), torch.jit.script(Taking())])
def test_postprocessing_is_the_networks_where_it_has_such_a_parameter(network: Any) -> None:
    expected = reference(None, network, postprocessing="argmax")
    assert_same(patched(None, network, postprocessing="argmax"), expected)


def test_postprocessing_of_what_is_left_to_monai_is_refused() -> None:
    with pytest.raises(ValueError, match="postprocessing='argmax' needs a call that runs in chunks: with buffer_steps"):
        patched(postprocessing="argmax", buffer_steps=1)
    with pytest.raises(ValueError, match="overlap=2 must be"):
        patched(postprocessing="argmax", overlap=2)


def test_a_program_that_forwards_what_the_signature_names_can_forward_postprocessing() -> None:
    def operator(image: torch.Tensor, **options: Any) -> Any:
        known = inspect.signature(sliding_window_inference).parameters
        kept = {name: value for name, value in options.items() if name in known}
        return sliding_window_inference(inputs=image, predictor=Refusing(), **WINDOWS, **kept)

    whole = operator(volume(), postprocessing="argmax")
    with monai_chunked.patch():
        assert torch.equal(operator(volume(), postprocessing="argmax"), whole.argmax(1, keepdim=True))


# ---------------------------------------------------------------- what it says


def test_the_summary_says_what_ran_what_is_held_and_what_labels_would_take(caplog: pytest.LogCaptureFixture) -> None:
    network = torch.nn.Conv3d(1, 20, 1)
    inferer = SlidingWindowInferer(32, 4, overlap=0.5, mode="gaussian")
    with caplog.at_level(logging.INFO, "monai_chunked"), monai_chunked.patch() as patch:
        small = inferer(random(1, 1, 40, 40, 40), network)
        large = inferer(random(1, 1, 96, 96, 96), network)
        sliding_window_inference(volume(), predictor=scores, **WINDOWS, buffer_steps=1)
    kinds = (
        monai_chunked.ChunkedSlidingWindowInferer(32, 4, 0.5, "gaussian", postprocessing=p, output="device")
        for p in (None, "argmax")
    )
    plans = [each.plan((1, 1, 96, 96, 96), 20) for each in kinds]
    mib = [(plan.cpu_bytes + plan.device_bytes) / 2**20 for plan in plans]
    first, left, held, saved, more = patch.summary().splitlines()
    assert first == "2 calls of MONAI's sliding_window_inference ran in chunks"
    assert left == "1 call left to MONAI's own code: with buffer_steps it adds up in another order"
    assert f"scores of 2 calls, {(small.nbytes + large.nbytes) / 2**20:.1f} MiB" in held
    assert f"the largest takes {large.nbytes / 2**20:.1f} MiB (1 x 20 x 96 x 96 x 96)" in held
    assert saved == f"saved there: MONAI's map of weights, {96**3 * 4 / 2**20:.1f} MiB"
    assert f"{mib[0]:.1f} MiB with scores, {mib[1]:.1f} MiB with labels" in more
    assert [record.getMessage() for record in caplog.records] == [patch.summary()]


def test_the_map_of_weights_is_that_of_the_padded_image_for_each_head() -> None:
    with monai_chunked.patch() as patch:
        sliding_window_inference(random(2, 1, 64, 64, 8), 32, 4, lambda w: (scores(w), w.sin()))
    assert f"saved there: MONAI's map of weights, {2 * 64 * 64 * 32 * 4 / 2**20:.1f} MiB" in patch.summary()


def test_nothing_is_advised_where_labels_would_not_take_less() -> None:
    with monai_chunked.patch() as patch:
        sliding_window_inference(random(1, 1, 32, 32, 32), 32, 4, scores)
    assert "to save more" not in patch.summary()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_of_outputs_is_counted_in_bytes(structure: str) -> None:
    with monai_chunked.patch() as patch:
        result = sliding_window_inference(volume(), 4, 1, STRUCTURES[structure], 0.5)
    heads = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]
    assert patch.tally.scores_bytes == sum(head.nbytes for head in heads)
    assert "held whole by the program: scores of 1 call" in patch.summary()


def test_a_program_that_never_calls_it_is_told_so() -> None:
    with monai_chunked.patch() as patch:
        pass
    assert patch.summary() == "0 calls of MONAI's sliding_window_inference ran in chunks"
