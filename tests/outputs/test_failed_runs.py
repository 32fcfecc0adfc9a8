"""A run that fails leaves nothing on disk, no file open and no thread behind."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.outputs.cases import identity, infer, left_in, network, volume

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


def fails_at(call: int, error: BaseException) -> Callable[[torch.Tensor], Any]:
    calls = iter(range(1, 10**6))

    def predictor(windows: torch.Tensor) -> Any:
        if next(calls) == call:
            raise error
        return network(windows), windows

    return predictor


def chunk_fails_at(call: int) -> Callable[[torch.Tensor], torch.Tensor]:
    calls = iter(range(1, 10**6))

    def postprocessing(chunk: torch.Tensor) -> torch.Tensor:
        if next(calls) == call:
            raise ArithmeticError("bad chunk")
        return chunk

    return postprocessing


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "without a name"])
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("call", [1, 2, 23, 36])
def test_a_run_whose_network_fails_leaves_nothing_on_disk(
    call: int, error: BaseException, named: bool, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(type(error)):
        infer(volume(), fails_at(call, error), output="disk", output_dir=folder if named else None)
    assert left_in(folder) == left_in(temporary) == []


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "without a name"])
@pytest.mark.parametrize("call", [1, 2, 30])
def test_a_run_whose_postprocessing_fails_leaves_nothing_on_disk(
    call: int, named: bool, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(ArithmeticError, match="bad chunk"):
        infer(
            volume(),
            lambda w: (network(w), identity(w)),
            postprocessing=("argmax", chunk_fails_at(call)),
            output="disk",
            output_dir=folder if named else None,
        )
    assert left_in(folder) == left_in(temporary) == []


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "without a name"])
def test_a_run_whose_second_output_is_refused_leaves_nothing_of_the_first(
    named: bool, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(TypeError, match="bfloat16"):
        infer(
            volume().bfloat16(),
            lambda w: (torch.cat([w, w], 1), w),
            postprocessing=("argmax", None),
            output="disk",
            output_dir=folder if named else None,
        )
    assert left_in(folder) == left_in(temporary) == []


def test_while_it_runs_a_file_says_that_it_is_partial(tmp_path: Path) -> None:
    seen = []

    def predictor(windows: torch.Tensor) -> torch.Tensor:
        seen.append(left_in(tmp_path))
        return windows

    infer(volume(), predictor, output="disk", output_dir=tmp_path)
    assert seen[0] == []
    assert all(files == ["prediction-0001.npy.partial"] for files in seen[1:])
    assert left_in(tmp_path) == ["prediction-0001.npy"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not tell what files are open")
def test_runs_leave_no_file_open_and_no_thread_behind(tmp_path: Path) -> None:
    def left() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = left()
    for _ in range(5):
        infer(volume(), output="disk", output_dir=tmp_path)
        with pytest.raises(RuntimeError, match="boom"):
            infer(volume(), fails_at(5, RuntimeError("boom")), output="disk")
        with pytest.raises(ArithmeticError, match="bad chunk"):
            infer(volume(), postprocessing=chunk_fails_at(3), output="disk")
    assert left() == before
