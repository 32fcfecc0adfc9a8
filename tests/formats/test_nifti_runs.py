"""NIfTI files of runs that stopped can be gone on with, and take no memory that grows with the file."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from monai_chunked import Expected, NiftiOutput, Result
from monai_chunked.formats.nifti import output as nifti
from monai_chunked.formats.nifti import volume as nifti_volume
from tests.formats.nifti_cases import EXTENSIONS, chunks, files_in, result_for, stacked, voxels, write

resource = pytest.importorskip("resource")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file has many of them."""
    monkeypatch.setattr(nifti, "SPAN_BYTES", 500)
    monkeypatch.setattr(nifti_volume, "MOVED_BYTES", 600)


# ---------------------------------------------------------------- runs that stopped


UNFINISHED = {
    ".nii": ["scan0_trans.nii.chunks", "scan0_trans.nii.partial"],
    ".nii.gz": ["scan0_trans.nii.gz.chunks", "scan0_trans.nii.gz.plain"],
}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def die_before_line(number: int, code: Callable[[], Any]) -> bool:
    """Run in a process that ends, as if killed, before it executes so many lines of an output; whether it did."""
    pid = os.fork()
    if pid == 0:
        lines = itertools.count()

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename not in (nifti.__file__, nifti_volume.__file__):
                return None
            if event == "line" and next(lines) == number:
                os._exit(1)
            return trace

        sys.settrace(trace)
        code()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.usefixtures("small_spans")
def test_a_run_that_is_killed_anywhere_while_it_finishes_its_files_can_be_resumed(
    extension: str, images: int, tmp_path: Path
) -> None:
    values = voxels(images, 2, 7, 8, 9, dtype=torch.int16)
    result = result_for(values)
    resumed_as = set()
    for number in itertools.count(0, 5):
        (tmp_path / str(number)).mkdir()
        output = NiftiOutput(tmp_path / str(number), output_ext=extension, separate_folder=False)
        writer = output.create(result)
        write(writer, values, chunks(result))
        writer.flush()
        if not die_before_line(number, writer.finish):
            break
        resumed = output.resume(result)
        if not resumed.complete:
            assert all(torch.equal(resumed.read(k, box), values[k][(slice(None), *box)]) for k, box in chunks(result))
        resumed_as.add(resumed.complete)
        assert torch.equal(stacked(resumed.finish()), values)
        assert files_in(Path(output.output_dir)) == [f"scan{k}_trans{extension}" for k in range(images)]
    assert resumed_as == {True, False}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_space_that_an_earlier_run_took_is_not_asked_for_again(extension: str, tmp_path: Path) -> None:
    output = NiftiOutput(tmp_path, output_ext=extension)
    result = replace(result_for(voxels(1, 1, 1)), shape=(1, 1, 2**30), cuts=((0, 2**30),), dtype=torch.uint8)
    output.create(result).abandon()
    needed = shutil.disk_usage(tmp_path).free + 2**29
    with pytest.raises(OSError, match=f"the output needs {needed:,} bytes"):
        output.check(Expected(needed, torch.uint8))
    output.check(Expected(needed, torch.uint8, result.metadata))


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_finished_result_is_loaded_and_resumed_as_it_was(extension: str, tmp_path: Path) -> None:
    values = voxels(2, 2, 7, 8, 9)
    result = result_for(values)
    output = NiftiOutput(tmp_path, output_ext=extension)
    writer = output.create(result)
    write(writer, values, chunks(result))
    writer.finish()
    writer.abandon()
    assert torch.equal(stacked(output.load(result)), values)
    resumed = output.resume(result)
    assert resumed.complete
    assert torch.equal(stacked(resumed.finish()), values)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("damage", ["missing", "shorter", "longer"])
def test_a_damaged_file_is_noticed(extension: str, damage: str, tmp_path: Path) -> None:
    values = voxels(1, 2, 7, 8, 9)
    result = result_for(values)
    output = NiftiOutput(tmp_path, output_ext=extension, separate_folder=False)

    def spoil(name: str) -> None:
        path = tmp_path / name
        data = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes(data[:-5] if damage == "shorter" else data + data[-5:])

    partial = UNFINISHED[extension][1]
    for name in UNFINISHED[extension]:
        output.create(result).abandon()
        if (name, damage) == (partial, "longer"):
            continue  # as it is when a run is killed while it puts the file in order
        spoil(name)
        with pytest.raises(OSError, match=r"scan0_trans\.nii.*\.(chunks|partial|plain)"):
            output.resume(result)

    writer = output.create(result)
    write(writer, values, chunks(result))
    writer.finish()
    spoil(f"scan0_trans{extension}")
    with pytest.raises(OSError, match=f"scan0_trans{extension}"):
        output.load(result)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.usefixtures("small_spans")
def test_a_full_disk_is_told_with_path_and_bytes_and_the_run_goes_on_when_there_is_space(
    extension: str, tmp_path: Path
) -> None:
    values = voxels(1, 2, 20, 20, 20)
    result = result_for(values, 9)
    output = NiftiOutput(tmp_path, output_ext=extension, separate_folder=False)
    told = r"64,352 bytes: '.*scan0_trans.nii.*'"
    with files_of_at_most(50_000), pytest.raises(OSError, match=told):
        output.create(result)
    assert files_in(tmp_path) == []
    writer = output.create(result)
    write(writer, values, chunks(result))
    with files_of_at_most(50_000), pytest.raises(OSError, match=told):
        writer.finish()
    writer.abandon()
    assert files_in(tmp_path) == UNFINISHED[extension]
    assert torch.equal(output.resume(result).finish(), values)


# ---------------------------------------------------------------- memory


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell how much is resident")
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_memory_does_not_grow_with_the_file(extension: str, tmp_path: Path) -> None:
    size = 400 if extension == ".nii" else 200
    chunk = torch.zeros(1, 50, 50, size)
    shape = (1, 4, size, 200, size)
    cuts = tuple((*range(0, side, 50), side) for side in shape[2:4]) + ((0, size),)
    output = NiftiOutput(tmp_path, output_ext=extension)
    peaks, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peaks.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    writer = output.create(Result("prediction", shape, torch.float32, cuts, ({},)))
    for x, y in itertools.product(range(0, size, 50), range(0, 200, 50)):
        writer.write(0, (slice(x, x + 50), slice(y, y + 50), slice(0, size)), chunk.expand(4, -1, -1, -1))
    writer.finish()
    done.set()
    watcher.join()
    assert max(peaks) - peaks[0] < 100 * 2**20 < np.prod(shape) * 4
