"""Windows that are skipped, cut or dropped, and the inverse behind them: labels and scores on the patient's grid."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms import Compose, Flip, Spacing

from monai_chunked import ChunkedSlidingWindowInferer, NumpyOutput
from tests.run.test_skipping_with_borders import Network
from tests.side_by_side import random

CASES = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FORWARD = Compose([Flip(0), Spacing((1.5, 1.0, 0.8), mode="bilinear")])


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    how = draw(st.sampled_from(["mask", "skip", "both"]))
    border = draw(st.sampled_from(["edge", "even", "squeeze", "adaptive", "crop"]))
    return {
        "roi_size": draw(st.lists(st.integers(2, 7), min_size=3, max_size=3)),
        "overlap": draw(st.sampled_from([0, 0.25, 0.5])),
        "border": border,
        "mode": draw(st.sampled_from(["constant", "gaussian", "crop"])),
        "mirror_axes": draw(st.sampled_from([None, (0, 2)])),
        "background": draw(st.sampled_from([0.0, 0.5, [-1.5, 2.0, 0.0]])),
        "sw_batch_size": draw(st.integers(1, 3)),
        "chunk_size": draw(st.none() | st.integers(2, 12)),
        "skip": None if how == "mask" else 0.8,
        "inside": None if how == "skip" else draw(st.lists(st.integers(0, 10), min_size=2, max_size=2).map(sorted)),
    }


def image(number: int = 1) -> MetaTensor:
    """Images on the network's grid, which know how they came there, ``(number, 1, *spatial)``."""
    return list_data_collate([FORWARD(MetaTensor(random(1, 13, 9, 8) * 1.2, affine=torch.eye(4)))] * number)


def inferer_of(case: dict[str, Any], inputs: torch.Tensor, **more: Any) -> ChunkedSlidingWindowInferer:
    given = {name: value for name, value in case.items() if name != "inside"}
    mask = None
    if case["inside"] is not None:
        mask = torch.zeros(inputs.shape[2:])
        mask[slice(*case["inside"])] = 1
    return ChunkedSlidingWindowInferer(**given, mask=mask, **more)


def undone(inputs: MetaTensor, scores: torch.Tensor) -> torch.Tensor:
    """As MONAI does it, whole."""
    one = MetaTensor(scores[0].as_subclass(torch.Tensor)).copy_meta_from(inputs[0])
    one.applied_operations = deepcopy(inputs[0].applied_operations)  # of which MONAI takes away what it undoes
    return FORWARD.inverse(one).as_subclass(torch.Tensor)[None]


@CASES
@given(cases(), st.sampled_from([None, "argmax"]))
def test_the_inverse_of_a_run_that_skips_windows_is_monais_inverse_of_its_scores(case: Any, function: Any) -> None:
    inputs, network = image(), Network(3)
    with torch.no_grad():
        expected = undone(inputs, inferer_of(case, inputs)(inputs, network))
        result = inferer_of(case, inputs, inverse="image", postprocessing=function)(inputs, network)
    result = result.as_subclass(torch.Tensor)
    if function == "argmax":
        assert torch.equal(result.long(), expected.argmax(1, keepdim=True))
    else:
        assert torch.equal(result, expected)


class Boom(Exception):
    pass


class FailsAt(Network):
    """Fails at one call, and counts them."""

    calls = fails_at = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise Boom
        return super().forward(x)


@pytest.mark.parametrize("border", ["edge", "crop", "adaptive"])
def test_a_run_that_stopped_goes_on_where_windows_are_skipped_and_chunks_come_back(border: str, tmp_path: Path) -> None:
    inputs, network = image(2), FailsAt(2)
    case = {"roi_size": 4, "border": border, "inside": [0, 3], "chunk_size": 4, "background": [0.5, 1.0]}
    batches = inferer_of(case, inputs).plan(inputs, 2).batches
    how: dict[str, Any] = {"inverse": "image", "postprocessing": "argmax"}
    expected = inferer_of(case, inputs, **how)(inputs, Network(2))
    how |= {"output": NumpyOutput(tmp_path), "network_id": "one"}
    network.fails_at = batches * 3 // 4  # in the second image, so that chunks are safe
    with pytest.raises(Boom):
        inferer_of(case, inputs, **how)(inputs, network)
    network.calls, network.fails_at = 0, 0
    again = inferer_of(case, inputs, **how)(inputs, network)
    assert torch.equal(torch.as_tensor(again), torch.as_tensor(expected))
    assert 0 < network.calls < batches
