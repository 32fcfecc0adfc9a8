"""Windows are skipped and background stands for them: the bits of MONAI with a network that returns it for them."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer, NumpyOutput, Output, ZarrOutput
from monai_chunked.plan.layout import Volume, lay_out
from monai_chunked.plan.schedule import Limits
from monai_chunked.plan.sizes import per_dimension
from monai_chunked.plan.window_grid import padding, window_grid
from tests.windows.skipping import Boom, Network, flat, heads_of

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
NUMBERS = st.sampled_from([0.0, -0.0, 0.1, -3.0, 0.7])


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 4))
    most = {1: 50, 2: 20, 3: 11, 4: 6}[dims]
    size = draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims))
    channels = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    each = [draw(NUMBERS | st.lists(NUMBERS, min_size=c, max_size=c)) for c in channels]
    boxes = st.lists(st.tuples(st.integers(0, 99), *[st.floats(0, 1)] * dims), max_size=3)
    return {
        "size": size,
        "images": draw(st.integers(1, 2)),
        "channels": channels,
        "background": draw(NUMBERS) if draw(st.booleans()) else each[0] if len(each) == 1 else tuple(each),
        "boxes": draw(boxes),
        "mask_boxes": draw(boxes),
        "how": draw(st.sampled_from(["number", "callable", "mask", "mask of one image", "both"])),
        "inferer": {
            "roi_size": draw(st.lists(st.integers(1, most // 2 + 2), min_size=dims, max_size=dims)),
            "sw_batch_size": draw(st.integers(1, 4)),
            "overlap": draw(st.sampled_from([0.0, 0.25, 0.5, 0.8])),
            "mode": draw(st.sampled_from(["constant", "gaussian"])),
            "cval": draw(st.sampled_from([0.0, 0.5])),
        },
        "chunk_size": draw(st.none() | st.integers(1, most)),
        "limit": draw(st.none() | st.floats(0, 1)),
        "postprocessing": draw(st.sampled_from([None, torch.nn.Identity(), *["argmax"] * (min(channels) > 1)])),
        "output": draw(st.sampled_from(["cpu", "cpu", "npy", "zarr" if dims in (2, 3) else "npy"])),
        "fails_at": draw(st.none() | st.integers(1, 8)),
        "gradients": draw(st.booleans()),
    }


def volume(case: dict[str, Any], boxes: list[tuple[Any, ...]]) -> torch.Tensor:
    """Zeros, with a few boxes of something."""
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(case["images"], 1, *case["size"])
    for image, *where in boxes:
        box = tuple(slice(int(at * n), int(at * n) + 1 + n // 4) for at, n in zip(where, case["size"]))
        part = x[(image % len(x), slice(None), *box)]
        part.copy_(torch.rand(part.shape, generator=generator) - 0.3)
    return x


def skipping(case: dict[str, Any], mask: torch.Tensor) -> dict[str, Any]:
    skip: dict[str, Any] = {
        "number": 0,
        "callable": lambda window: window.amax() <= 0.2,
        "both": lambda window: bool(window.max() <= 0.2),
    }
    given: dict[str, Any] = dict.fromkeys(("mask", "both"), mask)
    given["mask of one image"] = mask[0, 0].numpy().astype(np.uint8)
    return {"skip": skip.get(case["how"]), "mask": given.get(case["how"])}


def reference_of(case: dict[str, Any], x: torch.Tensor, mask: torch.Tensor) -> tuple[Any, int]:
    """MONAI's scores, and the number of windows that were not skipped."""
    roi = case["inferer"]["roi_size"]
    missing = padding(case["size"], roi)
    padded = F.pad(mask.float(), [n for pair in reversed(missing) for n in pair]) != 0
    how, background, seen = case["how"], case["background"], 0
    values = background if isinstance(background, tuple) else [background] * len(case["channels"])
    inside = Network(case["channels"])

    def network(windows: torch.Tensor, coordinates: Any) -> Any:
        nonlocal seen
        outputs = inside(windows)
        for k, (window, where) in enumerate(zip(windows, coordinates)):
            skipped = bool((window <= {"number": 0, "callable": 0.2, "both": 0.2}.get(how, -torch.inf)).all())
            if how in ("mask", "both"):
                skipped = skipped or not padded[tuple(where)].any()
            if how == "mask of one image":
                skipped = skipped or not padded[(slice(0, 1), *where[1:])].any()
            seen += not skipped
            for output, value in zip(flat(outputs), values) if skipped else ():
                output[k] = torch.as_tensor(value, dtype=output.dtype).reshape(-1, *[1] * len(roi))
        return outputs

    scores = SlidingWindowInferer(**case["inferer"], with_coord=True)(x, network)
    return scores, seen


def limit_of(case: dict[str, Any]) -> int | None:
    """Some limit that holds the chunks of one window."""
    if case["limit"] is None:
        return None
    overlap = per_dimension("overlap", case["inferer"]["overlap"], len(case["size"]))
    windows = window_grid(case["size"], case["inferer"]["roi_size"], overlap)
    chunk_size = None if case["chunk_size"] is None else (case["chunk_size"],) * len(case["size"])
    volume = Volume(windows, case["size"], heads_of(case["channels"], windows.roi_size), 4)
    layout = lay_out(volume, Limits(0, 2**40), chunk_size=chunk_size)
    smallest = max(g.window_voxels() * b for g, b in zip(layout.grids, layout.voxel_bytes))
    return int(smallest + case["limit"] * max(0, layout.forecast.peak[1] - smallest))


def voxels(result: Any) -> torch.Tensor:
    """Of any result: a tensor, or stores of single images."""
    if isinstance(result, list):
        return torch.stack([voxels(each) for each in result])
    if isinstance(result, torch.Tensor):
        return result.as_subclass(torch.Tensor)
    return torch.from_numpy(np.asarray(result[...]))


@CASES
@given(case=cases())
def test_same_bits_as_monai_with_a_network_that_returns_the_background(
    case: dict[str, Any], tmp_path_factory: Any
) -> None:
    note(f"{case}")
    x, mask = volume(case, case["boxes"]), volume(case, case["mask_boxes"]) != 0
    limit = limit_of(case)
    output: dict[str, Any] = {"npy": NumpyOutput, "zarr": ZarrOutput}
    to: str | Output = "cpu"
    if case["output"] != "cpu":
        to = output[case["output"]](tmp_path_factory.mktemp("results"))
    inferer = ChunkedSlidingWindowInferer(
        **case["inferer"],
        **skipping(case, mask),
        background=case["background"],
        chunk_size=case["chunk_size"],
        cpu_memory=limit,
        postprocessing=case["postprocessing"],
        output=to,
        network_id="a network",
    )
    network = Network(case["channels"])
    with torch.set_grad_enabled(case["gradients"]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*is returned as an earlier run finished it")
        reference, seen = reference_of(case, x, mask)
        if case["fails_at"] is not None:
            failing = Network(case["channels"], fails_at=case["fails_at"])
            with contextlib.suppress(Boom):
                inferer(x, failing)
        ours = inferer(x, network)
    if case["fails_at"] is None:
        assert network.seen == max(seen, 1)
    assert network.seen <= max(seen, 1)
    zarr_of_images = case["output"] == "zarr" and case["images"] == 1
    for one, other in zip(flat(ours), flat(reference), strict=True):
        found = voxels(one)[None] if zarr_of_images else voxels(one)
        other = other.detach().argmax(1, keepdim=True) if case["postprocessing"] == "argmax" else other.detach()
        assert torch.equal(found.detach(), other)
        if found.is_floating_point():
            assert torch.equal(torch.signbit(found), torch.signbit(other))
