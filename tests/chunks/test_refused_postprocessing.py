"""Postprocessing that does not fit is refused, with what it returned and the chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.refusals import VOLUME, Network, by_class, changing_at


@pytest.mark.parametrize(
    ("postprocessing", "returned"),
    [(lambda c: c[:, 1:], "(2, 3, 4, 4)"), (lambda c: c[0], "(4, 4, 4)"), (lambda c: c.sum(), "()")],
)
def test_postprocessing_that_changes_the_spatial_size_is_refused_with_both_shapes_and_the_chunk(
    postprocessing: Callable[[torch.Tensor], Any], returned: str
) -> None:
    with pytest.raises(ValueError, match="postprocessing must keep the spatial size") as caught:
        by_class(VOLUME, Network(), postprocessing=postprocessing, chunk_size=4)
    for word in ("(2, 4, 4, 4)", returned, "[0:4, 0:4, 0:4]"):
        assert word in str(caught.value)


def test_postprocessing_that_returns_nothing_is_refused_with_the_chunk() -> None:
    with pytest.raises((TypeError, ValueError), match=r"postprocessing.*NoneType") as caught:
        by_class(VOLUME, Network(), postprocessing=lambda chunk: None, chunk_size=4)
    assert "[0:4, 0:4, 0:4]" in str(caught.value)


@pytest.mark.parametrize("output", ["cpu", "disk"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda chunk: chunk[:1], ["(2, torch.float32)", "(1, torch.float32)"]),
        (lambda chunk: chunk.double(), ["(2, torch.float32)", "(2, torch.float64)"]),
    ],
    ids=["channels", "dtype"],
)
def test_postprocessing_that_changes_channels_or_dtype_between_chunks_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor], words: list[str], output: str
) -> None:
    with pytest.raises(ValueError, match="postprocessing must return the same") as caught:
        by_class(VOLUME, Network(), postprocessing=changing_at(3, change), chunk_size=4, output=output)
    assert [word for word in [*words, "[0:4, 0:4, 8:12]"] if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("postprocessing", "words"),
    [
        (("argmax", None), ["2 entries", "1 output"]),
        ({"scores": "argmax"}, ["['scores']", "1 output", "without names"]),
    ],
)
def test_postprocessing_that_does_not_match_the_outputs_is_refused_after_the_first_window(
    postprocessing: Any, words: list[str]
) -> None:
    network = Network()
    with pytest.raises(ValueError, match="postprocessing") as caught:
        by_class(VOLUME, network, postprocessing=postprocessing)
    assert [word for word in words if word not in str(caught.value)] == []
    assert network.calls == 1


def test_postprocessing_for_other_names_than_those_of_the_outputs_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"postprocessing.*\['logits'\].*\['aux', 'scores'\]"):
        by_class(VOLUME, lambda w: {"scores": w, "aux": w}, postprocessing={"logits": "argmax"})
