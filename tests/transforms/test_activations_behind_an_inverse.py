"""Softmax and sigmoid of scores on the patient's grid have MONAI's bits, wherever its inverse leaves them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureTyped,
    Flipd,
    Rotate90d,
    SpatialPadd,
    ToDeviced,
)

from monai_chunked import ChunkedSlidingWindowInferer
from tests.side_by_side import random
from tests.transforms.inverted import (
    KEY,
    Case,
    Network,
    affine_of,
    assert_same_images,
    assert_same_voxels,
    cases,
    oriented,
)

ANY = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
KINDS = {"softmax": {"softmax": True}, "sigmoid": {"sigmoid": True}}
DISCRETE = {"softmax": {"argmax": True}, "sigmoid": {"threshold": 0.5}}


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def activated(case: Case, kind: str, discrete: bool = False, between: Any = None, **changes: Any) -> Case:
    """The case with an activation behind the inverse, and nothing before it."""
    after = [] if between is None else [between]
    after += [Activationsd("pred", **KINDS[kind])]
    after += [AsDiscreted("pred", **DISCRETE[kind])] if discrete else []
    return replace(case, before=[], after=after, **changes)


LIKELY = {
    "case": cases(),
    "kind": st.sampled_from(sorted(KINDS)),
    "discrete": st.booleans(),
    "between": st.sampled_from([None, None, EnsureTyped("pred"), ToDeviced("pred", "cpu")]),
    "threads": st.integers(1, 2),
}


@settings(max_examples=15, derandomize=True, **ANY)
@given(**LIKELY)
def test_any_inverse_leaves_scores_where_their_activation_has_monais_bits(
    case: Case, kind: str, discrete: bool, between: Any, threads: int
) -> None:
    assume(case.kind != "not finite")
    case = activated(case, kind, discrete, between)
    note(f"{case.transforms}, {case.size}, {case.classes} classes, {case.roi_size}, {case.nearest}")
    torch.set_num_threads(threads)
    reference = case.monai()
    assert_same_images(case.ours(), reference)


@pytest.mark.long
@settings(max_examples=300, **ANY)
@given(**LIKELY)
def test_many_inverses(case: Case, kind: str, discrete: bool, between: Any, threads: int) -> None:
    test_any_inverse_leaves_scores_where_their_activation_has_monais_bits.hypothesis.inner_test(
        case, kind, discrete, between, threads
    )


GAPS = {
    "cut": [SpatialPadd(KEY, (30, 31, 33))],
    "cut and turned": [Rotate90d(KEY, 1, (0, 2)), SpatialPadd(KEY, (30, 31, 33))],
    "cut and mirrored": [Flipd(KEY, 1), SpatialPadd(KEY, (30, 31, 33))],
    "in another order": [oriented("PIR")],
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("roi_size", [(16, 20, 16), (40, 20, 36)])
@pytest.mark.parametrize("name", GAPS)
def test_scores_that_lie_in_memory_with_gaps_or_in_another_order(
    name: str, roi_size: tuple[int, ...], threads: int
) -> None:
    """Also where windows are larger than the image, so that MONAI cuts its scores out of larger ones."""
    torch.set_num_threads(threads)
    case = Case(GAPS[name], (25, 27, 29), affine_of("plain", (1.0,) * 3), 3, roi_size=roi_size)
    case = activated(case, "sigmoid")
    reference = case.monai()
    assert_same_images(case.ours(), reference)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sigmoid_of_scores_that_monai_cuts_out_of_larger_ones(threads: int) -> None:
    """Where no inverse is, and windows are larger than the image."""
    torch.set_num_threads(threads)
    image = MetaTensor(random(2, 1, 25, 27, 29))
    network = Network("scores", 3)
    chain = Compose([Activationsd("pred", sigmoid=True)])
    how = {"roi_size": (40, 20, 36), "overlap": 0.25}
    scores = SlidingWindowInferer(**how)(image, network)
    ours = ChunkedSlidingWindowInferer(**how, postprocessing=chain)(image, network)
    for one, each in zip(ours, scores, strict=True):
        assert_same_voxels(one, chain({"pred": each})["pred"])
