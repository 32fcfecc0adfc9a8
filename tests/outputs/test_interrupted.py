"""A run that is interrupted, or that fails, loses nothing, leaves nothing behind, and says that it can go on."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_chunked import NumpyOutput
from monai_chunked.formats.zarr.places import LocalPlace
from monai_chunked.formats.zarr.storage_chunks import Collector
from monai_chunked.recovery.journal import Journal
from tests.killed_run import OUTPUTS, Boom, Network, image, inferer
from tests.outputs.cases import left_in
from tests.outputs.disks import mounted, why_not
from tests.outputs.recorded import FORMATS, expected, voxels


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_a_sentence_that_says_that_the_same_call_goes_on(
    number: int,
    output: str,
    ask: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    folder, seen, errors = tmp_path / "results", tmp_path / "seen", tmp_path / "errors"
    folder.mkdir()
    run = ask(output=output, folder=folder, seen=seen, errors=errors, signal=int(number))
    (journal,) = folder.rglob("*.journal")
    (line,) = errors.read_text().splitlines()
    begin = "ended by SIGTERM; " if number == signal.SIGTERM else "KeyboardInterrupt: "
    assert line == f"{begin}the same call goes on where this one stopped ({journal})"
    assert run["exit"] == (143 if number == signal.SIGTERM else 1)
    assert not any(folder.rglob("*.lock"))
    network = Network()
    with torch.no_grad():
        result = inferer(OUTPUTS[output](folder))(image(), network)
    assert torch.equal(voxels(result), expected())
    assert network.batches < 40


@pytest.mark.parametrize("output", [*FORMATS, "disk"])
def test_sigterm_leaves_nothing_of_a_run_that_cannot_be_resumed(
    output: str,
    ask: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    folder, seen, errors = tmp_path / "results", tmp_path / "seen", tmp_path / "errors"
    folder.mkdir()
    run = ask(output=output, folder=folder, seen=seen, errors=errors, signal=int(signal.SIGTERM), resumable=False)
    assert run["exit"] == 143
    assert errors.read_text() == "ended by SIGTERM\n"
    assert left_in(folder) == []


def test_nothing_is_left_of_a_result_without_a_name_even_if_the_process_is_killed(
    ask: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.iterdir())
    run = ask(output="disk", folder=tmp_path, seen=tmp_path / "seen", signal=int(signal.SIGKILL))
    assert run["exit"] == -signal.SIGKILL
    assert not [path for path in set(temporary.iterdir()) - before if path.name.startswith("monai_chunked")]


def test_a_handler_of_sigterm_that_somebody_has_set_stays(tmp_path: Path) -> None:
    def handler(number: int, frame: Any) -> None:
        raise AssertionError

    seen: list[Any] = []

    def look() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    try:
        for current in (handler, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, current)
            with torch.no_grad():
                inferer(NumpyOutput(tmp_path), overwrite=True)(image(), Network(at=3, act=look))
                inferer("cpu")(image(), Network(at=3, act=look))
            assert signal.getsignal(signal.SIGTERM) == current
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen[:2] == [handler, handler]
    assert callable(seen[2])
    assert seen[3] == signal.SIG_DFL  # a run in memory has nothing to clean up


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("output", FORMATS)
def test_a_run_that_fails_leaves_no_empty_folder(output: str, resumable: bool, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()  # somebody else's
    network = Network(at=1 if resumable else 30)
    known = {} if resumable else {"network_id": None}
    called = network if resumable else lambda *windows: network(*windows)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this run cannot be resumed")
        with pytest.raises(Boom):
            inferer(OUTPUTS[output](tmp_path), **known)(image(), called)
    assert left_in(tmp_path) == ["second"]


@pytest.mark.parametrize("output", FORMATS)
def test_a_run_whose_files_do_not_fit_leaves_nothing(output: str, tmp_path: Path) -> None:
    limit = 8 if output == "zarr" else 1000

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    try:
        with torch.no_grad(), pytest.raises(OSError, match="File too large"):
            inferer(OUTPUTS[output](tmp_path))(image(), Network(at=1, act=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("output", FORMATS)
def test_a_write_that_fails_is_an_error_of_the_system_with_its_path_whenever_it_comes(
    output: str, tmp_path: Path
) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    for at in range(2, 48, 3):
        folder = tmp_path / str(at)
        folder.mkdir()
        try:
            with torch.no_grad(), pytest.raises(OSError, match=str(folder)) as caught:
                inferer(OUTPUTS[output](folder))(image(), Network(at=at, act=fill))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert caught.value.errno == errno.EFBIG
    with torch.no_grad():
        result = inferer(OUTPUTS[output](folder))(image(), Network())
    assert torch.equal(voxels(result), expected())


def test_a_chunk_whose_write_failed_does_not_count_as_written() -> None:
    collector = Collector((1, 8, 8), (4, 4))
    boxes = [(slice(0, 4), slice(0, 8)), (slice(4, 8), slice(0, 8))]
    values = torch.ones(1, 4, 8).numpy()
    next(collector.add(boxes[0], values))  # and its caller fails to write what it got
    assert collector.written() == []
    list(collector.add(boxes[1], values))
    assert collector.written() == [boxes[1]]


@pytest.mark.parametrize("tail", [bytes(1000), bytes(100) + b'e": 7}\n', bytes(30) + b"\n" + bytes(30)])
def test_zeros_at_the_end_of_a_journal_are_what_was_not_written_before_a_power_cut(tail: bytes, tmp_path: Path) -> None:
    with torch.no_grad(), pytest.raises(Boom):
        inferer(NumpyOutput(tmp_path))(image(), Network(at=30))
    (path,) = tmp_path.rglob("*.journal")
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    found = Journal.read(path)
    assert found is not None
    assert path.read_bytes() == whole
    network = Network()
    with torch.no_grad():
        result = inferer(NumpyOutput(tmp_path))(image(), network)
    assert torch.equal(voxels(result), expected())
    assert network.batches < 30


READ_ONLY = """
import os, sys
import torch
from tests.killed_run import OUTPUTS, Network, image, inferer

