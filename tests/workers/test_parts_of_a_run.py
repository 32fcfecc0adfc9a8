"""A run in parts, one after the other in this process: the bits of a run that is not shared, and of MONAI."""

from __future__ import annotations

import copy
import pickle
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from monai_chunked import Result, chunked_sliding_window_inference
from monai_chunked.call.call import Call
from monai_chunked.call.settings import Settings
from monai_chunked.chunks.handing_on import HandingOn
from monai_chunked.inputs.source import source_of
from monai_chunked.plan.borders import BORDERS
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.forecast import forecast_parts
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import cut, work_of
from monai_chunked.recovery.left import Left
from monai_chunked.run.assembly import Part
from monai_chunked.run.begun import Run
from monai_chunked.run.run import predict
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.halves import first_half, second_half
from monai_chunked.workers.part import HandedOver, SharedRun, first_heads, predict_part
from tests.run.test_exactness import Network
from tests.side_by_side import random

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CASES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(CASES, max_examples=400)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 3))
    most = {1: 40, 2: 16, 3: 9}[dims]
    size = draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims))
    mask = None
    if draw(st.booleans()):
        mask = torch.zeros(size)
        for _ in range(draw(st.integers(1, 3))):
            mask[tuple(draw(st.integers(0, n - 1)) for n in size)] = 1
    heads = draw(st.integers(1, 2))
    return {
        "size": (draw(st.integers(1, 2)), 1, *size),
        "workers": draw(st.integers(1, 5)),
        "heads": heads,
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "given": {
            "roi_size": draw(st.lists(st.integers(1, most // 2 + 2), min_size=dims, max_size=dims)),
            "sw_batch_size": draw(st.integers(1, 4)),
            "overlap": draw(st.sampled_from([0, 0.25, 0.5, 0.7])),
            "mode": draw(st.sampled_from(["constant", "gaussian"])),
            "border": draw(st.lists(st.sampled_from(sorted(BORDERS)), min_size=dims, max_size=dims)),
            "buffer_steps": draw(st.none() | st.integers(1, 2)),
            "buffer_dim": draw(st.integers(0, dims - 1)),
            "chunk_size": draw(st.none() | st.lists(st.integers(1, most), min_size=dims, max_size=dims)),
            "postprocessing": draw(st.sampled_from([None, "argmax", torch.nn.Identity()])),
            "mask": mask,
            "background": draw(st.sampled_from([0, 0.5])),
        },
    }


def made(case: dict[str, Any]) -> tuple[torch.Tensor, BoundNetwork, Any]:
    """The input, the network, and the result of a run that is not shared."""
    image = random(*case["size"]).to(case["dtype"])
    zooms = ((1,) * (len(case["size"]) - 2),) * case["heads"]
    network = Network(1, 3, zooms, "tuple" if case["heads"] > 1 else "tensor")
    expected = chunked_sliding_window_inference(image, predictor=network, **case["given"])
    return image, BoundNetwork(network, (), {}), expected if isinstance(expected, tuple) else (expected,)


class Results:
    """Takes boxes of results, each voxel once."""

    def __init__(self) -> None:
        self.results: dict[str, torch.Tensor] = {}
        self.times: dict[str, torch.Tensor] = {}

    def put(self, result: Result, image: int, box: Box, chunk: torch.Tensor) -> None:
        if result.name not in self.results:
            self.results[result.name] = torch.empty(result.shape, dtype=result.dtype)
            self.times[result.name] = torch.zeros((result.shape[0], *result.shape[2:]), dtype=torch.int)
        self.results[result.name][image][(slice(None), *box)] = chunk
        self.times[result.name][image][box] += 1

    def check(self, expected: tuple[torch.Tensor, ...]) -> None:
        names = ["prediction"] if len(expected) == 1 else [f"prediction-{k}" for k in range(len(expected))]
        for name, each in zip(names, expected):
            assert (self.times[name] == 1).all()
            assert torch.equal(self.results[name], each)


def call_of(image: torch.Tensor, network: BoundNetwork, case: dict[str, Any], results: Results) -> Call:
    """A call whose results take what a part makes."""
    settings = Settings.check(image.shape, **case["given"])
    return Call.of(source_of(image), network, replace(settings, output=HandedOver(results.put)))


def shared_run(call: Call, workers: int) -> SharedRun:
    """What a run that is not shared finds out about heads and chunks."""
    settings, images, skipped = call.settings, call.images, call.settings.skipped()
    heads, layout = first_heads(Run.of_worker(call, Left(), skipped))
    ranges = cut(work_of(settings.windows, images, settings.sw_batch_size, skipped=skipped), workers)
    return SharedRun(Left(heads, tuple(grid.cuts for grid in layout.grids)), ranges, skipped)


def check_independent(case: dict[str, Any]) -> None:
    image, network, expected = made(case)
    results = Results()
    call = call_of(image, network, case, results)
    shared = shared_run(call, case["workers"])
    for part in reversed(range(len(shared.ranges))):
        predict_part(call, shared, part)
    results.check(expected)


class Passing:
    """Brings sums from one part to the next in one process."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int], deque[torch.Tensor]] = defaultdict(deque)
        self.part = 0

    def send(self, part: int, sums: torch.Tensor) -> None:
        self.sums[self.part, part].append(sums)

    def receive(self, part: int, shape: tuple[int, ...]) -> torch.Tensor:
        sums = self.sums[part, self.part].popleft()
        assert sums.shape[1:] == shape
        return sums


class Watched(Part):
    """A part that says afterwards what it has handed on and kept."""

    def handing_on(self, run: Run, layout: Layout) -> HandingOn:
        found = super().handing_on(run, layout)
        object.__setattr__(self, "found", (found, Parts(layout.grids, run.call.images, self.ranges or (), run.skipped)))
        return found


def check_handing_on(case: dict[str, Any]) -> None:
    image, network, expected = made(case)
    results, exchange, seen = Results(), Passing(), []
    ranges = shared_run(call_of(image, network, case, results), case["workers"]).ranges

    def counted(*args: Any) -> Any:
        seen.append(len(args[0]))
        return network(*args)

    call = call_of(image, BoundNetwork(counted, (), {}), case, results)
    settings, skipped, heads = call.settings, call.settings.skipped(), case["heads"]
    work = work_of(settings.windows, call.images, settings.sw_batch_size, skipped=skipped)
    for number, numbers in enumerate(ranges):
        exchange.part = number
        part = Watched(numbers, ranges=ranges, number=number, exchange=exchange)
        predict(Run.of_worker(call, Left(), skipped), part)
        found, parts = part.found  # type: ignore[attr-defined]
        voxel_bytes, adding = [3 * case["dtype"].itemsize] * heads, [settings.background != 0] * heads
        taken = forecast_parts(
            parts, work, voxel_bytes=voxel_bytes, workers=len(ranges), background_adds=adding
        ).handing_on[number]
        assert (found.sent_bytes, found.kept_bytes) == (taken.sent_bytes, taken.kept_bytes)
        assert not found.products
    results.check(expected)
    if case["given"]["mask"] is None:
        assert sum(seen) == len(image) * len(settings.windows)


def check_halves(case: dict[str, Any]) -> None:
    """First all first halves, in any order; then the second ones, one of them twice, as after a failure."""
    image, network, expected = made(case)
    results, begun, ended = Results(), {}, {}
    shared = shared_run(call_of(image, network, case, results), case["workers"])
    ranges = shared.ranges

    def half(which: Callable[..., Any], *args: Any) -> Any:
        run = shared.run_of(call_of(image, network, case, results))
        return pickle.loads(pickle.dumps(which(run, ranges, *args)))

    for part in reversed(range(len(ranges))):
        begun[part] = half(first_half, part)
    for part in range(len(ranges)):
        sums = {giver: begun[giver][0].get(part, []) + ended[giver].get(part, []) for giver in range(part)}
        before = copy.deepcopy(results)
        for _ in range(1 + (part == 1)):
            results = copy.deepcopy(before)
            ended[part] = half(partial(second_half, products=begun[part][1], sums=sums), part)
    results.check(expected)


@CASES
@given(cases())
def test_independent_parts_have_the_bits_of_a_run_that_is_not_shared(case: dict[str, Any]) -> None:
    check_independent(case)


@CASES
@given(cases())
def test_parts_that_hand_on_chunks_predict_each_window_once_and_have_the_same_bits(case: dict[str, Any]) -> None:
    check_handing_on(case)


@settings(CASES, max_examples=30)
@given(cases())
def test_halves_of_parts_have_the_same_bits(case: dict[str, Any]) -> None:
    check_halves(case)


@pytest.mark.long
@MANY
@given(cases())
def test_many_more_cases(case: dict[str, Any]) -> None:
    check_independent(case)
    check_handing_on(case)
    check_halves(case)


@pytest.mark.parametrize("check", [check_independent, check_handing_on, check_halves])
def test_parts_have_the_bits_of_monai(check: Callable[..., None]) -> None:
    how = {"roi_size": (6, 5, 7), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
    case = {"size": (2, 1, 17, 14, 15), "workers": 4, "heads": 1, "dtype": torch.float32, "given": how}
    image, network, expected = made({**case, "given": how})
    assert torch.equal(expected[0], sliding_window_inference(image, predictor=network, **how))
    check({**case, "given": {**how, "mask": None, "background": 0}})
