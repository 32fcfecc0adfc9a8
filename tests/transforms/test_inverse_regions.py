"""Regions by sigmoid and threshold on the patient's grid: for any threshold and any scores those of MONAI."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from monai.data import decollate_batch
from monai.transforms import (
    Activations,
    Activationsd,
    AsDiscrete,
    AsDiscreted,
    CastToTyped,
    Compose,
    Spacingd,
    SpatialPadd,
)

from monai_chunked.resampling.pieces import Piece
from tests.transforms.inverted import KEY, Case, affine_of, assert_same_images, assert_same_voxels, oriented

pytestmark = pytest.mark.usefixtures("one_thread")
ANY = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

BESIDE = [float(torch.sigmoid(torch.tensor(score))) for score in (0.25, 1.0, -2.0)]
"""The sigmoid of scores that networks with few values have."""

THRESHOLDS = [0, 0.0, 0.5, 1, 1.0, -0.5, 1.5, 0.3, 1e-30, 1 - 1e-7, 1 - 1e-4, 0.5 - 1e-7, 0.5 + 1e-7, *BESIDE]
KINDS = ("scores", "saturated", "ties", "few values", "constant", "not finite")


@st.composite
def regions(draw: st.DrawFn) -> Case:
    """Twice the spacing, or nearly, as Spacingd makes it, and sometimes zeros beyond the border."""
    spacing = draw(st.sampled_from([1.0, 1.0, 0.9]))
    padding_mode = draw(st.sampled_from(["border", "border", "zeros"]))
    transforms: list[Any] = [oriented(), Spacingd(KEY, pixdim=(2.0, 2.0, 2.0), padding_mode=padding_mode)]
    if draw(st.booleans()):
        transforms.append(SpatialPadd(KEY, (14, 13, 12)))
    more = draw(st.sampled_from([{}, {"dtype": torch.uint8}]))
    after: list[Any] = [
        Activationsd("pred", sigmoid=True),
        AsDiscreted("pred", threshold=draw(st.sampled_from(THRESHOLDS)), **more),
    ]
    if draw(st.booleans()):
        after.append(CastToTyped("pred", dtype=torch.uint8))
    return Case(
        transforms,
        size=(24, 21, 23),
        affine=affine_of(draw(st.sampled_from(["plain", "flipped", "permuted"])), [spacing] * 3),
        classes=draw(st.sampled_from([1, 3])),
        kind=draw(st.sampled_from(KINDS)),
        after=after,
        roi_size=(9, 8, 10),
        parameters={"chunk_size": draw(st.sampled_from([None, 4, (3, 50, 6)]))},
    )


@settings(max_examples=60, derandomize=True, **ANY)
@given(case=regions())
def test_any_threshold_of_a_sigmoid_gives_the_regions_of_monai(case: Case) -> None:
    note(f"{case.transforms}, {case.kind}, {case.after[1].threshold}, {case.parameters}")
    assert_same_images(case.ours(), case.monai())


def case_of(*after: Any, kind: str = "scores") -> Case:
    resampled = Spacingd(KEY, pixdim=(2.0, 2.0, 2.0))
    return Case(
        [oriented(), resampled],
        (24, 21, 23),
        affine_of("plain", (1.0,) * 3),
        3,
        kind,
        after=[*after],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_array_transforms_behind_the_inverse_give_the_same_regions(threshold: float, kind: str) -> None:
    case = case_of(kind=kind)
    arrays = Compose([Activations(sigmoid=True), Compose([AsDiscrete(threshold=threshold)])])
    ours = decollate_batch(case.ours(postprocessing=arrays, inverse="image"))
    for one, scores in zip(ours, case.monai()):
        assert_same_voxels(one, arrays(scores))


def ending(*between: Any, threshold: float = 0.4, **options: Any) -> list[Any]:
    return [
        Activationsd("pred", **{"sigmoid": True, **options}),
        *between,
        AsDiscreted("pred", argmax="argmax" in options, threshold=threshold),
    ]


ENDINGS: dict[str, tuple[list[Any], bool]] = {
    "sigmoid, threshold": (ending(), True),
    "no threshold": (ending()[:1], False),
    "softmax": (ending(sigmoid=False, softmax=True), False),
    "more than a sigmoid": (ending(other=lambda x: x * 2), False),
    "argmax": (ending(argmax=True), False),
    "threshold 0": (ending(threshold=0.0), False),
    "a cast in between": (ending(CastToTyped("pred", torch.float16)), False),
}
"""What scores go through, and whether all that matters of them is on which side of a number they lie."""


@pytest.mark.parametrize(("after", "near"), ENDINGS.values(), ids=ENDINGS)
def test_scores_are_made_to_the_last_bit_unless_only_the_threshold_asks_for_them(
    after: list[Any], near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    within = Piece.scores_within

    def recorded(self: Piece, *args: Any) -> torch.Tensor:
        asked.append(args[1:])
        return within(self, *args)

    monkeypatch.setattr(Piece, "scores_within", recorded)
    case = case_of(*after)
    assert_same_images(case.ours(), case.monai())
    assert bool(asked) == near
