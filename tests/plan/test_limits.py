"""Limits in bytes: kept, forecast to the byte, and without any effect on the answer."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.plan import layout as planning
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Volume, chunk_grids, lay_out
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH, LimitError, Limits, Schedule
from monai_chunked.plan.sizes import parse_bytes
from monai_chunked.plan.window_grid import Window, window_grid
from tests.watching import Watching

CASES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 3))
    most = {1: 60, 2: 24, 3: 14}[dims]
    sizes = st.lists(st.integers(1, most), min_size=dims, max_size=dims)
    outputs = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    return {
        "image_size": draw(sizes),
        "roi_size": draw(st.lists(st.integers(1, most // 2), min_size=dims, max_size=dims)),
        "overlap": draw(st.lists(st.sampled_from([0, 0.25, 0.5, 0.8]), min_size=dims, max_size=dims)),
        "chunk_size": draw(st.none() | sizes),
        "outputs": outputs,
        "images": draw(st.integers(1, 2)),
        "sw_batch_size": draw(st.integers(1, 3)),
        "limit": draw(st.none() | st.floats(0, 1)),
        "postprocessing": draw(st.sampled_from([None, torch.nn.Identity(), *["argmax"] * (min(outputs) > 1)])),
        "piece_bytes": draw(st.sampled_from([0, 2**30])),
    }


def network_with(outputs: list[int]) -> Any:
    def network(x: torch.Tensor) -> Any:
        return tuple(
            torch.cat([(x - c / 4) ** 2 * k for c in range(channels)], 1) for k, channels in enumerate(outputs, 1)
        )

    return network


def layout_of(run: dict[str, Any], limit: int | None) -> Any:
    windows = window_grid(run["image_size"], run["roi_size"], run["overlap"])
    heads = Heads.of([(channels, *windows.roi_size) for channels in run["outputs"]])
    labels = run["postprocessing"] == "argmax"
    volume = Volume(windows, run["image_size"], heads, 4)
    return lay_out(volume, Limits(0, limit), chunk_size=run["chunk_size"], labels_on_cpu=labels)


@CASES
@given(runs())
def test_a_limited_run_has_the_same_bits_and_holds_and_moves_what_the_forecast_says(run: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "PIECE_BYTES", run["piece_bytes"])
        check_limited_run(run)


def check_limited_run(run: dict[str, Any]) -> None:
    unlimited = layout_of(run, None)
    smallest = max(g.window_voxels() * b for g, b in zip(unlimited.grids, unlimited.voxel_bytes))
    most = unlimited.forecast.peak[CPU]
    limit = None if run["limit"] is None else int(smallest + run["limit"] * (most - smallest))
    forecast = layout_of(run, limit).forecast

    class Checking(Watching):
        def window(self, window: Window, predicted: bool, stitcher: Stitcher) -> None:
            super().window(window, predicted, stitcher)
            # what is in the result already must not be postprocessed, nor move
            in_place = bool(stitcher.open_chunks.in_results)
            assert in_place == (run["postprocessing"] is None and not forecast.moved)
            pages = self.levels.pages
            assert pages is not None
            assert pages.used == (0 if in_place else self.levels.open_bytes[CPU])
            assert pages.used + pages.kept <= (most if limit is None else limit)

    watching = Checking()
    x = torch.rand(run["images"], 1, *run["image_size"])
    parameters = {key: run[key] for key in ("roi_size", "sw_batch_size", "overlap")}
    network = network_with(run["outputs"])
    with torch.no_grad():
        inferer = ChunkedSlidingWindowInferer(
            **parameters,
            mode="gaussian",
            progress=watching,
            chunk_size=run["chunk_size"],
            cpu_memory=limit,
            postprocessing=run["postprocessing"],
        )
        ours = inferer(x, network)
        reference = SlidingWindowInferer(**parameters, mode="gaussian")(x, network)
    for one, other in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (ours, reference))):
        assert torch.equal(one, other.argmax(1, keepdim=True) if run["postprocessing"] == "argmax" else other)
    assert watching.held == [tuple(step) for step in forecast.curve.tolist()] * run["images"]
    assert watching.levels.written == forecast.written * run["images"]
    assert watching.levels.read == forecast.read * run["images"]


@CASES
@given(runs(), st.floats(0, 1))
def test_the_schedule_keeps_limits_on_device_and_cpu(run: dict[str, Any], share: float) -> None:
    unlimited = layout_of(run, None)
    smallest = max(g.window_voxels() * b for g, b in zip(unlimited.grids, unlimited.voxel_bytes))
    peak = unlimited.forecast.peak[CPU]
    device_limit = int(share * peak)
    cpu_limit = int(smallest + (run["limit"] or 0) * (peak - smallest))
    schedule = Schedule(unlimited.grids, unlimited.voxel_bytes, Limits(device_limit, cpu_limit))
    level: dict[Any, int] = {}
    slots: dict[int, Any] = {}
    steps = iter(schedule.steps())
    for position in unlimited.grids[0].windows.positions():
        for output, grid in enumerate(unlimited.grids):
            for key, source, target, slot in next(steps):
                assert level.get(key) == source
                if source == SCRATCH:
                    assert slots.pop(slot) == key
                if target == SCRATCH:
                    assert slot not in slots
                    slots[slot] = key
                level[key] = target
            assert schedule.used[DEVICE] <= device_limit
            assert schedule.used[CPU] <= cpu_limit
            assert all(level[ChunkId(0, output, chunk)] in (DEVICE, CPU) for chunk in grid.touched_by(position))
            for chunk in grid.finished_by(position):
                del level[ChunkId(0, output, chunk)]
    assert next(steps, None) is None
    assert not level


def test_the_schedule_moves_no_more_than_any_other_order_of_choices() -> None:
    """Belady's rule is optimal for chunks of one size: compared with trying every choice."""
    windows = window_grid((8, 8), (4, 4), (0.5, 0.5))
    grid = chunk_grids(windows, (8, 8), chunk_size=(2, 2))[0]
    order = [frozenset(grid.touched_by(p)) for p in windows.positions()]
    finished = [frozenset(grid.finished_by(p)) for p in windows.positions()]

    def fewest(step: int, inside: frozenset[Any], outside: frozenset[Any]) -> int:
        if step == len(order):
            return 0
        needed = order[step]
        others = inside - needed
        room = 5 - len(needed)
        out = outside - needed
        best = 10**9
        for kept in combinations(sorted(others), min(room, len(others))):
            evicted = others - set(kept)
            now = (needed | set(kept)) - finished[step]
            best = min(best, len(evicted) + fewest(step + 1, frozenset(now), frozenset(out | evicted)))
        return best

    forecast = Schedule([grid], [4], Limits(0, 5 * 4 * 4)).forecast()
    assert forecast.written // (4 * 4) == fewest(0, frozenset(), frozenset())


