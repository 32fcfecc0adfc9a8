"""
A run that a power cut ends goes on where it was recorded, to the same bits; what was returned is there.

A power cut leaves the blocks that have reached the disk, and nothing of what the system still held in memory. Here the
disk is a file behind a loop device. It is copied while the run stands still, and the copy is mounted as after a cut.
Nothing is written to it but what the run asked for: the system would do so only after an hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.killed_run import OUTPUTS
from tests.test_recovery import expected, records, windows_that_touch_what_is_not_recorded

DISK_BYTES = 2**25

MODES = ["data=ordered", "data=writeback,noauto_da_alloc"]
"""Of ext4: whether bytes reach the disk before the size of their file does, and before its new name."""


def why_not() -> str | None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root may mount a disk"
    missing = [name for name in ("losetup", "mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is missing"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True)
    return None if found.returncode == 0 else f"there is no loop device ({found.stderr.strip()})"


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@contextlib.contextmanager
def mounted(disk: Path, folder: Path, options: str) -> Iterator[Path]:
    """The file system in a file, while the block lasts."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "ext4", "-o", f"loop,commit=3600,{options}", disk, folder], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"a disk cannot be mounted here ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)  # and its loop device is free


@pytest.fixture(scope="module")
def new_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an empty file system."""
    disk = tmp_path_factory.mktemp("disk") / "new"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk], check=True)
    return disk


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., dict[str, Any]]]:
    """Have a run in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killed_run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(**request: Any) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps({"kill_after": None, **request}, default=str), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield ask
    process.communicate()


def go_on(ask: Callable[..., dict[str, Any]], output: str, folder: Path, notes: Path) -> list[list[int]]:
    """The windows that the same call predicts; it must give the bits of a run that was never interrupted."""
    seen, result = notes / "seen", notes / "result.npy"
    seen.write_text("")
    result.unlink(missing_ok=True)
    assert ask(output=output, folder=folder, seen=seen, result=result)["exit"] == 0
    assert np.array_equal(np.load(result), expected().numpy())
    return [json.loads(line) for line in seen.read_text().splitlines()]


def cut(output: str, times: int, new_disk: Path, ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments are drawn with seed {seed}")
    moments = random.Random(seed)
    disk, copy, folder = tmp_path / "disk", tmp_path / "copy", tmp_path / "mounted"
    resumed = 0
    shutil.copyfile(new_disk, disk)
    with mounted(disk, folder, MODES[0]):
        longest = ask(output=output, folder=folder)["seconds"]
    for k in range(times):
        shutil.copyfile(new_disk, disk)
        with mounted(disk, folder, MODES[k % 2]):
            after = moments.uniform(0.1, 1.0) * longest
            run = ask(output=output, folder=folder, seen=tmp_path / "seen", kill_after=after, disk=disk, copy=copy)
        assert run["exit"] in (-9, 0)
        with mounted(copy, folder, MODES[k % 2]):
            begun = any(folder.rglob("*.journal")) and any("result" in record for record in records(folder))
            missing = windows_that_touch_what_is_not_recorded(folder) if begun else None
            seen = go_on(ask, output, folder, tmp_path)
            if missing is not None:
                resumed += 1
                assert [window for window in seen if window in missing] == missing
                assert len(seen) <= 2 * len(missing)  # windows come in batches of two
    assert resumed > times // 4


@pytest.mark.parametrize("output", list(OUTPUTS))
def test_after_a_power_cut_a_run_goes_on_with_all_that_is_recorded(
    output: str, new_disk: Path, ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    cut(output, 4, new_disk, ask, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("output", list(OUTPUTS))
def test_after_any_of_thirty_power_cuts_a_run_goes_on_with_all_that_is_recorded(
    output: str, new_disk: Path, ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    cut(output, 30, new_disk, ask, tmp_path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("output", list(OUTPUTS))
def test_a_result_that_was_returned_is_there_after_a_power_cut(
    output: str, mode: str, new_disk: Path, ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    disk, copy, folder = tmp_path / "disk", tmp_path / "copy", tmp_path / "mounted"
    shutil.copyfile(new_disk, disk)
    with mounted(disk, folder, mode):
        assert ask(output=output, folder=folder, seen=tmp_path / "seen")["exit"] == 0
        shutil.copyfile(disk, copy)
    with mounted(copy, folder, mode):
        assert go_on(ask, output, folder, tmp_path) == []
