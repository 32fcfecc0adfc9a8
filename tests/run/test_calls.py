"""One inferer serves many calls, from many threads, and shows its progress."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activations,
)

from monai_chunked import ChunkedSliceInferer, ChunkedSlidingWindowInferer
from tests.side_by_side import (
    SETTINGS,
    STRUCTURES,
    assert_same,
    infer,
    monai,
    random,
    scores,
    volume,
    with_and_without_gradients,
)

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


# ---------------------------------------------------------------- one inferer, many calls


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda i: pickle.loads(pickle.dumps(i))])
@pytest.mark.parametrize(
    "inferer",
    [
        ChunkedSlidingWindowInferer(**SETTINGS, postprocessing="argmax", chunk_size=4),
        ChunkedSlidingWindowInferer(**SETTINGS, postprocessing=Activations(sigmoid=True), cache_roi_weight_map=True),
        ChunkedSliceInferer(1, (5, 4), output="disk"),
    ],
    ids=["argmax", "transform and cache", "slices"],
)
def test_an_inferer_copies_and_pickles(inferer: Any, copied: Callable[[Any], Any]) -> None:
    inferer(volume(), scores)
    other = copied(inferer)
    assert type(other) is type(inferer)
    assert vars(other).keys() == vars(inferer).keys()
    assert_same(other(volume(), scores), inferer(volume(), scores))


def test_one_inferer_serves_calls_of_different_shapes_dtypes_and_networks() -> None:
    ours, reference = ChunkedSlidingWindowInferer(4, overlap=0.5), SlidingWindowInferer(4, overlap=0.5)
    cases: list[tuple[torch.Tensor, Callable[..., Any]]] = [
        (random(1, 1, 9), scores),
        (random(2, 3, 6, 7), STRUCTURES["tuple"]),
        (random(1, 1, 5, 6, 7, dtype=torch.float64), scores),
        (random(3, 1, 9), STRUCTURES["dict"]),
    ]
    for inputs, network in cases * 2:
        assert_same(ours(inputs, network), reference(inputs, network))


CACHED: dict[str, Any] = {**SETTINGS, "mode": "constant", "cache_roi_weight_map": True}


@pytest.mark.parametrize(
    "changed",
    [
        *({"mode": "gaussian"}, {"sigma_scale": 0.3, "mode": "gaussian"}, {"overlap": 0.75}, {"sw_batch_size": 3}),
        *({"roi_size": (6, 5, 7), "roi_weight_map": None}, {"padding_mode": "reflect", "cval": 2.0}, {"device": "cpu"}),
        *({"cpu_thresh": 3}, {"progress": True}, {"roi_weight_map": torch.rand(6, 6, 6) + 0.1, "roi_size": (6, 6, 6)}),
    ],
    ids=lambda changed: ", ".join(changed),
)
def test_parameters_that_are_set_later_count_as_they_do_for_monais_inferer(changed: dict[str, Any]) -> None:
    ours, reference = ChunkedSlidingWindowInferer(**CACHED), SlidingWindowInferer(**CACHED)
    for inferer in (ours, reference):
        vars(inferer).update(changed)
    assert_same(ours(volume(), scores), reference(volume(), scores))


@pytest.mark.parametrize("mode", ["hann", "nnunet", "crop"])
def test_a_mode_of_ours_that_is_set_later_is_not_blended_with_weights_of_the_earlier_one(mode: str) -> None:
    inferer = ChunkedSlidingWindowInferer(**CACHED)
    assert inferer.roi_weight_map is not None
    inferer.mode = mode
    expected = ChunkedSlidingWindowInferer(**{**CACHED, "mode": mode})(volume(), scores)
    assert_same(copy.deepcopy(inferer)(volume(), scores), expected)
    assert not torch.equal(expected, ChunkedSlidingWindowInferer(**CACHED)(volume(), scores))


@with_and_without_gradients
@pytest.mark.parametrize("postprocessing", [None, "argmax"])
def test_calls_from_many_threads_do_not_disturb_each_other(postprocessing: Any) -> None:
    inferer = ChunkedSlidingWindowInferer(4, 2, overlap=0.5, mode="gaussian", postprocessing=postprocessing)
    cases = [
        (random(1 + n % 2, 1, 5 + n % 3, 6, 4 + n % 5, seed=n), n % 4 + (2 if postprocessing else 1)) for n in range(24)
    ]

    def call(case: tuple[torch.Tensor, int]) -> torch.Tensor:
        inputs, classes = case

        def network(windows: torch.Tensor) -> torch.Tensor:
            time.sleep(0.0005)  # others run meanwhile
            return scores(windows, classes)

        return inferer(inputs, network)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(call, cases))
    reference = SlidingWindowInferer(4, 2, overlap=0.5, mode="gaussian")
    for (inputs, classes), result in zip(cases, results):
        expected = reference(inputs, lambda windows, classes=classes: scores(windows, classes))
        if postprocessing:
            expected = expected.argmax(1, keepdim=True).to(torch.uint8)
        assert_same(result, expected)


# ---------------------------------------------------------------- progress


def test_progress_is_a_bar_over_windows_that_shows_finished_chunks_and_the_memory_of_open_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slow(windows: torch.Tensor) -> torch.Tensor:
        time.sleep(0.12)  # the bar is drawn ten times a second
        return scores(windows)

    # 3 windows of 8 voxels in 1 row, chunks of 4 voxels: 4 chunks of 3 channels, at most two open at a time
    result = infer(random(1, 1, 16, 8), slow, roi_size=8, progress=True, chunk_size=(4, 8))
    shown = capsys.readouterr().err
    frames = [frame for frame in shown.split("\r") if "window" in frame]
    assert "0/3" in frames[0]
    assert "3/3" in frames[-1]
    assert "chunks=4/4" in frames[-1]
    assert "open=0 bytes" in frames[-1]
    assert any("open=384 bytes" in frame and "chunks=1/4" in frame for frame in frames), frames
    assert torch.equal(result, monai(random(1, 1, 16, 8), scores, roi_size=8))


def test_without_progress_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    infer(volume(), scores)
    assert capsys.readouterr() == ("", "")
