"""What a run has left on disk is gone on with by more processes or fewer: only what is missing is predicted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.killed_run import OUTPUTS, Boom, Network, image, inferer
from tests.outputs.recorded import records, windows_that_touch_what_is_not_recorded
from tests.workers.torchrun.ranks import DEADLINE, Raised, Ranks

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


class TwoHeads(Network):
    """A dictionary, whose keys do not come in the order of the alphabet."""

    def forward(self, windows: torch.Tensor, coordinates: Any) -> Any:
        scores = super().forward(windows, coordinates)
        return {"scores": scores, "energy": scores.square()}


NETWORKS = {"tensor": Network, "dict": TwoHeads}


def infer(
    group: Any, folder: Path, kind: str, network: str, seen: Path | None = None, failing: int | None = None
) -> dict[str, np.ndarray]:
    """Each writes down the windows that its network sees. One may fail in its part, when the others are through."""
    rank, size = (torch.distributed.get_rank(group), torch.distributed.get_world_size(group)) if group else (0, 1)

    def fail() -> None:
        end = time.monotonic() + DEADLINE / 2
        while seen and len(seen_in(seen)) < 96 * (size - 1) // size and time.monotonic() < end:
            time.sleep(0.01)
        while not any("chunk" in record for record in records(folder)) and time.monotonic() < end:
            time.sleep(0.01)  # what they have finished is on its way
        raise Boom

    at = 48 // size - 1 if rank == failing else None
    made = NETWORKS[network](None if seen is None else seen / f"{rank}", 0.005, at, fail)
    output: Any = OUTPUTS[kind](folder) if kind in OUTPUTS else kind
    # which windows a network has seen does not matter
    result = inferer(output, process_group=group, run_id="one")(image(), made)
    return {key: _voxels(each) for key, each in (result if network == "dict" else {"only": result}).items()}


def _voxels(result: Any) -> np.ndarray:
    images = result if isinstance(result, list) else list(result)
    return np.stack([np.asarray(each[:]).reshape(3, *image().shape[2:]) for each in images])


def seen_in(folder: Path) -> list[list[int]]:
    return [json.loads(line) for file in folder.iterdir() for line in file.read_text().splitlines()]


CASES = [
    ("npy", "tensor", 2, 3),
    ("npy", "dict", 2, 5),
    ("nii.gz", "tensor", 2, 5),
    ("zarr", "tensor", 3, 2),
    ("npy", "tensor", 5, 2),
    ("npy", "tensor", 3, 1),
    ("nii", "dict", 1, 3),
]


@pytest.mark.parametrize(("kind", "network", "before", "after"), CASES, ids=lambda each: str(each))
def test_a_run_goes_on_with_more_processes_or_fewer(
    ranks: Ranks, tmp_path: Path, kind: str, network: str, before: int, after: int
) -> None:
    results, seen, first = tmp_path / "results", tmp_path / "seen", tmp_path / "first"
    seen.mkdir()
    first.mkdir()
    for answer in ranks.call(before, infer, results, kind, network, first, before - 1):
        assert isinstance(answer, Raised), answer
        assert "Boom" in answer.kind + answer.text, answer
    assert any("chunk" in record for record in records(results))
    needed = windows_that_touch_what_is_not_recorded(results)
    answers = ranks.call(after, infer, results, kind, network, seen)
    expected = infer(None, results, "cpu", network)
    for answer in answers:
        assert not isinstance(answer, Raised), answer
        assert list(answer) == list(expected)
        assert all(np.array_equal(answer[key], each) for key, each in expected.items())
    windows = seen_in(seen)
    assert len(windows) == len({tuple(each) for each in windows})  # each by one process
    assert {tuple(each) for each in needed} <= {tuple(each) for each in windows}
    assert len(windows) <= len(needed) + 8  # and those that are in a batch with one of them


def test_what_is_finished_is_opened_and_nothing_is_predicted(ranks: Ranks, tmp_path: Path) -> None:
    results, seen = tmp_path / "results", tmp_path / "seen"
    seen.mkdir()
    expected = ranks.call(2, infer, results, "nii.gz", "dict")[0]
    for answer in ranks.call(5, infer, results, "nii.gz", "dict", seen):
        assert not isinstance(answer, Raised), answer
        assert all(np.array_equal(answer[key], each) for key, each in expected.items())
    assert not seen_in(seen)
