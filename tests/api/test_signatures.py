"""Parameters, classes and attributes are those of MONAI; what is added is keyword-only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer, sliding_window_inference

from monai_chunked import ChunkedSliceInferer, ChunkedSlidingWindowInferer, chunked_sliding_window_inference
from tests.side_by_side import SETTINGS, added

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


def positional(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (ChunkedSlidingWindowInferer.__init__, SlidingWindowInferer.__init__),
        (ChunkedSlidingWindowInferer.__call__, SlidingWindowInferer.__call__),
        (ChunkedSliceInferer.__init__, SliceInferer.__init__),
        (ChunkedSliceInferer.__call__, SliceInferer.__call__),
        (chunked_sliding_window_inference, sliding_window_inference),
    ],
    ids=lambda function: function.__qualname__,
)
def test_every_parameter_of_monai_has_the_same_name_position_and_default(ours: Any, reference: Any) -> None:
    assert positional(ours) == positional(reference)


def test_what_we_add_is_keyword_only_has_a_default_and_is_the_same_for_class_and_function() -> None:
    ours = added(ChunkedSlidingWindowInferer)
    assert ours == added(chunked_sliding_window_inference)
    assert inspect.Parameter.empty not in ours.values()
    assert ours.items() >= {"chunk_size": None, "postprocessing": None, "output": "auto", "output_dir": None}.items()


def test_checks_for_monais_classes_hold() -> None:
    inferer, slices = ChunkedSlidingWindowInferer(8), ChunkedSliceInferer(0, (8, 8))
    assert isinstance(inferer, SlidingWindowInferer)
    assert isinstance(inferer, Inferer)
    for kind in (SliceInferer, SlidingWindowInferer, ChunkedSlidingWindowInferer, Inferer):
        assert isinstance(slices, kind)


def test_the_inferer_has_the_attributes_of_monais() -> None:
    parameters = {**SETTINGS, "cache_roi_weight_map": True, "cpu_thresh": 5, "buffer_steps": 2, "with_coord": True}
    ours, reference = vars(ChunkedSlidingWindowInferer(**parameters)), vars(SlidingWindowInferer(**parameters))
    assert torch.equal(ours.pop("roi_weight_map"), reference.pop("roi_weight_map"))
    assert {key: ours[key] for key in reference} == reference
