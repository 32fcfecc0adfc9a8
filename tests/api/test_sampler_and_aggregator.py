"""Windows before a network of any kind, and chunks behind it: the bits of the inferer, and clear errors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from monai_chunked import (
    ChunkAggregator,
    ChunkedSlidingWindowInferer,
    NumpyOutput,
    WindowSampler,
    open_image,
)
from monai_chunked.plan.borders import BORDERS
from tests.side_by_side import random

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
NETWORK = torch.nn.Conv3d(1, 2, 3, padding=1).requires_grad_(False)


def scores(windows: torch.Tensor) -> torch.Tensor:
    """Of whatever dimensions."""
    return torch.cat([torch.sigmoid(windows) + windows.mean(), 1 - windows], 1)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 3))
    most = {1: 40, 2: 16, 3: 9}[dims]
    border = draw(st.lists(st.sampled_from(sorted(BORDERS)), min_size=dims, max_size=dims))
    return {
        "size": draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims)),
        "images": draw(st.integers(1, 2)),
        "batch_size": draw(st.integers(2, 4)),
        "array": draw(st.booleans()),
        "inside": draw(st.none() | st.floats(0, 1)),
        "sampler": {
            "roi_size": draw(st.lists(st.integers(1, most // 2 + 2), min_size=dims, max_size=dims)),
            "overlap": draw(st.sampled_from([0, 0.25, 0.5])),
            "border": border,
            "padding_mode": draw(st.sampled_from(["constant", "replicate"])),
            "buffer_steps": draw(st.none() | st.integers(1, 2)),
            "buffer_dim": draw(st.integers(0, dims - 1)),
        },
        "aggregator": {
            "mode": draw(st.sampled_from(["constant", "gaussian", "hann", "crop"])),
            "chunk_size": draw(st.none() | st.integers(1, most)),
            "postprocessing": draw(st.sampled_from([None, "argmax", torch.nn.Identity()])),
            "background": draw(st.sampled_from([0, 0.5, [1.0, -2.0]])),
        },
    }


@CASES
@given(cases())
def test_a_loop_of_ones_own_has_the_bits_of_the_inferer(case: dict[str, Any]) -> None:
    image = random(case["images"], 1, *case["size"])
    mask = None
    if case["inside"] is not None:
        mask = torch.zeros(case["size"])
        mask[round(case["inside"] * (case["size"][0] - 1))] = 1
    inferer = ChunkedSlidingWindowInferer(
        **case["sampler"], **case["aggregator"], mask=mask, sw_batch_size=case["batch_size"]
    )
    with torch.no_grad():
        expected = inferer(image, scores)
    assume(mask is None or inferer.plan(image, 2).skipped < inferer.plan(image, 2).windows)
    sampler = WindowSampler(image.numpy() if case["array"] else image, **case["sampler"], mask=mask)
    aggregator = ChunkAggregator(sampler, **case["aggregator"])
    for data, windows in DataLoader(sampler, batch_sampler=sampler.batches(case["batch_size"])):
        aggregator.add_batch(scores(data), windows)
    assert torch.equal(aggregator.finish(), expected)


def test_windows_of_a_file_are_read_by_other_processes(tmp_path: Path) -> None:
    image = random(1, 1, 20, 17, 15)
    nibabel.save(nibabel.Nifti1Image(image[0, 0].numpy(), np.eye(4)), tmp_path / "image.nii")
    with torch.no_grad():
        expected = ChunkedSlidingWindowInferer(8, 3, 0.5, mode="gaussian", postprocessing="argmax")(image, NETWORK)
    sampler = WindowSampler(open_image(tmp_path / "image.nii"), 8, 0.5)
    first = sampler[0][0]
    assert torch.equal(pickle.loads(pickle.dumps(sampler))[0][0], first)  # as processes that are not forked get it
    with ChunkAggregator(sampler, "gaussian", "argmax") as aggregator:
        for data, windows in DataLoader(sampler, batch_size=3, num_workers=2):
            aggregator.add_batch(NETWORK(data), windows)
        assert torch.equal(torch.as_tensor(aggregator.finish()), expected)


def test_windows_may_be_read_in_any_order() -> None:
    image = random(2, 1, 12, 11)
    sampler = WindowSampler(np.asarray(image), 5, 0.5)
    assert len(sampler) == len(list(sampler))
    for number in torch.randperm(len(sampler)).tolist():
        data, window = sampler[number]
        index, *box = window.tolist()
        assert torch.equal(data, image[index, :, box[0] : box[2], box[1] : box[3]])
    assert torch.equal(sampler[-1][0], sampler[len(sampler) - 1][0])
    with pytest.raises(IndexError, match=f"there are {len(sampler)} windows"):
        sampler[len(sampler)]


def test_a_network_of_numpy_with_several_heads_and_an_output_on_disk(tmp_path: Path) -> None:
    image = random(1, 1, 12, 11)

    def network(windows: np.ndarray) -> dict[str, np.ndarray]:
        return {"twice": 2 * windows, "both": np.concatenate([windows, -windows], 1)}

    def as_torch(windows: torch.Tensor) -> Any:
        return {key: torch.from_numpy(value) for key, value in network(windows.numpy()).items()}

    expected = ChunkedSlidingWindowInferer(5, 2, 0.5)(image, as_torch)
    sampler = WindowSampler(image, 5, 0.5)
    aggregator = ChunkAggregator(sampler, output=NumpyOutput(tmp_path))
    for data, windows in DataLoader(sampler, batch_size=2):
        aggregator.add_batch(network(data.numpy()), windows.numpy())
    result = aggregator.finish()
    assert result.keys() == expected.keys()
    assert all(torch.equal(torch.as_tensor(result[key]), expected[key]) for key in expected)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def sampled() -> tuple[WindowSampler, list[tuple[torch.Tensor, torch.Tensor]]]:
    sampler = WindowSampler(random(1, 1, 8, 12), 4, 0)
    return sampler, list(DataLoader(sampler, batch_size=2))


def test_windows_that_come_twice_too_early_or_not_at_all_are_refused() -> None:
    order = r"; windows must come in scan order, each of them once \(no shuffle\), and the next one is window image 0 "
    for numbers, message in (
        ([0, 0], r"window image 0 \[0:4, 0:4\] came already" + order + r"\[0:4, 8:12\]"),
        ([1], r"window image 0 \[0:4, 8:12\] came too early" + order + r"\[0:4, 0:4\]"),
        ([0, 2], r"window image 0 \[4:8, 4:8\] came too early" + order + r"\[0:4, 8:12\]"),
    ):
        sampler, batches = sampled()
        aggregator = ChunkAggregator(sampler)
        for number in numbers[:-1]:
            aggregator.add_batch(*batches[number])
        with pytest.raises(ValueError, match=message):
            aggregator.add_batch(*batches[numbers[-1]])
        with pytest.raises(RuntimeError, match="is closed, because ValueError was raised; make another one"):
            aggregator.finish()
    sampler, batches = sampled()
    aggregator = ChunkAggregator(sampler)
    aggregator.add_batch(*batches[0])
    with pytest.raises(ValueError, match=r"only 2 of 6 windows were added; the next one is window image 0 \[0:4, 8:12"):
        aggregator.finish()


@pytest.mark.parametrize(
    ("predictions", "windows", "message"),
    [
        (torch.zeros(1, 1, 4, 4), torch.tensor([[0, 0, 0, 4, 5]]), r"window image 0 \[0:4, 0:5\] is none of the"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), r"integers of shape \(windows, 5\), .* got torch.float32 of"),
        (torch.zeros(1, 1, 4, 4), [0, 1], r"integers of shape \(windows, 5\), .* got torch.int64 of shape \(1, 2\)"),
        (
            torch.zeros(3, 1, 4, 4),
            [0, 0, 0, 4, 4],
            r"must return shape \(1, C, \*\*\) .* got \(3, 1, 4, 4\) for window",
        ),
        (["no"], [0, 0, 0, 4, 4], "must return tensors, got str for window"),
    ],
)
def test_what_does_not_fit_is_refused(predictions: Any, windows: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ChunkAggregator(sampled()[0]).add_batch(predictions, windows)


def test_parameters_of_somebody_else_are_refused() -> None:
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(
        TypeError, match=r"WindowSampler has no parameter 'mode'; beside roi_size, .* it takes min_size"
    ):
        WindowSampler(image, 4, mode="gaussian")
    for name in ("overlap", "min_size"):
        with pytest.raises(TypeError, match=f"no parameter '{name}'; it is a parameter of the WindowSampler"):
            ChunkAggregator(WindowSampler(image, 4), **{name: 0.5})
    with pytest.raises(
        TypeError, match="ChunkAggregator has no parameter 'sw_batch_size'; it takes background, chunk_size"
    ):
        ChunkAggregator(WindowSampler(image, 4), sw_batch_size=2)
    with pytest.raises(ValueError, match="mask is zero in every window"):
        WindowSampler(image, 4, mask=torch.zeros(8, 8))
    with pytest.raises(ValueError, match="roi_size="):
        WindowSampler(image, (4, 4, 4))


def test_the_mask_is_read_once() -> None:
    class Counting:
        shape, dtype = (8, 8), np.dtype(bool)
        voxels = 0

        def __getitem__(self, box: Any) -> np.ndarray:
            values = np.eye(8, dtype=bool)[box]
            self.voxels += values.size
            return values

    mask = Counting()
    sampler = WindowSampler(torch.zeros(1, 1, 8, 8), 4, overlap=0, mask=mask)
    aggregator = ChunkAggregator(sampler)
    for data, windows in DataLoader(sampler):
        aggregator.add_batch(data, windows)
    aggregator.finish()
    assert (mask.voxels, len(sampler)) == (64, 2)


def test_a_loop_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    sampler, batches = sampled()
    aggregator = ChunkAggregator(sampler, output=NumpyOutput(tmp_path / "new"))

    def loop() -> None:
        with aggregator:
            aggregator.add_batch(*batches[0])
            assert (tmp_path / "new").exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match=r"closed, because its block was left before finish\(\)"):
        aggregator.add_batch(*batches[1])
