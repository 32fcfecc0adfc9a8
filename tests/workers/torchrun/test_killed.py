"""Processes that are killed at random moments: the others end, say who is gone, and any number of others go on."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.killed_run import OUTPUTS, Network, image, inferer
from tests.workers.torchrun.ranks import DEADLINE, Raised, Ranks
from tests.workers.torchrun.test_failures import SOON, voxels

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread", "no_gradients")]

RUN_SECONDS = 0.5
"""About as long a run takes from the moment when its processes are connected."""


class Announcing(Network):
    """Leaves a file when its weights are asked for, which is what a run begins with."""

    def __init__(self, begun: Path | None) -> None:
        super().__init__(None, 0.01)
        self.begun = begun

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if self.begun is not None:
            self.begun.touch()
        return super().state_dict(*args, **kwargs)


def infer(group: Any, folder: Path, kind: str, announce: bool = False) -> np.ndarray:
    begun = folder / f"begun-{torch.distributed.get_rank(group)}" if announce else None
    return voxels(inferer(OUTPUTS[kind](folder), process_group=group)(image(), Announcing(begun)))


@pytest.fixture(scope="module")
def mortals() -> Iterator[Callable[[], Ranks]]:
    """Processes of which at least four live; each is killed once, so that others need not be started for every test."""
    started: list[Ranks] = []

    def enough() -> Ranks:
        if started and len(started[0].alive()) < 4:
            started.pop().close()
        if not started:
            started.append(Ranks(9))
        return started[0]

    yield enough
    for each in started:
        each.close()


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    with torch.no_grad():
        return voxels(inferer("cpu")(image(), Network()))


@pytest.mark.parametrize("seed", range(30))
def test_killed_at_a_random_moment(
    mortals: Callable[[], Ranks], ranks: Ranks, expected: np.ndarray, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    some, kind = mortals(), draw.choice(["npy", "nii", "nii.gz", "zarr"])
    members = sorted(draw.sample(some.alive(), draw.randint(2, 4)))
    victim = draw.randrange(len(members))
    some.begin(members, infer, tmp_path, kind, True)
    end = time.monotonic() + DEADLINE
    while not (tmp_path / f"begun-{victim}").exists():
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(draw.uniform(0, RUN_SECONDS))
    start = time.monotonic()
    some.processes[members[victim]].kill()
    answers = some.answers(members)
    assert time.monotonic() - start < SOON
    assert some.processes[members[victim]].exitcode == -signal.SIGKILL
    for rank, answer in enumerate(answers):
        if isinstance(answer, Raised):
            assert (
                f"rank {victim} of the process group could not go on, so this run has ended: it is gone" in answer.text
            )
        elif rank != victim or not isinstance(answer, int):  # it may have been too late
            assert np.array_equal(answer, expected)
    for answer in ranks.call(draw.choice([1, 2, 3, 5]), infer, tmp_path, kind):
        assert not isinstance(answer, Raised), answer
        assert np.array_equal(answer, expected)
