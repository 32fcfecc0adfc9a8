"""Inputs that are read piece by piece, each part by its process, conditions, and networks that return structures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer
from tests.inputs.lazy_cases import SETTINGS, Recording, network, tensor, volume
from tests.side_by_side import STRUCTURES, assert_same, random
from tests.workers.torchrun.ranks import Raised, Ranks

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

SHAPE = (2, 1, 25, 11, 15)


def conditioned(windows: torch.Tensor, coordinates: Any, condition: torch.Tensor) -> torch.Tensor:
    return network(windows) * condition[:, :1].sigmoid()


class Noting:
    """A network that writes down which rows of which image it has seen."""

    def __init__(self) -> None:
        self.rows = np.zeros((SHAPE[0], SHAPE[2]), bool)

    def __call__(self, windows: torch.Tensor, coordinates: Any, condition: torch.Tensor) -> torch.Tensor:
        for window in coordinates:
            self.rows[window[0].start, window[2]] = True
        return conditioned(windows, coordinates, condition)


def condition_of(array: np.ndarray) -> np.ndarray:
    return array[::-1].copy()


def infer(group: Any, how: dict[str, Any]) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """The result, how often each voxel of input and condition was read, and the rows that the network has seen."""
    inputs, condition, noting = Recording(volume(*SHAPE)), Recording(condition_of(volume(*SHAPE))), Noting()
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, with_coord=True, process_group=group, **how)
    return inferer(inputs, noting, condition=condition), inputs.reads, condition.reads, noting.rows


def nothing(window: torch.Tensor) -> bool:
    return False


WAYS = {"handed on": {"sw_batch_size": 2}, "independent": {"cpu_memory": "1GiB"}, "skipping": {"skip": nothing}}


@pytest.mark.parametrize("how", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_each_process_reads_the_part_that_it_predicts(ranks: Ranks, workers: int, how: dict[str, Any]) -> None:
    array = volume(*SHAPE)
    theirs = SlidingWindowInferer(**SETTINGS, with_coord=True, sw_batch_size=how.get("sw_batch_size", 1))
    reference = theirs(tensor(array), conditioned, condition=tensor(condition_of(array)))
    answers = ranks.call(workers, infer, how)
    total = 0
    for answer in answers:
        assert not isinstance(answer, Raised), answer
        result, reads, of_condition, rows = answer
        assert torch.equal(result, reference)
        assert reads.max() == of_condition.max() == 1
        assert (reads.any((1, 3, 4)) == rows).all()
        assert (of_condition.any((1, 3, 4)) == rows).all()
        assert 0 < reads.sum() < reads.size * (0.75 if workers == 2 else 0.6)
        total = total + reads
    assert total.all()


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_with_skip_and_batches_each_process_looks_as_far_as_its_part_goes(ranks: Ranks, workers: int) -> None:
    """Which windows are in a batch depends on all that were looked at before; who predicts them does not."""
    how = {"sw_batch_size": 2}
    (reference, *_), *_ = ranks.call(1, infer, how)
    as_without = [rows for *_, rows in ranks.call(workers, infer, {**how, "cpu_memory": "1GiB"})]
    answers = ranks.call(workers, infer, {**how, "skip": nothing})
    for rank, (answer, others) in enumerate(zip(answers, as_without)):
        assert not isinstance(answer, Raised), answer
        result, reads, _, rows = answer
        assert torch.equal(result, reference)
        assert reads.max() == 1
        assert (rows == others).all()
        last = np.flatnonzero(rows)[-1]
        assert (reads.any((1, 3, 4)).ravel() == (np.arange(rows.size) <= last)).all(), rank


def structure(group: Any, name: str) -> Any:
    inferer = ChunkedSlidingWindowInferer((6, 6, 6), 2, 0.5, "gaussian", process_group=group)
    return inferer(random(1, 1, 12, 10, 8), STRUCTURES[name])


@pytest.mark.parametrize("workers", [2, 3])
def test_all_structures_that_a_network_may_return_come_back(ranks: Ranks, workers: int) -> None:
    for name in STRUCTURES:
        for answer in ranks.call(workers, structure, name):
            assert not isinstance(answer, Raised), (name, answer)
            assert_same(answer, structure(None, name))