kind, folder, user = sys.argv[1:]
output = OUTPUTS[kind](folder)
if user != "0":
    os.setgid(int(user))
    os.setuid(int(user))
try:
    inferer(output)(image(), Network(at=1))
except OSError as error:
    print(type(error).__name__, error.errno, error.filename)
"""


def refused(python: Callable[..., Any], output: str, folder: Path, user: int) -> list[str]:
    run = python(READ_ONLY, output, folder, user)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("output", ["npy", "zarr"])
def test_a_folder_of_somebody_else_is_refused_with_the_number_for_it(
    output: str, python: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir(mode=0o555)
    is_root = os.geteuid() == 0
    if is_root:
        for above in (tmp_path, *tmp_path.parents[:2]):
            above.chmod(0o755)
    answer = refused(python, output, folder, 65534 if is_root else os.getuid())
    assert answer == ["PermissionError", str(errno.EACCES), str(folder)]


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_disk_that_is_mounted_for_reading_is_refused_with_the_number_for_it(
    new_disk: Path,
    python: Callable[..., Any],
    tmp_path: Path,
) -> None:
    with mounted(new_disk, tmp_path / "mounted", "ro") as folder:
        assert refused(python, "nii", folder, 0) == ["PermissionError", str(errno.EROFS), str(folder)]


def test_a_folder_that_takes_no_files_is_refused_as_one_that_may_not_be_written_to() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("this system has no such folder")
    with pytest.raises(PermissionError) as caught:
        inferer("disk", output_dir="/proc")(image(), Network())
    assert (caught.value.errno, caught.value.filename) == (errno.EACCES, "/proc")


def test_stores_of_a_batch_are_complete_before_the_first_of_them_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = LocalPlace.publish

    def stop(self: LocalPlace) -> None:
        publish(self)
        raise Boom

    monkeypatch.setattr(LocalPlace, "publish", stop)
    with torch.no_grad():
        with pytest.raises(Boom):
            inferer(OUTPUTS["zarr"](tmp_path))(image(), Network())
        monkeypatch.undo()
        result = inferer(OUTPUTS["zarr"](tmp_path))(image(), Network(at=1))
    assert torch.equal(voxels(result), expected())
