"""Runs with windows and weights as others have them, against the same written down plainly over the whole volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from monai_chunked import (
    ChunkedSliceInferer,
    ChunkedSlidingWindowInferer,
    NumpyOutput,
    chunked_sliding_window_inference,
)
from monai_chunked.plan.borders import BORDERS
from tests import reference_windows
from tests.side_by_side import random

CASES = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MODES = ["constant", "gaussian", "nnunet", "crop"]


class Network(torch.nn.Module):
    """Depends on all of a window, and on the size of a batch in the last bits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = torch.linspace(-1.3, 1.7, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(x[:, :1]) + x.mean(dim=tuple(range(1, x.dim())), keepdim=True)
        return x * self.weight.reshape(-1, *[1] * (x.dim() - 2))


def sides_of(image_size: Any, roi: Any, overlap: Any, borders: Any, least: Any) -> list[list[tuple[int, int]]]:
    return [reference_windows.windows(*each) for each in zip(borders, image_size, roi, overlap, least)]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 4))
    most = {1: 40, 2: 18, 3: 10, 4: 6}[dims]
    roi = draw(st.lists(st.integers(1, most // 2), min_size=dims, max_size=dims))
    classes = draw(st.integers(1, 3))
    return {
        "roi": roi,
        "size": draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims)),
        "overlap": draw(st.lists(st.sampled_from([0, 0.25, 0.5, 0.7]), min_size=dims, max_size=dims)),
        "border": draw(
            st.sampled_from(sorted(BORDERS)).map(lambda border: [border] * dims)
            | st.lists(st.sampled_from(sorted(BORDERS)), min_size=dims, max_size=dims)
        ),
        "least": [draw(st.integers(1, r)) for r in roi],
        "mode": draw(st.sampled_from(MODES)),
        "images": draw(st.integers(1, 2)),
        "classes": classes,
        "sw_batch_size": draw(st.integers(1, 4)),
        "chunk_size": draw(st.none() | st.lists(st.integers(1, most), min_size=dims, max_size=dims)),
        "postprocessing": draw(st.sampled_from([None, "argmax"])) if classes > 1 else None,
        "cpu_memory": draw(st.none() | st.integers(0, 4000)),
        "each_channel": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "array": draw(st.booleans()),
        "buffer_steps": draw(st.none() | st.integers(1, 2)),
        "buffer_dim": draw(st.integers(0, dims - 1)),
    }


def run(case: dict[str, Any], inputs: Any, network: Any, **more: Any) -> Any:
    adaptive = "adaptive" in case["border"]
    names = ("overlap", "border", "mode", "sw_batch_size", "chunk_size", "postprocessing", "background")
    names += ("buffer_steps", "buffer_dim")
    given = {name: case[name] for name in names if name in case}
    inferer = ChunkedSlidingWindowInferer(
        case["roi"], **given, min_size=case["least"] if adaptive else None, cpu_memory=case.get("cpu_memory"), **more
    )
    with torch.no_grad():
        try:
            return inferer(inputs, network)
        except ValueError as error:
            if "cpu_memory" not in str(error):
                raise
            inferer.cpu_memory = None
            return inferer(inputs, network)


@CASES
@given(cases())
def test_a_run_has_the_bits_of_blending_whole_volumes(case: dict[str, Any]) -> None:
    image, network = random(case["images"], 2, *case["size"], dtype=case["dtype"]), Network(case["classes"])
    case["background"] = [-1.5, 2.0, 7.25][: case["classes"]] if case["each_channel"] else -0.5
    least = [c if border == "adaptive" else r for border, c, r in zip(case["border"], case["least"], case["roi"])]
    whole, part = reference_windows.padded(image, least)
    sides = sides_of(whole.shape[2:], case["roi"], case["overlap"], case["border"], case["least"])
    how = (sides, case["mode"], case["sw_batch_size"], case["background"])
    expected = reference_windows.blended(whole, network, *how)[part]
    case["postprocessing"] = None if case["buffer_steps"] else case["postprocessing"]
    result = run(case, image.numpy() if case["array"] else image, network)
    if case["postprocessing"] == "argmax":
        assert torch.equal(result.long(), expected.argmax(1, keepdim=True))
    elif case["buffer_steps"]:  # adds up in another order
        torch.testing.assert_close(result, expected)
    else:
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


@CASES
@given(cases())
def test_constant_weights_over_patchlys_windows_give_patchlys_answer(case: dict[str, Any]) -> None:
    aggregator, sampler = pytest.importorskip("patchly.aggregator"), pytest.importorskip("patchly.sampler")
    border = case["border"][0]
    if border == "even":
        return
    case |= {"border": [border] * len(case["roi"]), "mode": "constant", "postprocessing": None, "least": None}
    roi = case["roi"]
    size = [max(s, r + 1) for s, r in zip(case["size"], roi)]  # it fails on images that are no larger than a window
    case["overlap"] = [0.5 if overlap == 0.7 else overlap for overlap in case["overlap"]]  # it counts windows in uint8
    steps = [max(int(r * (1 - overlap)), 1) for r, overlap in zip(roi, case["overlap"])]
    image, network = random(1, 1, *size), Network(1)
    mode = sampler.SamplingMode[f"SAMPLE_{border.upper()}"]
    windows = sampler.GridSampler(image[0, 0].numpy(), size, roi, steps, mode=mode)
    blended = aggregator.Aggregator(windows, output_size=tuple(size), spatial_first=True)
    for voxels, box in windows:
        blended.append(network(torch.from_numpy(voxels)[None, None])[0, 0].numpy(), box)
    expected = torch.from_numpy(np.asarray(blended.get_output()))
    torch.testing.assert_close(run(case, image, network)[0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("border", sorted(BORDERS))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("postprocessing", [None, pytest.param("argmax", marks=pytest.mark.long)])
def test_a_run_that_stopped_goes_on_with_these_windows(
    border: str, mode: str, postprocessing: Any, tmp_path: Path
) -> None:
    image = random(2, 2, 13, 14, 11)
    case = {"roi": (6, 4, 5), "least": (2, 1, 3), "overlap": 0.5, "border": [border] * 3, "mode": mode}
    case |= {"sw_batch_size": 3, "postprocessing": postprocessing, "background": 0.25}
    expected = run(case, image, Network(3))

    class Stops(Network):
        """Stops, and says so, after some batches."""

        left = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.left -= 1
            if self.left == 0:
                raise InterruptedError
            return super().forward(x)

    least = case["least"] if border == "adaptive" else None
    batches = (
        ChunkedSlidingWindowInferer(case["roi"], 3, 0.5, border=border, min_size=least).plan(image.shape, 3).batches
    )
    network, calls = Stops(3), 0
    for left in (5, batches * 3 // 4, -1):  # in the second image, so that chunks are safe
        network.left = left
        folder = NumpyOutput(tmp_path)
        if left > 0:
            with pytest.raises(InterruptedError):
                run(case, image, network, output=folder, network_id="stops")
        else:
            result = run(case, image, network, output=folder, network_id="stops")
            calls = -1 - network.left
    assert torch.equal(torch.as_tensor(result), expected)
    assert 0 < calls < batches
    with pytest.raises(FileExistsError, match="border"):
        run({**case, "border": ["edge" if border == "squeeze" else "squeeze"] * 3, "least": None}, image, network,
            output=folder, network_id="stops")  # fmt: skip


@pytest.mark.parametrize("mode", ["hann", *MODES])
@pytest.mark.parametrize("process", [False, True], ids=["", "process_fn"])
def test_weights_are_what_the_roi_weight_map_would_be(mode: str, process: bool) -> None:
    image, network = random(1, 1, 17, 12), Network(2)
    seen = []

    def process_fn(tensors: Any, windows: Any, weights: torch.Tensor) -> Any:
        seen.append(weights)
        return tensors, weights

    how: dict[str, Any] = {"process_fn": process_fn} if process else {}
    with torch.no_grad():
        ours = chunked_sliding_window_inference(image, (6, 5), 2, network, 0.5, mode, **how)
        if mode == "crop":
            assert all((weights == 1).all() for weights in seen)
            return
        weights = reference_windows.hann((6, 5)) if mode == "hann" else reference_windows.MAPS[mode]((6, 5))
        reference = SlidingWindowInferer((6, 5), 2, 0.5)
        reference.roi_weight_map = weights.float()
        torch.testing.assert_close(ours, reference(image, network), rtol=1e-5 if mode == "hann" else 0, atol=0)
    assert bool(seen) == process
    assert all(torch.equal(each, seen[0]) for each in seen)


def test_a_prediction_that_is_not_wanted_is_not_even_multiplied_by_zero() -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        scores = torch.full_like(x, torch.nan)
        scores[:, :, 2:-2] = x[:, :, 2:-2]
        return scores

    image = random(1, 1, 40)
    result = ChunkedSlidingWindowInferer(8, overlap=0.5, mode="crop")(image, network)
    assert torch.equal(result[..., 2:-2], image[..., 2:-2])


def test_outputs_of_another_resolution_are_cropped_and_cut_at_theirs() -> None:
    def network(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x[:, :, ::2, ::2]

    image = random(2, 1, 22, 18)
    for border in sorted(set(BORDERS) - {"even"}):  # whose windows begin at odd voxels here
        for mode in ("crop", "constant"):
            how: dict[str, Any] = {"border": border, "mode": mode, "background": 3.0}
            full, half = ChunkedSlidingWindowInferer(8, 2, 0.5, **how)(image, network)
            size = [20, 16] if border == "crop" else [22, 18]
            part = image[:, :, : size[0], : size[1]]
            torch.testing.assert_close(full[:, :, : size[0], : size[1]], part)
            torch.testing.assert_close(half[:, :, : size[0] // 2, : size[1] // 2], part[:, :, ::2, ::2])
            assert (full[:, :, size[0] :] == 3).all()
            assert (half[..., size[1] // 2 :] == 3).all()


def test_gradients_reach_the_input_whatever_the_border() -> None:
    for border in sorted(BORDERS):
        image = random(1, 1, 21, 9).requires_grad_()
        result = ChunkedSlidingWindowInferer((8, 4), 2, 0.5, border=border, background=2.0)(image, torch.nn.Identity())
        result.sum().backward()
        assert image.grad is not None
        size = 20 if border == "crop" else 21
        torch.testing.assert_close(image.grad[:, :, :size, :8], torch.ones(1, 1, size, 8))
        assert torch.isfinite(image.grad).all()


def test_windows_that_are_cut_come_in_batches_of_one_size_and_small_images_are_not_padded() -> None:
    shapes = []

    def network(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return x

    image = random(1, 1, 5, 9)
    result = ChunkedSlidingWindowInferer((8, 4), 4, 0.5, border="adaptive", min_size=2)(image, network)
    torch.testing.assert_close(result, image)
    # (0:5, 4:5 from 3) x (0:4, 2:6, 4:8, 6:9, 8:9 from 7)
    assert shapes == [(3, 1, 5, 4), (1, 1, 5, 3), (1, 1, 5, 2), (3, 1, 2, 4), (1, 1, 2, 3), (1, 1, 2, 2)]
    plan = ChunkedSlidingWindowInferer((8, 4), 4, 0.5, border="adaptive", min_size=2).plan(image.shape, 1)
    assert plan.batches == len(shapes)
    assert plan.windows == sum(shape[0] for shape in shapes)


def test_slices_take_borders_too() -> None:
    image = random(1, 1, 11, 13, 3)
    network = torch.nn.Conv2d(1, 2, 1)
    for border in ("even", "squeeze", "adaptive", ("squeeze", "even", "edge")):
        inferer = ChunkedSliceInferer(2, (6, 5), 2, 0.5, border=border, mode="crop")
        with torch.no_grad():
            expected = torch.stack([network(part) for part in image.unbind(-1)], -1)
            torch.testing.assert_close(inferer(image, network), expected)
