"""Predictions on the patient's grid, for any preprocessing: bit for bit what MONAI makes of the whole prediction."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.transforms.inverted import Case, assert_same_images, cases

pytestmark = pytest.mark.usefixtures("one_thread")
ANY = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def check(case: Case) -> None:
    note(f"{case.transforms}, {case.parameters}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        if not case.may_be_whole:
            warnings.filterwarnings("error", "the prediction is brought(?!.*nearest voxel)")
        assert_same_images(case.ours(), case.monai())


@settings(max_examples=60, derandomize=True, **ANY)
@given(case=cases())
def test_any_preprocessing_is_undone_as_monai_does_it(case: Case) -> None:
    check(case)


@pytest.mark.long
@settings(max_examples=300, derandomize=True, **ANY)
@given(case=cases())
def test_many_preprocessings_are_undone_as_monai_does_it(case: Case) -> None:
    check(case)
