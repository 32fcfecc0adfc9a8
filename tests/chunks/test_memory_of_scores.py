"""Scores that stay in memory take no more of it than MONAI's, by the bytes of tensors, not by a peak of pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch.profiler import ProfilerActivity, profile

from monai_chunked import ChunkedSlidingWindowInferer

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CASES = {
    "slabs": ((96, 96, 96), (96, 96, 16), 6),
    "slabs across": ((96, 96, 96), (16, 96, 96), 6),
    "rods": ((96, 96, 96), (16, 16, 96), 6),
    "one window as large as the image": ((96, 96, 96), (96, 96, 96), 4),
    "one window larger than the image": ((90, 96, 90), (96, 96, 96), 4),
    "two windows": ((96, 96, 96), (96, 96, 80), 4),
    "cubes": ((96, 96, 96), (40, 40, 40), 6),
}
"""Size of the image, of a window, and the number of classes."""


def most_allocated(run: Callable[[], Any]) -> int:
    """Bytes of tensors that were there at one time, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run()
    del result
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most > 0
    return most


@pytest.mark.parametrize("threads", [1, 16])
@pytest.mark.parametrize("case", list(CASES))
def test_a_run_allocates_no_more_than_monais(case: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    size, roi_size, classes = CASES[case]
    number = torch.arange(float(classes))[:, None, None, None]

    def network(windows: torch.Tensor) -> torch.Tensor:  # it needs nothing but its prediction
        return torch.addcmul(number, windows, number)

    image = torch.rand(1, 1, *size)
    inferers = [kind(roi_size, mode="gaussian") for kind in (SlidingWindowInferer, ChunkedSlidingWindowInferer)]
    for inferer in inferers:
        inferer(image[..., :20, :20, :20], network)  # what is made once
    monai, ours = (most_allocated(lambda inferer=inferer: inferer(image, network)) for inferer in inferers)
    assert ours <= monai
