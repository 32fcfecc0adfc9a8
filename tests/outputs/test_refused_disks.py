"""A disk that cannot take the output is refused as soon as that is known, with path and bytes."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.inferers import SlidingWindowInferer, sliding_window_inference

from tests.refusals import VOLUME, Network, both_entries, by_class

DiskUsage = namedtuple("DiskUsage", "total used free")


# ---------------------------------------------------------------- the disk


@both_entries
def test_an_output_dir_that_cannot_be_written_to_is_refused_before_the_first_window(
    infer: Callable[..., Any], tmp_path: Path
) -> None:
    folder = Path("/proc")  # not even root may
    if not folder.is_dir():
        folder = tmp_path
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write to any folder")
    network = Network()
    with pytest.raises(PermissionError, match="output_dir cannot be written to") as caught:
        infer(VOLUME, network, output="disk", output_dir=folder)
    assert str(folder) in str(caught.value)
    assert network.calls == 0


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "temporary folder"])
def test_a_disk_without_room_for_one_channel_is_refused_before_the_first_window(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**6, 10**6 - 6000, 6000))
    network = Network()
    with pytest.raises(OSError, match="the output needs") as caught:
        by_class(VOLUME, network, output="disk", output_dir=tmp_path if named else None)
    assert caught.value.errno == errno.ENOSPC
    for word in (f"{4 * 12**3:,} bytes", "6,000", str(tmp_path)):
        assert word in str(caught.value)
    assert network.calls == 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "temporary folder"])
def test_a_disk_without_room_for_all_channels_and_outputs_is_refused_as_soon_as_their_number_is_known(
    outputs: int, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = 4 * 12**3
    free = channel * (2 * outputs) - 1  # two channels for each output
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**6, 10**6 - free, free))
    network = Network()
    with pytest.raises(OSError, match="needs") as caught:
        by_class(
            VOLUME,
            lambda w: (network(w),) * outputs,
            output="disk",
            output_dir=tmp_path if named else None,
        )
    assert caught.value.errno == errno.ENOSPC
    assert f"{free:,}" in str(caught.value)
    assert network.calls == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["cpu", "device"])
def test_an_output_in_memory_does_not_care_about_the_disk(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**6, 10**6, 0))
    reference = sliding_window_inference(VOLUME, 8, 1, Network())
    assert torch.equal(by_class(VOLUME, Network(), output=output), reference)


RUN_OUT_OF_ROOM = """
import os
import sys
import tempfile
import torch
from monai_chunked import ChunkedSlidingWindowInferer

folder, limit = sys.argv[1], int(sys.argv[2])
ballast = os.path.join(folder, "ballast")
tempfile.tempdir = folder
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def network(windows):
    network.calls += 1
    if not limit and network.calls == 2:  # somebody else takes the rest of the disk
        with open(ballast, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1024)):
                    pass
            except OSError:
                pass
    return windows.repeat(1, 4, 1, 1, 1)

for output_dir in ({"output_dir": folder}, {}):
    network.calls = 0
    try:
        ChunkedSlidingWindowInferer(8, output="disk", **output_dir)(torch.zeros(1, 1, 16, 16, 16), network)
        print("nothing was raised")
    except OSError as error:
        print(error)
    if os.path.exists(ballast):
        os.remove(ballast)
    print(os.listdir(folder))
"""


def assert_told(output: str, number: int, folder: Path) -> None:
    lines = output.splitlines()
    assert len(lines) == 4, lines
    for message, left in zip(lines[::2], lines[1::2]):
        assert f"[Errno {number}] {os.strerror(number)}" in message
        assert f"{4 * 4 * 16**3:,} bytes" in message
        assert str(folder) in message
        assert left == "[]"


def test_a_file_that_may_not_grow_to_the_size_of_the_output_is_told_with_path_and_bytes(
    python: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("resource", reason="this system has no limits on the size of files")
    run = python(RUN_OUT_OF_ROOM, tmp_path, 32768)
    assert run.returncode == 0, run.stderr
    assert_told(run.stdout, errno.EFBIG, tmp_path)


@pytest.mark.long  # beside it, that the space is taken before
def test_a_disk_that_fills_up_during_the_run_does_no_harm_as_the_space_is_taken_before(tmp_path: Path) -> None:
    """On a real file system of 200 KiB, mounted where nobody else sees it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=200k none '{folder}'"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount], capture_output=True).returncode != 0:
        pytest.skip("this system does not let us mount a small disk")
    python = shlex.join([sys.executable, "-W", "ignore", "-c", RUN_OUT_OF_ROOM, str(folder), "0"])
    run = subprocess.run([*unshare, f"{mount} && {python}"], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("nothing was raised") == 2


@pytest.mark.parametrize("output_dir", [True, False])
def test_bfloat16_is_refused_on_disk_before_the_first_window_as_a_npy_file_cannot_hold_it(
    output_dir: bool, tmp_path: Path
) -> None:
    network = Network()
    with pytest.raises(TypeError, match=r"torch\.bfloat16.*output='cpu'"):
        by_class(VOLUME.bfloat16(), network, output="disk", output_dir=tmp_path if output_dir else None)
    assert network.calls == 0
    assert not any(tmp_path.iterdir())


def test_bfloat16_that_postprocessing_returns_is_refused_on_disk(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"torch\.bfloat16"):
        by_class(VOLUME, Network(), postprocessing=torch.Tensor.bfloat16, output="disk", output_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_bfloat16_inputs_reach_the_disk_as_labels(tmp_path: Path) -> None:
    inputs = VOLUME.bfloat16()
    labels = by_class(inputs, Network(), postprocessing="argmax", output="disk", output_dir=tmp_path)
    assert torch.equal(labels, SlidingWindowInferer(8)(inputs, Network()).argmax(1, keepdim=True).to(torch.uint8))
