"""Geometry without a network: windows are MONAI's, chunks tile, and the schedule says what a run in fact holds."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from monai_chunked import chunked_sliding_window_inference
from monai_chunked.plan.borders import BORDERS
from monai_chunked.plan.boxes import sizes
from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Volume, lay_out
from monai_chunked.plan.parts.work import work_of
from monai_chunked.plan.window_grid import WindowGrid, window_grid

CASES = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 4))
    most = {1: 50, 2: 20, 3: 12, 4: 7}[dims]
    each = st.lists(st.integers(1, most), min_size=dims, max_size=dims)
    return {
        "image_size": draw(each),
        "roi_size": draw(each),
        "overlap": draw(st.lists(st.sampled_from([0, 0.1, 0.25, 0.5, 0.8]), min_size=dims, max_size=dims)),
        "buffer_steps": draw(st.none() | st.integers(1, 3)),
        "buffer_dim": draw(st.integers(-dims, dims - 1)),
        "chunk_size": draw(st.none() | each),
        "border": draw(st.lists(st.sampled_from(sorted(BORDERS)), min_size=dims, max_size=dims)),
        "min_size": draw(st.none() | st.integers(1, 3)),
        "nearest_only": draw(st.booleans()),
    }


def chunk_grid(windows: WindowGrid, image_size: Any, chunk_size: Any = None) -> ChunkGrid:
    volume = Volume(windows, image_size, Heads.of([(1, *windows.roi_size)]), 4)
    return lay_out(volume, chunk_size=chunk_size).grids[0]


def peak_voxels(chunks: ChunkGrid) -> int:
    """The most voxels that are open at one time."""
    return int(chunks.open_voxels().max())


def grids(geometry: dict[str, Any]) -> tuple[WindowGrid, ChunkGrid]:
    chunk_size = geometry.pop("chunk_size")
    geometry["min_size"] = geometry["min_size"] and [min(geometry["min_size"], roi) for roi in geometry["roi_size"]]
    windows = window_grid(**geometry)
    return windows, chunk_grid(windows, geometry["image_size"], chunk_size=chunk_size)


def test_chunks_of_labels_are_cut_in_every_dimension_unless_pieces_get_small() -> None:
    def chunks(classes: int, overlap: float, labels_on_cpu: bool) -> tuple[int, ...]:
        windows = window_grid((256,) * 3, (96,) * 3, (overlap,) * 3)
        outputs = Heads.of([(classes, *windows.roi_size)])
        return lay_out(Volume(windows, (256,) * 3, outputs, 4), labels_on_cpu=labels_on_cpu).grids[0].shape

    assert chunks(50, 0.5, labels_on_cpu=True) == (7, 7, 7)
    assert chunks(50, 0.5, labels_on_cpu=False) == (7, 7, 1)
    assert chunks(2, 0.5, labels_on_cpu=True) == (7, 7, 1)
    assert chunks(50, 0.9, labels_on_cpu=True)[2] == 1


@CASES
@given(geometries())
def test_windows_are_those_of_monai_in_its_order(geometry: dict[str, Any]) -> None:
    geometry |= {"buffer_steps": None, "border": "edge"}
    windows, _ = grids(geometry)
    interval = _get_scan_interval(windows.image_size, windows.roi_size, len(windows.roi_size), geometry["overlap"])
    expected = dense_patch_slices(windows.image_size, windows.roi_size, interval)
    assert [w.box for batch in windows.batches(1, 4) for w in batch] == expected


@CASES
@given(geometries(), st.integers(1, 3), st.integers(1, 5))
def test_batches_are_full_but_for_the_last_of_a_run(geometry: dict[str, Any], images: int, sw_batch_size: int) -> None:
    windows, _ = grids(geometry)
    batches = list(windows.batches(images, sw_batch_size))
    every = [w for batch in batches for w in batch]
    assert len(every) == len({(w.image, w.position) for w in every}) == images * len(windows)
    assert len(batches) == len(work_of(windows, images, sw_batch_size).ends)
    for batch in batches:
        assert len({sizes(window.box) for window in batch}) == 1
    if not windows.steps_per_buffer and all(len(set(lengths)) == 1 for lengths in windows.lengths):
        assert all(len(batch) == sw_batch_size for batch in batches[:-1])
    elif windows.steps_per_buffer:  # a batch stays within one image and one buffer
        slowest = windows.order[0]
        for batch in batches:
            assert len({(w.image, w.position[slowest] // windows.steps_per_buffer) for w in batch}) == 1


@CASES
@given(geometries())
def test_every_output_voxel_lies_in_one_chunk(geometry: dict[str, Any]) -> None:
    _, chunks = grids(geometry)
    count = np.zeros(chunks.size, int)
    for index in np.ndindex(*chunks.shape):
        assert count[chunks.box(index)].size > 0
        count[chunks.box(index)] += 1
    assert (count == 1).all()
    assert list(chunks.size) == geometry["image_size"]


@CASES
@given(geometries())
def test_pieces_and_finishing_agree_with_looking_at_all_pairs(geometry: dict[str, Any]) -> None:
    windows, chunks = grids(geometry)
    size = chunks.size
    voxels = np.arange(np.prod(size)).reshape(size)
    last_seen: dict[tuple[int, ...], tuple[int, ...]] = {}
    touching: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for position in windows.positions():
        starts = [s[p][0] for s, p in zip(chunks.spans, position)]
        spans = [s[p] for s, p in zip(chunks.kept, position)]
        inside = voxels[tuple(slice(max(a, 0), min(b, n)) for (a, b), n in zip(spans, size))]
        pieces = list(chunks.pieces(position))
        # the pieces of a window are its voxels, each once
        found = np.concatenate([voxels[chunks.box(p.chunk)][p.in_chunk].ravel() for p in pieces])
        assert sorted(found.tolist()) == sorted(inside.ravel().tolist())
        for piece in pieces:
            shape = [s.stop - s.start for s in piece.in_window]
            assert shape == [s.stop - s.start for s in piece.in_chunk]
            start = [a + s.start for a, s in zip(starts, piece.in_window)]
            box = chunks.box(piece.chunk)
            assert start == [b.start + s.start for b, s in zip(box, piece.in_chunk)]
            last_seen[piece.chunk] = position
            touching.setdefault(piece.chunk, []).append(position)
    finished = {c: position for position in windows.positions() for c in chunks.finished_by(position)}
    assert finished == last_seen
    order = list(windows.positions())
    for chunk, positions in touching.items():
        assert len(list(chunks.windows_of(chunk))) == len(positions)
        following = [order.index(position) for position in positions[1:]] + [None]
        assert [chunks.next_window(chunk, position) for position in positions] == following


@CASES
@given(geometries())
def test_open_voxels_agree_with_counting_chunk_by_chunk(geometry: dict[str, Any]) -> None:
    windows, chunks = grids(geometry)
    opened: set[tuple[int, ...]] = set()
    counts, left = [], []
    for position in windows.positions():
        opened |= {piece.chunk for piece in chunks.pieces(position)}
        counts.append(sum(map(chunks.voxels, opened)))
        opened -= set(chunks.finished_by(position))
        left.append(sum(map(chunks.voxels, opened)))
    assert not opened
    assert chunks.open_voxels().tolist() == counts
    assert chunks.kept_voxels().tolist() == left
    assert chunks.window_voxels() >= max(
        sum(map(chunks.voxels, chunks.touched_by(position))) for position in windows.positions()
    )


def test_a_million_windows_are_planned_in_no_time_that_grows_with_chunks() -> None:
    windows = window_grid((6464, 6464, 6464), (128, 128, 128), (0.5, 0.5, 0.5))
    assert len(windows) == 1_000_000
    chunks = chunk_grid(windows, (6464, 6464, 6464))
    # the open chunks are a part of two layers of windows, not of the volume
    assert peak_voxels(chunks) < 2 * 128 * 6464 * 6464
    calls = Counter(type(chunk) for chunk in itertools.chain.from_iterable(map(chunks.finished_by, [(99, 99, 99)])))
    assert calls[tuple] >= 1


def test_memory_does_not_grow_with_the_length_of_the_volume() -> None:
    def peak(length: int) -> int:
        windows = window_grid((length, 240, 240), (96, 96, 96), (0.5, 0.5, 0.5))
        return peak_voxels(chunk_grid(windows, (length, 240, 240)))

    assert peak(100_032) == peak(1056) == peak(528)  # whole numbers of scan steps
    assert all(peak(length) <= 96 * 240 * 240 for length in (100, 512, 1000, 100_000))  # a window, cross-section wide


@pytest.mark.parametrize(
    ("image_size", "overlap", "most"),
    [((512, 512, 256), 0.25, 2.7), ((150, 96, 7000), 0.25, 13.0), ((96, 96, 5000), 0.5, 1.1)],
)
def test_automatic_chunks_keep_a_small_part_of_the_scores_open(
    image_size: tuple[int, ...], overlap: float, most: float
) -> None:
    """At 105 classes, in GiB; all scores are 26, 39 and 18."""
    windows = window_grid(image_size, (96, 96, 96), (overlap,) * 3)
    assert peak_voxels(chunk_grid(windows, image_size)) * 105 * 4 / 2**30 < most


def test_any_overlap_meets_a_limited_number_of_pieces() -> None:
    for overlap in (0, 0.25, 0.5, 0.75, 0.9, 0.98):
        windows = window_grid((400, 400, 400), (96, 96, 96), (overlap,) * 3)
        chunks = chunk_grid(windows, (400, 400, 400))
        assert max(len(list(chunks.pieces((k, k, 0)))) for k in range(windows.shape[0])) <= 9 * 9
        assert peak_voxels(chunks) < 0.3 * 400**3


def test_a_buffer_is_one_chunk_long() -> None:
    windows = window_grid((20, 20, 100), (10, 10, 20), (0, 0, 0.5), buffer_steps=3, buffer_dim=-1)
    assert windows.starts[2] == (0, 10, 20, 30, 40, 50, 60, 70, 80)
    assert chunk_grid(windows, (20, 20, 100)).cuts[2] == (0, 30, 60, 100)


def test_a_window_that_rounding_makes_vanish_is_refused() -> None:
    """MONAI fails inside: 49 * (1 / 49.0) is less than 1."""
    with pytest.raises(ValueError, match=r"maps 49 voxels of spatial dimension 0 to 1, .* window at 0 .* overlap"):
        chunked_sliding_window_inference(torch.rand(1, 1, 98), 49, 1, lambda x: x[..., :1], overlap=0)
