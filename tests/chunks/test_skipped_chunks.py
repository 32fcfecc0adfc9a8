"""Chunks of skipped windows on three levels, also where a device has less room than it said: the same sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_chunked.chunks.background import Background
from monai_chunked.chunks.handing_on import HandingOn
from monai_chunked.chunks.levels import Levels
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.machine.memory import FreedMemory
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Volume, lay_out
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH, Limits
from monai_chunked.plan.window_grid import Skipped, window_grid

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CASES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Scarce(Levels):
    """The CPU plays the device, and refuses memory there at some calls."""

    refuses: tuple[int, ...] = ()
    calls = 0

    def open(self, level: int, size: int) -> Any:
        self.calls += level == DEVICE
        return super().open(CPU if level == DEVICE and self.calls in self.refuses else level, size)


@CASES
@given(
    size=st.lists(st.integers(2, 20), min_size=2, max_size=2),
    roi=st.lists(st.integers(2, 8), min_size=2, max_size=2),
    overlap=st.sampled_from([0, 0.5, 0.75]),
    chunk_size=st.none() | st.integers(1, 6),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    skipped=st.lists(st.booleans(), min_size=1, max_size=12),
    background=st.sampled_from([0.0, 0.3]),
    known=st.booleans(),
    refuses=st.lists(st.integers(1, 30), max_size=12),
)
def test_sums_are_the_same_wherever_chunks_are(
    size: list[int],
    roi: list[int],
    overlap: float,
    chunk_size: int | None,
    shares: tuple[float, float],
    skipped: list[bool],
    background: float,
    known: bool,
    refuses: list[int],
) -> None:
    windows = window_grid(size, roi, (overlap,) * 2)
    every = [window for run in windows.runs(1) for window in run]
    skips = {w.position: skipped[k % len(skipped)] for k, w in enumerate(every)}
    grid = torch.tensor([skips[position] for position in sorted(skips)]).reshape(1, *windows.shape).numpy()
    volume = Volume(windows, tuple(size), Heads.of([(2, *windows.roi_size)]), 4)
    chunk_sizes = None if chunk_size is None else [chunk_size] * 2
    whole = lay_out(volume, Limits(2**40, 2**40), chunk_size=chunk_sizes)
    smallest = max(g.window_voxels() * b for g, b in zip(whole.grids, whole.voxel_bytes))
    limits = Limits(int(2 * shares[0] * smallest) + 1, int((1 + shares[1] / 4) * smallest))
    layout = lay_out(replace(volume, skipped=Skipped(grid) if known else None), limits, chunk_size=chunk_sizes)

    levels = Scarce(layout, torch.device("cpu"), torch.float32, reuse=True, scratch_dir=None)
    levels.refuses = tuple(refuses)
    seen: list[tuple[int, ...]] = []
    open_chunks = OpenChunks(
        layout, range(len(windows)), {}, levels, in_results={}, on_touch=not known, opened=seen.append
    )
    weights = torch.rand(1, *windows.roi_size, generator=torch.Generator().manual_seed(0))
    (chunks,) = layout.grids
    backgrounds = [Background(torch.full((2,), background), chunks, lambda size: weights)]
    stitcher = Stitcher(
        layout=layout,
        images=1,
        open_chunks=open_chunks,
        handing_on=HandingOn(()),
        backgrounds=backgrounds,
        freed=FreedMemory(2**20),
        differentiable=False,
        rounded=False,
    )
    expected, found = torch.zeros(2, *windows.image_size), torch.full((2, *chunks.size), torch.nan)
    generator = torch.Generator().manual_seed(1)
    for window in every:
        prediction = torch.rand(2, *windows.roi_size, generator=generator)
        said = torch.full_like(prediction, background) if skips[window.position] else prediction
        expected[(slice(None), *window.box)] += said * weights
        given_ = None if skips[window.position] else [(prediction, weights)]
        for finished in stitcher.add(window, given_):
            found[(slice(None), *finished.box)] = finished.values
            finished.memory.recycle()
    stitcher.close()
    inside = tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(windows.image_size, size))
    assert torch.equal(found, expected[(slice(None), *inside)])
    assert levels.open_bytes == [0, 0, 0]
    assert not open_chunks._level
    assert not getattr(open_chunks, "_empty", {})
    assert all(each[DEVICE] <= limits[0] and each[CPU] <= limits[1] for each in seen)
    if not refuses:
        assert max(each[SCRATCH] for each in seen) <= layout.forecast.peak[SCRATCH]