def test_when_the_device_has_less_room_than_it_said_chunks_go_to_cpu_memory() -> None:
    windows = window_grid((40, 40), (8, 8), (0.5, 0.5))
    grid = chunk_grids(windows, (40, 40))[1]
    schedule = Schedule([grid], [4], Limits(None, 4 * 400))
    level: dict[Any, int] = {}
    displaced = 0
    for number, moves in enumerate(schedule.steps()):
        for move in moves:
            level[move.chunk] = move.target
            if number >= 5 and move.target == DEVICE and displaced < 3:
                displaced += 1
                level[move.chunk] = CPU
                for other in schedule.displace(move.chunk):
                    assert level[other.chunk] == other.source
                    level[other.chunk] = other.target
        assert schedule.used[CPU] <= 4 * 400
        assert all(level[key] == found for key, found in schedule._level.items())
    assert displaced == 3


@pytest.mark.parametrize("limit", ["64kB", 1000])
def test_a_limit_too_small_for_one_window_is_refused_with_the_smallest_that_would_do(limit: int | str) -> None:
    x, network = torch.rand(1, 1, 64, 64, 64), network_with([3])
    calls = []
    with pytest.raises(ValueError, match=r"cpu_memory=[0-9,]+ bytes cannot hold .* smallest .* is ([0-9,]+)") as error:
        ChunkedSlidingWindowInferer(32, cpu_memory=limit)(x, lambda w: calls.append(1) or network(w))
    assert len(calls) == 1
    smallest = int(str(error.value).split("is ")[1].split(" ")[0].replace(",", ""))
    assert smallest == 32**3 * 3 * 4
    assert torch.equal(
        ChunkedSlidingWindowInferer(32, cpu_memory=smallest)(x, network), SlidingWindowInferer(32)(x, network)
    )
    with pytest.raises(ValueError, match="cpu_memory"):
        ChunkedSlidingWindowInferer(32, cpu_memory=smallest - 1)(x, network)


@pytest.mark.parametrize("size", ["lots", "-3", -1, "5 XB", "1.2.3", True, ""])
def test_sizes_that_are_none_are_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"device_memory=.* '512MB' or '2GiB'"):
        ChunkedSlidingWindowInferer(4, device_memory=size)(torch.rand(1, 1, 8, 8), lambda x: x)


def test_sizes_in_words() -> None:
    words = {"512MB": 512 * 10**6, "2GiB": 2**31, "1.5 kB": 1500, "7": 7, "3 KiB": 3072, 12: 12, "0": 0, "1TB": 10**12}
    assert {word: parse_bytes("x", word) for word in words} == words


def test_limits_refuse_what_the_schedule_cannot_do() -> None:
    windows = window_grid((16, 16), (8, 8), (0.5, 0.5))
    with pytest.raises(LimitError):
        Schedule(chunk_grids(windows, (16, 16))[:1], [4], Limits(0, 8)).forecast()
