"""Windows that are skipped, cut, dropped and mirrored in one run, against the same over the whole volume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_chunked import ChunkedSlidingWindowInferer, Mirrored, chunked_sliding_window_inference
from monai_chunked.plan.borders import BORDERS
from tests import reference_windows
from tests.side_by_side import random

CASES = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
BACKGROUND = [-1.5, 2.0, 0.0]


class Network(torch.nn.Module):
    """Sees the first channel. Each voxel by itself, so that batches do not matter, but mirroring does.

    Args:
        classes: how many channels it returns.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :1]
        for d in range(2, x.dim()):
            x = x * torch.linspace(0.5, 1.7, x.shape[d]).to(x).reshape(-1, *[1] * (x.dim() - d - 1))
        return torch.cat([x * (c + 0.3) + 0.1 - c for c in range(self.classes)], 1)


def unseen(how: str, window: torch.Tensor) -> bool:
    """Whether a window ``(C, *size)``, whose second channel is the mask, is skipped."""
    by_mask = how != "skip" and not window[1].any()
    return bool(by_mask or (how != "mask" and window[0].max() <= 0.8))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 3))
    most = {1: 40, 2: 18, 3: 9}[dims]
    roi = draw(st.lists(st.integers(1, most // 2), min_size=dims, max_size=dims))
    classes = draw(st.integers(1, 3))
    return {
        "roi": roi,
        "size": draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims)),
        "overlap": draw(st.sampled_from([0, 0.25, 0.5])),
        "border": draw(st.lists(st.sampled_from(sorted(BORDERS)), min_size=dims, max_size=dims)),
        "least": [draw(st.integers(1, r)) for r in roi],
        "mode": draw(st.sampled_from(["constant", "gaussian", "crop"])),
        "axes": tuple(draw(st.sets(st.integers(0, dims - 1)))),
        "mirror_batch": draw(st.booleans()),
        "fill_batches": draw(st.booleans()),
        "how": draw(st.sampled_from(["skip", "mask", "both"])),
        "inside": sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1)))),
        "images": draw(st.integers(1, 2)),
        "background": draw(st.sampled_from([0.0, 0.5, BACKGROUND])),
        "classes": classes,
        "sw_batch_size": draw(st.integers(1, 3)),
        "chunk_size": draw(st.none() | st.integers(1, most)),
        "postprocessing": draw(st.sampled_from([None, torch.nn.Identity(), *["argmax"] * (classes > 1)])),
    }


@CASES
@given(cases())
def test_bits_are_those_of_blending_whole_volumes_with_background_for_skipped_windows(case: dict[str, Any]) -> None:
    classes, axes, how, dims = case["classes"], case["axes"], case["how"], len(case["size"])
    background = case["background"][:classes] if case["background"] is BACKGROUND else case["background"]
    scores = torch.tensor(background).reshape(-1, *[1] * dims)
    image = random(case["images"], 2, *case["size"])
    image[:, 1] = 0
    image[:, 1, slice(*[round(side * case["size"][0]) for side in case["inside"]])] = 1
    network = Network(classes)
    seen = Mirrored(network, axes)

    def predict(windows: torch.Tensor) -> torch.Tensor:
        each = [scores.expand(classes, *w.shape[1:]) if unseen(how, w) else seen(w[None])[0] for w in windows]
        return torch.stack(each)

    cut = [c if border == "adaptive" else r for border, c, r in zip(case["border"], case["least"], case["roi"])]
    whole, part = reference_windows.padded(image, cut)
    each = zip(case["border"], whole.shape[2:], case["roi"], [case["overlap"]] * dims, cut)
    sides = [BORDERS[border](*one) for border, *one in each]
    expected = reference_windows.blended(whole, predict, sides, case["mode"], case["sw_batch_size"], background)[part]

    adaptive = "adaptive" in case["border"]
    names = ("overlap", "border", "mode", "sw_batch_size", "chunk_size", "postprocessing", "mirror_batch")
    inferer = ChunkedSlidingWindowInferer(
        case["roi"],
        **{name: case[name] for name in names},
        background=background,
        mirror_axes=axes or None,
        fill_batches=case["fill_batches"] and not adaptive,
        min_size=case["least"] if adaptive else None,
        skip=None if how == "mask" else lambda window: window[0].max() <= 0.8,
        mask=None if how == "skip" else image[:, 1:],
    )
    with torch.no_grad():
        result = inferer(image, network)
    if case["postprocessing"] == "argmax":
        assert torch.equal(result.long(), expected.argmax(1, keepdim=True))
    else:
        assert torch.equal(result, expected)


def test_voxels_that_no_window_reaches_beside_windows_that_are_skipped() -> None:
    mask = torch.zeros(1, 1, 9)
    inferer = ChunkedSlidingWindowInferer(4, overlap=0, border="crop", mask=mask, background=0.5, chunk_size=3)
    assert torch.equal(inferer(random(1, 1, 9), Network(3)), torch.full((1, 3, 9), 0.5))
    inferer.mask, inferer.background = mask + 1, [1.0, 2.0]
    assert inferer(random(1, 1, 9), Network(2))[0, :, 8].tolist() == [1, 2]


def test_where_windows_are_cut_a_process_fn_may_not_change_weights_beside_skipped_windows() -> None:
    with pytest.raises(ValueError, match=r"process_fn=.* border='adaptive'"):
        chunked_sliding_window_inference(
            random(1, 1, 9, 9), 4, 1, Network(1), process_fn=lambda *each: each[::2], border="adaptive", skip=0.5
        )
