"""Predictions on the patient's grid by several processes: the bits of one process, and of MONAI's own inverse."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.transforms.inverted import Case, assert_same_images, cases
from tests.workers.torchrun.ranks import Raised, Ranks

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CASES = settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(CASES, max_examples=45)
WORKERS = st.sampled_from([2, 3, 5])


def infer(group: Any, case: Case, **parameters: Any) -> Any:
    """What each process does with the image that it has preprocessed itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        return case.ours(process_group=group, **parameters)


def check(ranks: Ranks, case: Case, workers: int) -> None:
    note(f"{case.transforms}, {case.parameters}, {workers} processes")
    reference, expected = case.monai(), infer(None, case)
    assert_same_images(expected, reference)
    for answer in ranks.call(workers, infer, case):
        if case.may_be_whole and isinstance(answer, Raised) and "only be brought" in answer.text:
            continue
        assert not isinstance(answer, Raised), answer
        assert_same_images(answer, reference)


@CASES
@given(cases(), WORKERS)
def test_any_preprocessing_is_undone_by_several_processes(ranks: Ranks, case: Case, workers: int) -> None:
    check(ranks, case, workers)


@pytest.mark.long
@MANY
@given(cases(), WORKERS)
def test_many_preprocessings_are_undone_by_several_processes(ranks: Ranks, case: Case, workers: int) -> None:
    check(ranks, case, workers)
