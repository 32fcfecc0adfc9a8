"""What is known of skipped windows beforehand is in the plan, and what is learned on the way takes no more than it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.call.observer import ProgressBar
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.plan.schedule import CPU
from monai_chunked.plan.window_grid import Window
from tests.watching import Watching
from tests.windows.skipping import Network

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CASES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 3))
    most = {1: 60, 2: 22, 3: 12}[dims]
    sizes = st.lists(st.integers(2, most), min_size=dims, max_size=dims)
    boxes = st.lists(st.lists(st.floats(0, 1), min_size=dims, max_size=dims), max_size=3)
    images = draw(st.integers(1, 2))
    channels = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    return {
        "size": draw(sizes),
        "images": images,
        "channels": channels,
        "boxes": [draw(boxes) for _ in range(draw(st.sampled_from([1, images])))],
        "limit": draw(st.none() | st.floats(0, 1)),
        "inferer": {
            "roi_size": draw(st.lists(st.integers(2, most // 2), min_size=dims, max_size=dims)),
            "sw_batch_size": draw(st.integers(1, 3)),
            "overlap": draw(st.sampled_from([0, 0.5, 0.8])),
            "chunk_size": draw(st.none() | sizes),
            "buffer_steps": draw(st.sampled_from([None, None, 2])),
            "background": draw(st.sampled_from([0, 1.5])),
            "postprocessing": draw(st.sampled_from([None, *["argmax"] * (min(channels) > 1)])),
        },
    }


def mask_of(run: dict[str, Any]) -> torch.Tensor:
    mask = torch.zeros(len(run["boxes"]), 1, *run["size"], dtype=torch.uint8)
    for image, boxes in enumerate(run["boxes"]):
        for where in boxes:
            mask[(image, 0, *(slice(int(at * n), int(at * n) + 2) for at, n in zip(where, run["size"])))] = 1
    return mask


def limited(run: dict[str, Any], x: torch.Tensor) -> dict[str, Any]:
    """The parameters of the inferer, with some limit that holds the chunks of one window."""
    if run["limit"] is None:
        return dict(run["inferer"])
    inferer = ChunkedSlidingWindowInferer(**run["inferer"], cpu_memory=2**40)
    peak = inferer.plan(x, run["channels"]).cpu_peak
    for share in (run["limit"], 1):  # all that is open at one time is enough for one window
        parameters = {**run["inferer"], "cpu_memory": int(share * peak)}
        try:
            ChunkedSlidingWindowInferer(**parameters).plan(x, run["channels"])
        except ValueError:
            continue
        return parameters
    raise AssertionError


class Opened(Watching):
    """
    Attributes:
        opened_chunks: those that were open at some time, but for those that opened and finished with one window.
        touched: chunks that a predicted window touches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.opened_chunks: set[Any] = set()
        self.touched: set[Any] = set()

    def window(self, window: Window, predicted: bool, stitcher: Stitcher) -> None:
        super().window(window, predicted, stitcher)
        self.opened_chunks |= set(stitcher.open_chunks._level)
        for head, grid in enumerate(stitcher.grids if predicted else ()):
            self.touched |= {(window.image, head, chunk) for chunk in grid.touched_by(window.position)}


@CASES
@given(run=runs())
def test_with_a_mask_a_run_holds_moves_and_skips_what_its_plan_says(run: dict[str, Any]) -> None:
    x, mask, watching = torch.rand(run["images"], 1, *run["size"]), mask_of(run), Opened()
    parameters = {**limited(run, x), "mask": mask}
    plan = ChunkedSlidingWindowInferer(**parameters).plan(x, run["channels"])
    network = Network(run["channels"])
    ChunkedSlidingWindowInferer(**parameters, progress=watching)(x, network)
    assert np.array_equal(np.array(watching.held), np.tile(plan.curve, (len(watching.held) // len(plan.curve), 1)))
    assert (watching.levels.written, watching.levels.read) == (plan.scratch_written, plan.scratch_read)
    assert (network.calls, network.seen) == (plan.batches, max(1, plan.windows - plan.skipped))
    assert len(watching.predicted) == plan.windows - plan.skipped
    assert f"{plan.skipped:,} of the windows, which have no voxel of the mask" in str(plan) or not plan.skipped
    assert watching.opened_chunks <= watching.touched


@CASES
@given(run=runs())
def test_with_a_callable_a_run_takes_no_more_than_its_plan_and_opens_no_chunk_that_is_skipped(
    run: dict[str, Any],
) -> None:
    x, watching = mask_of(run).float(), Opened()
    parameters = {**limited(run, x), "skip": 0}
    plan = ChunkedSlidingWindowInferer(**parameters).plan(x, run["channels"])
    network = Network(run["channels"])
    ChunkedSlidingWindowInferer(**parameters, progress=watching)(x, network)
    held = np.array(watching.held).reshape(-1, *plan.curve.shape)
    assert (held <= plan.curve).all()
    assert watching.levels.written <= plan.scratch_written
    assert network.seen <= plan.windows
    assert watching.opened_chunks <= watching.touched
    if network.seen > len(watching.predicted):  # all was skipped, and one window shows the heads
        assert held.max() == 0


def test_a_plan_with_a_mask_takes_less() -> None:
    mask = np.zeros((64, 64, 64), bool)
    mask[20:30, 20:30, 20:30] = True
    shape = (1, 1, 64, 64, 64)
    whole = ChunkedSlidingWindowInferer(16, overlap=0.5).plan(shape, 5)
    part = ChunkedSlidingWindowInferer(16, overlap=0.5, mask=mask).plan(shape, 5)
    assert part.windows == whole.windows == part.batches + part.skipped
    assert part.batches == 3**3
    assert part.cpu_peak < whole.cpu_peak / 3
    nothing = ChunkedSlidingWindowInferer(16, overlap=0.5, mask=mask & False).plan(shape, 5)
    assert (nothing.cpu_peak, nothing.batches) == (0, 1)  # one window shows how many channels there are
    assert nothing.curve.shape[1] == 3
    assert nothing.curve[:, CPU].max() == 0


def test_the_progress_bar_says_how_many_windows_the_mask_skips(capsys: Any) -> None:
    mask = torch.zeros(16, 16)
    mask[0, 0] = 1
    ChunkedSlidingWindowInferer(8, overlap=0, mask=mask, progress=ProgressBar())(torch.rand(1, 1, 16, 16), lambda x: x)
    assert "3 skipped" in capsys.readouterr().err
