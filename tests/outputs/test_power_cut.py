"""A run that a power cut ends goes on where it was recorded, to the same bits; what was returned is there."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.killed_run import OUTPUTS, WINDOWS
from tests.outputs.disks import mounted, why_not
from tests.outputs.recorded import FIRST_IS_DONE, expected, records, windows_that_touch_what_is_not_recorded

MODES = ["data=ordered", "data=writeback,noauto_da_alloc"]
"""Of ext4: whether bytes reach the disk before the size of their file does, and before its new name."""
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def go_on(ask: Callable[..., dict[str, Any]], output: str, folder: Path, notes: Path) -> list[list[int]]:
    """The windows that the same call predicts; it must give the bits of a run that was never interrupted."""
    seen, result = notes / "seen", notes / "result.npy"
    result.unlink(missing_ok=True)
    assert ask(output=output, folder=folder, seen=seen, result=result)["exit"] == 0
    assert np.array_equal(np.load(result), expected().numpy())
    return [json.loads(line) for line in seen.read_text().splitlines()]


def cut(output: str, times: int, new_disk: Path, ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments are drawn with seed {seed}")
    moments = random.Random(seed)
    disk, copy, folder = tmp_path / "disk", tmp_path / "copy", tmp_path / "mounted"
    for k in range(times):
        shutil.copyfile(new_disk, disk)
        with mounted(disk, folder, MODES[k % 2]):
            windows, seconds = moments.randint(0, WINDOWS), moments.uniform(0, 0.01)
            run = ask(output, folder, windows, seconds, seen=tmp_path / "seen", disk=disk, copy=copy)
        assert run["exit"] in (-9, 0)
        with mounted(copy, folder, MODES[k % 2]):
            begun = any(folder.rglob("*.journal")) and any("result" in record for record in records(folder))
            missing = windows_that_touch_what_is_not_recorded(folder) if begun else None
            seen = go_on(ask, output, folder, tmp_path)
            assert begun or windows < FIRST_IS_DONE
            if missing is not None:
                assert [window for window in seen if window in missing] == missing
                assert len(seen) <= 2 * len(missing)  # windows come in batches of two


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
