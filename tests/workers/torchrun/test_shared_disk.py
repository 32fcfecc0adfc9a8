"""A result goes to a folder that all processes see: where one does not, all say so before a window is predicted."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_chunked import NumpyOutput
from tests.killed_run import OUTPUTS, Network, image, inferer
from tests.side_by_side import random
from tests.workers.torchrun.ranks import Raised, Ranks
from tests.workers.torchrun.test_failures import voxels

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    with torch.no_grad():
        return voxels(inferer("cpu")(image(), Network()))


def infer(group: Any, places: list[Path], outputs: list[str], kind: str, seen: Path | None = None) -> np.ndarray:
    """Each works in a folder of its own, and has an output of its own: a path, or the name of one in memory."""
    rank = torch.distributed.get_rank(group)
    output: Any = outputs[rank]
    before = os.getcwd()
    os.chdir(places[rank])
    try:
        if output != "cpu":
            output = OUTPUTS[kind](output)
        return voxels(inferer(output, process_group=group)(image(), Network(seen and seen / str(rank))))
    finally:
        os.chdir(before)


def places(folder: Path) -> list[Path]:
    """A folder for each process."""
    made = [folder / f"of-{rank}" for rank in range(3)]
    for each in made:
        each.mkdir()
    return made


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def check_refused(answers: list[Any], folder: Path, *others: str) -> None:
    """By all alike, with the folder and the host of everybody who does not see it."""
    host = socket.gethostname()
    for answer in answers:
        assert isinstance(answer, Raised), answer
        assert answer.kind == "FileNotFoundError", answer
        assert answer.text == answers[0].text
        assert f"process_group: rank 0 on {host} writes the result to a folder that not all" in answer.text
        assert f"processes see: {'; '.join(others)}; give each of them the same folder" in answer.text
        assert "or an output in memory, such as output='cpu', which is sent to all" in answer.text
        assert answer.text.endswith(f": '{folder}'")


def test_a_relative_path_in_folders_of_their_own(ranks: Ranks, tmp_path: Path, expected: np.ndarray) -> None:
    own, host = places(tmp_path), socket.gethostname()
    seen = tmp_path / "seen"
    seen.mkdir()
    before = everything_in(tmp_path)
    answers = ranks.call(3, infer, own, ["results"] * 3, "npy", seen)
    missing = (f"rank {rank} on {host} would look for it in {own[rank]}/results/first" for rank in (1, 2))
    check_refused(answers, own[0] / "results" / "first", *missing)
    assert everything_in(tmp_path) == before  # no window was predicted, and nothing is left
    for answer in ranks.call(3, infer, [tmp_path] * 3, ["results"] * 3, "npy"):
        assert np.array_equal(answer, expected)
    assert not list(tmp_path.rglob(".monai_chunked*"))


def test_one_with_another_name_for_its_folder(ranks: Ranks, tmp_path: Path) -> None:
    answers = ranks.call(3, infer, [tmp_path] * 3, ["results", "results", "others"], "npy")
    missing = f"rank 2 on {socket.gethostname()} would look for it in {tmp_path}/others/first"
    check_refused(answers, tmp_path / "results" / "first", missing)
    assert not everything_in(tmp_path)


def test_one_with_another_name_for_a_folder_that_nobody_has_made_yet(ranks: Ranks, tmp_path: Path) -> None:
    """It would be made in one that all see."""
    answers = ranks.call(2, of_a_run_that_cannot_be_resumed, tmp_path)
    missing = f"rank 1 on {socket.gethostname()} would look for it in {tmp_path}/results-1/first"
    check_refused(answers, tmp_path / "results-0" / "first", missing)
    assert not everything_in(tmp_path)


def of_a_run_that_cannot_be_resumed(group: Any, folder: Path) -> Any:
    output = NumpyOutput(folder / f"results-{torch.distributed.get_rank(group)}")
    how = {"with_coord": False, "network_id": None, "process_group": group}
    return inferer(output, **how)(image()[:1], described_by_nobody())


def test_one_without_a_folder(ranks: Ranks, tmp_path: Path) -> None:
    answers = ranks.call(2, infer, [tmp_path] * 2, ["results", "cpu"], "npy")
    missing = f"rank 1 on {socket.gethostname()} has output=MemoryOutput, which is in no such folder"
    check_refused(answers, tmp_path / "results" / "first", missing)


@pytest.mark.parametrize("kind", list(OUTPUTS))
def test_the_same_folder_by_other_names_and_seen_late_is_fine(
    ranks: Ranks, tmp_path: Path, kind: str, expected: np.ndarray
) -> None:
    (tmp_path / "results" / "first").mkdir(parents=True)
    link = tmp_path / "mounted"
    mounting = threading.Timer(1, link.symlink_to, [tmp_path / "results"])
    mounting.start()
    for answer in ranks.call(2, infer, [tmp_path] * 2, ["results", str(link)], kind):
        assert not isinstance(answer, Raised), answer
        assert np.array_equal(answer, expected)
    mounting.join()


def test_results_in_memory_need_no_folder(ranks: Ranks, tmp_path: Path, expected: np.ndarray) -> None:
    for answer in ranks.call(3, infer, places(tmp_path), ["cpu"] * 3, "npy"):
        assert np.array_equal(answer, expected)


def described_by_nobody() -> Callable[[torch.Tensor], torch.Tensor]:
    lock = threading.Lock()

    def network(windows: torch.Tensor) -> torch.Tensor:
        with lock:
            return windows.sigmoid()

    return network


@pytest.mark.filterwarnings("ignore:this run cannot be resumed")
def test_a_result_under_the_first_name_that_is_free_comes_to_all(ranks: Ranks, tmp_path: Path) -> None:
    """Of an image without a name, in a run that cannot be resumed."""
    expected = without_a_name(None, "cpu")
    for number in (1, 2):
        for answer in ranks.call(3, without_a_name, NumpyOutput(tmp_path)):
            assert not isinstance(answer, Raised), answer
            assert torch.equal(answer, expected)
        assert len(os.listdir(tmp_path)) == number
        assert np.array_equal(np.load(tmp_path / f"prediction-000{number}.npy"), expected)


def without_a_name(group: Any, output: Any) -> torch.Tensor:
    how = {"with_coord": False, "network_id": None, "process_group": group}
    return inferer(output, **how)(random(1, 1, 16, 15, 14), described_by_nobody()).clone()
