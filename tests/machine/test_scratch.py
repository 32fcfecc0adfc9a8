"""Scratch needs a folder with room, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from monai_chunked import ChunkedSlidingWindowInferer
from tests.watching import Watching


def test_scratch_needs_an_existing_folder_with_room(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, network = torch.rand(1, 1, 64, 64, 64), lambda x: x.repeat(1, 3, 1, 1, 1)
    inferer = ChunkedSlidingWindowInferer(32, overlap=0.5, cpu_memory="1MB", scratch_dir=tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"scratch_dir does not exist"):
        inferer(x, network)
    inferer.scratch_dir = tmp_path
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.statvfs_result and type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"scratch needs [0-9,]+ bytes but scratch_dir has 1,000 free"):
        inferer(x, network)


def test_scratch_leaves_nothing_behind_even_if_the_process_is_killed(python: Callable[..., Any], tmp_path: Any) -> None:
    code = f"""
import os, signal, torch
from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.plan import layout as planning
calls = []
def network(x):
    calls.append(1)
    if len(calls) == 20:
        assert os.listdir({str(tmp_path)!r}) == []
        os.kill(os.getpid(), signal.SIGKILL)
    return x.repeat(1, 3, 1, 1, 1)
inferer = ChunkedSlidingWindowInferer(32, overlap=0.5, cpu_memory="1MB", scratch_dir={str(tmp_path)!r})
inferer(torch.rand(1, 1, 64, 64, 64), network)
"""
    done = python(code)
    assert done.returncode == -9, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_scratch_is_closed_after_an_error(tmp_path: Any) -> None:
    watching = Watching()
    calls = []

    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 20:
            raise RuntimeError("boom")
        return x.repeat(1, 3, 1, 1, 1)

    with pytest.raises(RuntimeError, match="boom"):
        ChunkedSlidingWindowInferer(32, overlap=0.5, cpu_memory="1MB", scratch_dir=tmp_path, progress=watching)(
            torch.rand(1, 1, 64, 64, 64), network
        )
    scratch = watching.levels._scratch
    assert scratch is not None
    assert scratch._file.closed
