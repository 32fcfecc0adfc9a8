"""A process that fails or is killed: the others say which and why within seconds, and what is on disk goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.killed_run import OUTPUTS, Boom, Network, image, inferer
from tests.workers.torchrun.ranks import DEADLINE, Raised, Ranks

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

SOON = 150
"""Seconds, on a machine that does much else; gloo itself would wait for half an hour."""
"""Seconds, on a machine that does many other things; alone it takes less than one."""


def infer(
    group: Any, folder: str, kind: str, pause: float = 0, at: dict[int, int] | None = None, kills: bool = False
) -> Any:
    """One process, which may fail or be killed at a batch that it predicts."""
    rank = torch.distributed.get_rank(group) if group is not None else 0

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    network = Network(None, pause, (at or {}).get(rank), kill if kills else None)
    output: Any = kind if kind in ("cpu", "auto") else OUTPUTS[kind](folder)
    result = inferer(output, process_group=group)(image(), network)
    return voxels(result)


def voxels(result: Any) -> np.ndarray:
    """Of a tensor, an array, or a list with one for each image."""
    images = result if isinstance(result, list) else list(result)
    return np.stack([np.asarray(each[:]).reshape(3, *image().shape[2:]) for each in images])


@pytest.mark.parametrize("kind", ["npy", "nii", "nii.gz", "zarr"])
def test_results_on_disk_are_written_once_and_opened_by_all(ranks: Ranks, tmp_path: Path, kind: str) -> None:
    expected = infer(None, "", "cpu")
    for answer in ranks.call(3, infer, str(tmp_path), kind):
        assert not isinstance(answer, Raised), answer
        assert np.array_equal(answer, expected)
    for answer in ranks.call(2, infer, str(tmp_path), kind):  # finished already
        assert not isinstance(answer, Raised), answer
        assert np.array_equal(answer, expected)


@pytest.mark.parametrize("kind", ["cpu", "npy"])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_when_one_fails_the_others_say_which_and_why_and_others_go_on(
    ranks: Ranks, tmp_path: Path, kind: str, failing: int
) -> None:
    start = time.monotonic()
    answers = ranks.call(3, infer, str(tmp_path), kind, 0.02, {failing: 6})
    assert time.monotonic() - start < SOON
    for rank, answer in enumerate(answers):
        assert isinstance(answer, Raised), answer
        if rank == failing:
            assert answer.kind == Boom.__name__
        else:
            assert answer.kind == "RuntimeError"
            assert f"rank {failing} of the process group could not go on, so this run has ended: Boom" in answer.text
    expected = infer(None, "", "cpu")
    for answer in ranks.call(2, infer, str(tmp_path), kind):
        assert not isinstance(answer, Raised), answer
        assert np.array_equal(answer, expected)


def killed(ranks: Ranks, folder: Path, kind: str, victim: int, at: int, workers: int) -> None:
    start = time.monotonic()
    answers = ranks.call(workers, infer, str(folder), kind, 0.01, {victim: at}, True)
    assert time.monotonic() - start < SOON
    for rank, answer in enumerate(answers):
        if rank == victim:
            assert answer == -signal.SIGKILL
        else:
            assert isinstance(answer, Raised), answer
            assert (
                f"rank {victim} of the process group could not go on, so this run has ended: it is gone" in answer.text
            )


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_end_and_fewer_go_on(ranks: Ranks, tmp_path: Path, victim: int) -> None:
    some = Ranks(3)
    try:
        killed(some, tmp_path, "npy", victim, 8, 3)
    finally:
        some.close()
    for answer in ranks.call(2, infer, str(tmp_path), "npy"):
        assert not isinstance(answer, Raised), answer
        assert np.array_equal(answer, infer(None, "", "cpu"))


def called_otherwise(group: Any, name: str) -> Any:
    """Rank 1 is called with something else than the others."""
    other = torch.distributed.get_rank(group) == 1
    how: dict[str, Any] = {"output": "cpu", "process_group": group}
    network, data = Network(), image()
    if name == "weights" and other:
        network.weight.data += 1
    elif name == "input" and other:
        data = data + 1
    elif other:
        how[name] = {"background": 0.5, "postprocessing": "argmax", "roi_size": 0}[name]
    return inferer(how.pop("output"), **how)(data, network)


@pytest.mark.parametrize(
    ("name", "said"),
    [("weights", "network weights"), ("input", "input"), ("postprocessing", "postprocessing")],
)
def test_processes_that_are_called_with_different_things_are_told_what_differs(
    ranks: Ranks, name: str, said: str
) -> None:
    for answer in ranks.call(3, called_otherwise, name):
        assert isinstance(answer, Raised), answer
        assert answer.kind == "ValueError"
        assert answer.text.startswith("process_group: every process must be called with the same, but rank 1 differs")
        assert said in answer.text
        assert "rank 2" not in answer.text


def test_a_setting_that_one_process_refuses_ends_all(ranks: Ranks) -> None:
    first, second = ranks.call(2, refused)
    assert first.kind == "RuntimeError"
    assert "rank 1 of the process group could not go on, so this run has ended: ValueError: overlap=2" in first.text
    assert second.kind == "ValueError"


def refused(group: Any) -> Any:
    overlap = 2 if torch.distributed.get_rank(group) == 1 else 0.5
    how = inferer("cpu", process_group=group)
    how.overlap = overlap
    return how(image(), Network())


def test_without_processes_it_says_how_to_start_them() -> None:
    with pytest.raises(RuntimeError, match=r"start the program with torchrun .*init_process_group\('gloo'\)"):
        inferer("cpu", process_group="world")(image(), Network())
    with pytest.raises(ValueError, match="process_group='all' must be 'world', a ProcessGroup"):
        inferer("cpu", process_group="all")(image(), Network())


def test_threads_of_connections_are_gone_after_a_run(ranks: Ranks) -> None:
    before = max(ranks.call(2, tasks, 0, 1))
    for _ in range(3):
        ranks.call(2, infer, "", "cpu")
    assert max(ranks.call(2, tasks, before, DEADLINE)) <= before


def tasks(group: Any, expected: int, seconds: float) -> int:
    """The fewest threads that there are behind a run, within some time: those of its connections end by themselves."""
    infer(group, "", "cpu")
    end, fewest = time.monotonic() + seconds, sys.maxsize
    while fewest > expected and time.monotonic() < end:
        fewest = min(fewest, len(os.listdir("/proc/self/task")))
        time.sleep(0.01)
    return fewest
