"""The code of a loop of one's own, beside that of TorchIO and Patchly: the same windows, and the same numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from monai_chunked import ChunkAggregator, WindowSampler
from tests.side_by_side import random

CASES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MODES = {"average": "constant", "hann": "hann"}


def network(windows: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.sigmoid(windows) + windows.mean((1, 2, 3, 4), keepdim=True), 1 - windows], 1)


def ours(image: torch.Tensor, roi: Any, overlap: Any, mode: str, border: str) -> tuple[list[Any], torch.Tensor]:
    """Windows, and the result."""
    sampler = WindowSampler(image[None], roi, overlap, border)
    aggregator = ChunkAggregator(sampler, mode=mode)
    seen = []
    for data, windows in DataLoader(sampler, batch_size=4):
        aggregator.add_batch(network(data), windows)
        seen += windows[:, 1:].tolist()
    return seen, aggregator.finish()[0]


def parts(overlap: Any, roi: Any) -> list[float]:
    """Of an overlap in voxels: a little less, so that the step, which is rounded down, is a whole number of voxels."""
    return [max(o - 0.25, 0) / r for o, r in zip(overlap, roi)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Sizes of image and window, and overlap in voxels, an even number as TorchIO wants it."""
    roi = draw(st.lists(st.integers(2, 6), min_size=3, max_size=3))
    size = [draw(st.integers(r + 1, 12)) for r in roi]
    return size, roi, [draw(st.sampled_from(range(0, r, 2))) for r in roi]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
@CASES
@given(case=cases())
def test_torchio(mode: str, case: Any) -> None:
    torchio = pytest.importorskip("torchio")
    size, roi, overlap = case
    image = random(1, *size)

    subject = torchio.Subject(image=torchio.ScalarImage(tensor=image))
    sampler = torchio.GridSampler(subject, roi, overlap)
    aggregator = torchio.GridAggregator(sampler, overlap_mode=mode)
    seen = []
    for batch in torchio.SubjectsLoader(sampler, batch_size=4):
        locations = batch[torchio.LOCATION]
        aggregator.add_batch(network(batch["image"][torchio.DATA]), locations)
        seen += locations.tolist()
    expected = aggregator.get_output_tensor()

    windows, result = ours(image, roi, parts(overlap, roi), MODES[mode], "edge")
    assert windows == seen
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("border", ["edge", "squeeze", "crop"])
@CASES
@given(case=cases())
def test_patchly(border: str, case: Any) -> None:
    patchly, aggregators = pytest.importorskip("patchly.sampler"), pytest.importorskip("patchly.aggregator")
    size, roi, overlap = case
    image = random(1, *size)
    steps = tuple(r - o for r, o in zip(roi, overlap))

    mode = patchly.SamplingMode[f"SAMPLE_{border.upper()}"]
    sampler = patchly.GridSampler(image.numpy(), tuple(size), tuple(roi), steps, spatial_first=False, mode=mode)
    aggregator = aggregators.Aggregator(sampler, output_size=(2, *size), spatial_first=False)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for voxels, box in sampler:
            aggregator.append(network(torch.from_numpy(voxels)[None])[0].numpy(), box)
            seen.append([*np.asarray(box)[:, 0].tolist(), *np.asarray(box)[:, 1].tolist()])
        expected = torch.from_numpy(np.asarray(aggregator.get_output()))

    windows, result = ours(image, roi, parts(overlap, roi), "constant", border)
    assert windows == list(map(list, dict.fromkeys(map(tuple, seen))))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
