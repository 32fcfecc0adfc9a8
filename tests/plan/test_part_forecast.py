"""What is said of parts before they run is what counting window by window and chunk by chunk gives."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.__main__ import main
from monai_chunked.plan.borders import BORDERS
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.layout import chunk_grids
from monai_chunked.plan.parts.forecast import PartForecast, PartsForecast, forecast_parts
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import cut, work_of
from monai_chunked.plan.window_grid import Skipped, Window, batches_without, window_grid

CASES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Case(NamedTuple):
    grids: list[ChunkGrid]
    images: int
    sw_batch_size: int
    workers: int
    skipped: Skipped | None
    background_adds: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.integers(1, 3))
    most = {1: 40, 2: 20, 3: 12}[dims]
    size = draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims))
    windows = window_grid(
        size,
        draw(st.lists(st.integers(1, most // 2), min_size=dims, max_size=dims)),
        [draw(st.sampled_from([0, 0.25, 0.6])) for _ in range(dims)],
        buffer_steps=draw(st.none() | st.integers(1, 2)),
        buffer_dim=draw(st.integers(-dims, dims - 1)),
        border=[draw(st.sampled_from(sorted(BORDERS))) for _ in range(dims)],
        nearest_only=draw(st.booleans()),
    )
    chunk_size = draw(st.none() | st.lists(st.integers(1, most), min_size=dims, max_size=dims))
    grids = [draw(st.sampled_from(chunk_grids(windows, size, None, chunk_size, limited=True)))]
    if draw(st.booleans()):
        grids.append(draw(st.sampled_from(chunk_grids(windows, size, limited=True))))
    images = draw(st.integers(1, 3))
    skipped = None
    if draw(st.booleans()):
        each = draw(st.sampled_from([1, images]))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        skipped = Skipped(rng.random((each, *windows.shape)) < draw(st.sampled_from([0.2, 0.7, 1.0])))
    return Case(grids, images, draw(st.integers(1, 4)), draw(st.integers(1, 7)), skipped, draw(st.booleans()))


class Step(NamedTuple):
    """A window, whether the network gets it, and in which batch it comes."""

    window: Window
    predicted: bool
    batch: int


def steps_of(case: Case) -> list[Step]:
    steps: list[Step] = []
    batch = 0
    for run in case.grids[0].windows.runs(case.images):
        for windows, predicted in batches_without(run, case.skipped, case.sw_batch_size):
            steps += [Step(window, window in predicted, batch) for window in windows]
            batch += 1
    return steps


def pieces(case: Case, step: Step) -> Iterator[tuple[ChunkId, int]]:
    """The chunks that a window touches, and how many voxels it adds to each."""
    for head, grid in enumerate(case.grids):
        for chunk, _, in_chunk in grid.pieces(step.window.position):
            yield ChunkId(step.window.image, head, chunk), prod(side.stop - side.start for side in in_chunk)


class Counting:
    """Goes through all windows, one after the other."""

    def __init__(self, case: Case, voxel_bytes: list[int]) -> None:
        self.case, self.voxel_bytes = case, voxel_bytes
        self.steps = steps_of(case)
        self.touching: dict[ChunkId, list[int]] = {}
        for number, step in enumerate(self.steps):
            for chunk, _ in pieces(case, step):
                self.touching.setdefault(chunk, []).append(number)

    def size(self, chunk: ChunkId) -> int:
        return self.case.grids[chunk.head].voxels(chunk.position) * self.voxel_bytes[chunk.head]

    def most(self, spans: dict[ChunkId, tuple[int, int]]) -> int:
        """Bytes that are open at a time, one head after the other."""
        heads = len(self.case.grids)
        held = np.zeros(heads * len(self.steps) + 1, np.int64)
        for chunk, (first, last) in spans.items():
            held[heads * first + chunk.head : heads * last + chunk.head + 1] += self.size(chunk)
        return int(held.max())

    def opens(self, chunk: ChunkId) -> int | None:
        return next((n for n in self.touching[chunk] if self.steps[n].predicted), None)

    def handing_on(self, numbers: range) -> PartForecast:
        kept = sent = 0
        spans = {}
        for chunk, touching in self.touching.items():
            here, opens = [n for n in touching if n in numbers], self.opens(chunk)
            if not here or opens is None or opens >= numbers.stop:
                continue
            if opens >= numbers.start:
                spans[chunk] = (opens, min(touching[-1], numbers.stop - 1))
            else:
                for number in here:
                    adds = self.case.background_adds or self.steps[number].predicted
                    voxels = dict(pieces(self.case, self.steps[number]))[chunk]
                    kept += adds * voxels * self.voxel_bytes[chunk.head]
            if touching[-1] >= numbers.stop:
                sent += self.size(chunk)
        return self.forecast(numbers, {self.steps[n].batch for n in numbers}, spans, kept, sent, 0)

    def independent(self, numbers: range, before: set[int]) -> tuple[PartForecast, set[int]]:
        own = {chunk: touching for chunk, touching in self.touching.items() if touching[-1] in numbers}
        spans = {chunk: (opens, own[chunk][-1]) for chunk in own if (opens := self.opens(chunk)) is not None}
        batches = {self.steps[n].batch for touching in own.values() for n in touching if self.steps[n].predicted}
        twice = sum(step.predicted for step in self.steps if step.batch in batches & before)
        return self.forecast(numbers, batches, spans, 0, 0, twice), before | batches

    def forecast(self, numbers: range, batches: set[int], spans: Any, kept: int, sent: int, twice: int) -> PartForecast:
        predicted = [step for step in self.steps if step.batch in batches and step.predicted]
        used = {step.batch for step in predicted}
        return PartForecast(numbers, len(predicted), len(used), self.most(spans), kept, sent, twice)


def forecast_of(case: Case, voxel_bytes: list[int]) -> tuple[Parts, PartsForecast]:
    work = work_of(case.grids[0].windows, case.images, case.sw_batch_size, skipped=case.skipped)
    parts = Parts(case.grids, case.images, cut(work, case.workers), case.skipped)
    adds = [case.background_adds] * len(case.grids)
    return parts, forecast_parts(parts, work, voxel_bytes=voxel_bytes, workers=case.workers, background_adds=adds)


@CASES
@given(cases())
def test_parts_take_what_counting_window_by_window_gives(case: Case) -> None:
    voxel_bytes = [4, 12][: len(case.grids)]
    parts, forecast = forecast_of(case, voxel_bytes)
    counting = Counting(case, voxel_bytes)
    before: set[int] = set()
    for number, numbers in enumerate(parts.ranges):
        assert forecast.handing_on[number] == counting.handing_on(numbers)
        alone, before = counting.independent(numbers, before)
        assert forecast.independent[number] == alone
    assert sum(part.windows for part in forecast.handing_on) == forecast.windows
    assert sum(part.windows - part.twice for part in forecast.independent) == forecast.windows


def test_sixty_four_workers_are_used_well_where_chunks_are_handed_on() -> None:
    plan = ChunkedSlidingWindowInferer(96, overlap=0.5).plan((1, 1, 2048, 2048, 4096), 5, workers=64)
    assert plan.parts is not None
    assert plan.parts.efficiency(plan.parts.handing_on) >= 0.9
    assert len(str(plan).splitlines()) < 30  # of so many parts only some are shown


def test_the_command_prints_a_line_for_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "plan --image-size 90 60 60 --roi-size 40 --overlap 0.5 --classes 2 --workers 4"
    assert main(arguments.split()) == 0
    printed = capsys.readouterr().out.splitlines()
    (summary,) = [line for line in printed if line.startswith("4 workers")]
    assert summary.split(maxsplit=2)[2] == "4 parts; efficiency 1.00 handed on, 0.33 independent"
    assert [line.split()[1] for line in printed if line.startswith("  part")] == ["0", "1", "2", "3"]
    assert main([*arguments.split()[:-1], "0"]) == 2
    assert "workers=0 must be at least 1" in capsys.readouterr().err


def test_more_workers_than_batches_are_not_all_used() -> None:
    parts = ChunkedSlidingWindowInferer(40, overlap=0.5).plan((1, 1, 60, 40, 40), 2, workers=5).parts
    assert parts is not None
    assert (len(parts.handing_on), parts.efficiency(parts.handing_on)) == (2, 0.4)
