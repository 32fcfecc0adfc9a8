"""How several workers share a volume: what the geometry says, beside counting all pairs of windows and chunks."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_chunked.plan.borders import BORDERS
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.layout import chunk_grids
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import cut, needed_windows, work_of
from monai_chunked.plan.window_grid import Skipped, WindowGrid, batches_without, window_grid

CASES = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[ChunkGrid], int, int, Skipped | None, int]:
    dims = draw(st.integers(1, 3))
    most = {1: 40, 2: 14, 3: 8}[dims]
    size = draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims))
    roi = draw(st.lists(st.integers(1, most // 2 + 2), min_size=dims, max_size=dims))
    border = draw(st.lists(st.sampled_from(sorted(BORDERS)), min_size=dims, max_size=dims))
    overlap = [draw(st.sampled_from([0, 0.25, 0.5, 0.7]))] * dims
    steps, dim = draw(st.none() | st.integers(1, 2)), draw(st.integers(0, dims - 1))
    windows = window_grid(size, roi, overlap, buffer_steps=steps, buffer_dim=dim, border=border)
    chunk_size = draw(st.none() | st.lists(st.integers(1, most), min_size=dims, max_size=dims))
    grids = [
        draw(st.sampled_from(chunk_grids(windows, size, None, chunk_size))) for _ in range(draw(st.integers(1, 2)))
    ]
    images = draw(st.integers(1, 2))
    skipped = None
    if draw(st.booleans()):
        some = draw(st.sampled_from([0.1, 0.5, 0.9, 1]))
        seed = draw(st.integers(0, 99))
        skipped = Skipped(
            np.random.default_rng(seed).random((draw(st.sampled_from([1, images])), *windows.shape)) < some
        )
    return grids, images, draw(st.integers(1, 4)), skipped, draw(st.integers(1, 6))


def batches(windows: WindowGrid, images: int, size: int, skipped: Skipped | None) -> list[tuple[int, list[Any]]]:
    """The number of windows that are passed on with each batch, and those that the network gets."""
    runs = (batches_without(run, skipped, size) for run in windows.runs(images))
    return [(len(passed), seen) for run in runs for passed, seen in run]


@CASES
@given(cases())
def test_parts_have_the_batches_of_one_process_and_about_equal_work(case: Any) -> None:
    grids, images, size, skipped, workers = case
    windows = grids[0].windows
    each = batches(windows, images, size, skipped)
    ends = list(itertools.accumulate(passed for passed, _ in each))
    work = work_of(windows, images, size, skipped=skipped)
    assert (work.ends.tolist(), work.predicted.tolist()) == (ends, [len(seen) for _, seen in each])

    ranges = cut(work, workers)
    assert [r.start for r in ranges] == [0, *(r.stop for r in ranges[:-1])]
    assert ranges[-1].stop == images * len(windows)
    assert {r.stop for r in ranges} <= set(ends)
    shares = [sum(n for end, n in zip(ends, work.predicted.tolist()) if r.start < end <= r.stop) for r in ranges]
    if any(work.predicted):
        assert len(ranges) == min(workers, np.count_nonzero(work.predicted))
        assert min(shares) > 0
        assert max(shares) - min(shares) <= 2 * size
    else:
        assert len(ranges) == 1


@CASES
@given(cases(), st.randoms(use_true_random=False))
def test_batches_that_nobody_needs_are_no_work(case: Any, random: Any) -> None:
    grids, images, size, skipped, _ = case
    windows = grids[0].windows
    done = {chunk for chunk in chunks(grids, images) if random.random() < 0.7}
    needed = needed_windows(grids, images, done)
    expected = [
        any(ChunkId(image, h, c) not in done for h, grid in enumerate(grids) for c in grid.touched_by(position))
        for image in range(images)
        for position in windows.positions()
    ]
    assert needed.tolist() == expected
    numbers = {window[:2]: k for k, window in enumerate(w for run in windows.runs(images) for w in run)}
    each = batches(windows, images, size, skipped)
    wanted = [len(seen) if any(expected[numbers[w[:2]]] for w in seen) else 0 for _, seen in each]
    assert work_of(windows, images, size, skipped=skipped, needed=needed).predicted.tolist() == wanted


def chunks(grids: list[ChunkGrid], images: int) -> list[ChunkId]:
    return [
        ChunkId(image, head, position)
        for image in range(images)
        for head, grid in enumerate(grids)
        for position in np.ndindex(*grid.shape)
    ]


@CASES
@given(cases())
def test_who_adds_to_a_chunk_is_who_has_windows_that_touch_it(case: Any) -> None:
    grids, images, size, skipped, workers = case
    windows = grids[0].windows
    parts = Parts(grids, images, cut(work_of(windows, images, size, skipped=skipped), workers), skipped)
    touching: dict[ChunkId, list[tuple[int, bool]]] = defaultdict(list)
    number = 0
    for image in range(images):
        for position in windows.positions():
            assert windows.number(position) == number - image * len(windows)
            assert windows.position(number - image * len(windows)) == position
            seen = skipped is None or not skipped.window(image, position)
            for head, grid in enumerate(grids):
                for piece in grid.pieces(position):
                    touching[ChunkId(image, head, piece.chunk)].append((number, seen))
            number += 1

    inherited: list[dict[ChunkId, int]] = [{} for _ in range(len(parts))]
    handed_on: list[dict[ChunkId, int]] = [{} for _ in range(len(parts))]
    for chunk in sorted(chunks(grids, images), key=lambda c: (touching[c][-1][0], c.head, c.position)):
        own = touching[chunk]
        owner = next(k for k, r in enumerate(parts.ranges) if own[-1][0] in r)
        assert parts.owner(chunk) == owner
        opened = next((n for n, seen in own if seen), None)
        adding = [
            k for k, r in enumerate(parts.ranges) if opened is not None and any(n in r and n >= opened for n, _ in own)
        ]
        adding = adding or [owner]
        assert parts.touching(chunk) == adding
        for before, after in itertools.pairwise(adding):
            inherited[after][chunk] = before
            handed_on[before][chunk] = after

    def in_order(found: dict[ChunkId, int], part: int) -> list[tuple[ChunkId, int]]:
        """Those that wait for one another come behind those that do not."""
        return sorted(found.items(), key=lambda item: parts.touching(item[0]).index(part))

    for part in range(len(parts)):
        assert list(parts.inherited(part).items()) == in_order(inherited[part], part)
        assert list(parts.handed_on(part).items()) == in_order(handed_on[part], part)
        # only windows tell, whether or not they are skipped, and some may lie beside a chunk
        numbers = parts.ranges[part]
        through = [own for own in touching.values() if own[0][0] < numbers.start and own[-1][0] >= numbers.stop]
        assert parts.passes_on(part) == bool(through)
        assert parts.passes_on(part) or not inherited[part].keys() & handed_on[part].keys()
        own = [touching[chunk][0][0] for chunk in touching if parts.owner(chunk) == part]
        assert parts.first_window(part) == min([parts.ranges[part].start, *own])
