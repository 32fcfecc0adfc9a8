"""Processes that do not all call at the same time: one that is late is waited for, one that is gone is not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.killed_run import Network, image, inferer
from tests.workers.torchrun.ranks import DEADLINE, Raised, Ranks
from tests.workers.torchrun.test_failures import SOON, voxels

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

LATE = 3
"""Seconds, in which the others look several times."""


@pytest.fixture
def mortals() -> Iterator[Ranks]:
    started = Ranks(3)
    yield started
    started.close()


def infer(group: Any) -> np.ndarray:
    return voxels(inferer("cpu", process_group=group)(image(), Network()))


def check_told(answers: list[Any], victim: int, seconds: float) -> None:
    assert seconds < SOON
    for rank, answer in enumerate(answers):
        if rank == victim:
            assert answer == -signal.SIGKILL
        else:
            assert isinstance(answer, Raised), answer
            assert answer.kind == "RuntimeError"
            assert (
                f"rank {victim} of the process group could not go on, so this run has ended: it is gone" in answer.text
            )


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_one_that_dies_before_it_calls_is_not_waited_for(mortals: Ranks, victim: int) -> None:
    start = time.monotonic()
    answers = mortals.call(3, dies, victim)
    check_told(answers, victim, time.monotonic() - start)


def dies(group: Any, victim: int) -> np.ndarray:
    if dist.get_rank(group) == victim:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    return infer(group)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_while_it_waits_for_another_is_not_waited_for(
    mortals: Ranks, victim: int, tmp_path: Path
) -> None:
    mortals.begin(3, waits_for_a_file, tmp_path / "go on")
    time.sleep(LATE)
    start = time.monotonic()
    mortals.processes[victim].kill()
    first = mortals.answers([0, 1])
    (tmp_path / "go on").touch()
    check_told([*first, *mortals.answers([2])], victim, time.monotonic() - start)


def waits_for_a_file(group: Any, file: Path) -> np.ndarray:
    """The last one does."""
    end = time.monotonic() + DEADLINE
    while dist.get_rank(group) == 2 and not file.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return infer(group)


@pytest.mark.parametrize("late", [0, 2])
def test_one_that_is_late_is_waited_for_and_the_group_is_as_good_as_before(ranks: Ranks, late: int) -> None:
    expected = infer(None)
    for result, total, received in ranks.call(3, comes_late, late):
        assert np.array_equal(result, expected)
        assert total == 3
        assert received == [7, 8]
    for answer in ranks.call(3, infer):
        assert np.array_equal(answer, expected)


def comes_late(group: Any, late: int) -> tuple[np.ndarray, float, list[int]]:
    """What else is said in the group arrives as it was meant."""
    rank = dist.get_rank(group)
    if rank == late:
        time.sleep(LATE)
    result = infer(group)
    total, received = torch.ones(1), torch.empty(2, dtype=torch.int64)
    dist.all_reduce(total, group=group)
    others = dist.get_process_group_ranks(group)
    sending = dist.isend(torch.tensor([7, 8]), others[(rank + 1) % 3], group=group)
    dist.recv(received, others[(rank - 1) % 3], group=group)
    sending.wait()
    return result, total.item(), received.tolist()


ALONE = """
import os, sys, time
import torch.distributed as dist
from tests.killed_run import Network, image, inferer
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
if rank == 0:
    time.sleep(1)
    os.kill(os.getpid(), 9)
inferer("cpu", process_group="world")(image(), Network())
"""


def test_the_store_is_gone_with_the_process_that_has_it() -> None:
    """As where processes were started by hand, and the first one serves the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    each = [
        subprocess.Popen([sys.executable, "-c", ALONE, str(rank), f"tcp://127.0.0.1:{port}"], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=DEADLINE)[1].decode() for process in each]
    assert [process.returncode for process in each] == [-signal.SIGKILL, 1]
    assert "RuntimeError: process_group: the store of torch.distributed cannot be reached" in said[1]
