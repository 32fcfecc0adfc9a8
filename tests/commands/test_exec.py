"""``python -m monai_chunked exec``: a program sees what it sees when Python runs it, and its windows run in chunks."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.inferers import sliding_window_inference

from monai_chunked.__main__ import main
from monai_chunked.commands.exec import path_of, run_program
from tests import ROOT
from tests.api import zoo

PROGRAM = """
import atexit
import hashlib
import json
import multiprocessing
import os
import pickle
import sys

import torch
from monai.inferers import SlidingWindowInferer

from beside import WINDOWS


class Own(SlidingWindowInferer):
    pass


def run(seed):
    image = torch.rand(1, 1, 24, 26, 7, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)
    scores = pickle.loads(pickle.dumps(Own(**WINDOWS)))(image, network)
    return hashlib.sha256(scores.contiguous().numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        forked = pool.map(run, [1, 2])
    seen = {
        "argv": sys.argv,
        "path": sys.path[0],
        "name": __name__,
        "file": __file__,
        "package": __package__,
        "main": sys.modules["__main__"].run is run,
        "results": [run(1), run(2), run(3)],
        "forked": forked,
    }
    if "spawn" in sys.argv:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seen["spawned"] = pool.map(run, [1])
    atexit.register(print, json.dumps(seen))
    sys.exit("it ends in tears")
"""


def running(*command: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments: Any = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *command], text=True, **arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program, and what it imports from beside it, away from where it is started."""
    (programs := tmp_path / "programs").mkdir()
    (programs / "prog.py").write_text(PROGRAM)
    (programs / "beside.py").write_text(
        'WINDOWS = {"roi_size": 8, "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}'
    )
    return tmp_path


def compare(folder: Path, *command: str) -> tuple[dict[str, Any], list[str]]:
    """What a program sees, the same in both; and what is said behind what it says itself."""
    both = [running(*start, *command, folder=folder) for start in ((), ("-m", "monai_chunked", "exec"))]
    (out, err), (our_out, our_err) = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [1, 1], our_err
    assert our_out == out
    assert our_err.startswith(err)
    seen = json.loads(out)
    assert seen["forked"] == seen["results"][:2]
    return seen, our_err[len(err) :].splitlines()


def test_a_program_sees_its_arguments_and_its_name_and_runs_in_chunks(
    folder: Path, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    command = ["exec", "programs/prog.py", "--quiet", "-m", "--", "a b"]
    done = python(f"import os; os.chdir({str(folder)!r}); from monai_chunked.__main__ import main; main({command})")
    seen = json.loads(done.stdout)
    assert (done.returncode, seen["argv"], seen["name"], seen["main"]) == (1, command[1:], "__main__", True)
    assert seen["forked"] == seen["results"][:2]
    tears, said, *_ = done.stderr.splitlines()
    assert tears == "it ends in tears"
    assert said == "monai_chunked: 3 calls of MONAI's sliding_window_inference ran in chunks"


@pytest.mark.long
def test_a_program_sees_what_it_sees_when_python_runs_it(folder: Path) -> None:
    seen, said = compare(folder, "programs/prog.py", "--quiet", "-m", "--", "a b")
    assert seen["argv"] == ["programs/prog.py", "--quiet", "-m", "--", "a b"]
    assert said[0] == "monai_chunked: 3 calls of MONAI's sliding_window_inference ran in chunks"
    assert all(line.startswith("monai_chunked: ") for line in said)
    assert len(said) >= 2


@pytest.mark.long
def test_a_module_sees_what_it_sees_when_python_runs_it(folder: Path) -> None:
    (folder / "programs" / "prog.py").rename(folder / "prog.py")
    (folder / "programs" / "beside.py").rename(folder / "beside.py")
    assert compare(folder, "-m", "prog", "-m", "x")[0]["argv"][1:] == ["-m", "x"]


@pytest.mark.long
def test_spawned_processes_have_the_program_and_monais_own_code(folder: Path) -> None:
    seen, said = compare(folder, "programs/prog.py", "spawn")
    assert seen["spawned"] == seen["results"][:1]
    assert said[0] == "monai_chunked: 3 calls of MONAI's sliding_window_inference ran in chunks"


@pytest.mark.long
def test_quiet_is_quiet(folder: Path) -> None:
    process = running("-m", "monai_chunked", "exec", "--quiet", "programs/prog.py", folder=folder)
    assert process.communicate()[1] == "it ends in tears\n"


@pytest.mark.long
@pytest.mark.parametrize("name", ["spleen_ct", "wholeBody_ct"])
def test_a_bundle_saves_the_same_files(name: str, tmp_path: Path) -> None:
    processes = []
    for start, place in (((), "monai"), (("-m", "monai_chunked", "exec"), "ours")):
        config = zoo.write_bundle(tmp_path / place, name)
        command = (*start, "-m", "monai.bundle", "run", "--config_file", str(config))
        processes.append(running(*command, "--evaluator#amp", "False", folder=tmp_path))
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[1]
    assert "monai_chunked: 2 calls of MONAI's sliding_window_inference ran in chunks" in said[1]
    zoo.assert_same_files(tmp_path / "ours", tmp_path / "monai")


# ---------------------------------------------------------------- in this process


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr(sys, "path", ["here", *sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.chdir(folder)
    code = sliding_window_inference.__code__
    yield
    assert sliding_window_inference.__code__ is code


SEES = "import sys; print(*sys.argv); print(sys.path[0]); print(__name__)"


@pytest.mark.usefixtures("as_it_was")
def test_a_link_a_folder_and_an_archive_are_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "app").mkdir()
    (folder / "app" / "__main__.py").write_text(SEES)
    (folder / "real").mkdir()
    (folder / "real" / "prog.py").write_text(SEES)
    (folder / "link.py").symlink_to(folder / "real" / "prog.py")
    with zipfile.ZipFile(folder / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", SEES)
    for name, where in (("app", folder / "app"), ("app.pyz", folder / "app.pyz"), ("link.py", folder / "real")):
        run_program(name, ["x"], is_module=False)
        argv, path, main_name = capsys.readouterr().out.splitlines()
        assert argv == f"{name} x"
        assert Path(path).resolve() == where.resolve()
        assert main_name == "__main__"


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize(
    ("text", "error"),
    [("raise SystemExit(3)", SystemExit), ("raise ValueError('mine')", ValueError), ("1 +", SyntaxError)],
)
def test_exits_and_errors_are_the_programs_own(text: str, error: type[BaseException], folder: Path) -> None:
    (folder / "fails.py").write_text(text)
    with pytest.raises(error) as expected:
        runpy.run_path(str(folder / "fails.py"), run_name="__main__")
    with pytest.raises(error) as caught:
        run_program("fails.py", [], is_module=False)
    assert caught.value.args == expected.value.args
    if error is not SyntaxError:
        assert caught.traceback[-1].path == expected.traceback[-1].path == folder / "fails.py"


@pytest.mark.usefixtures("as_it_was")
def test_a_command_written_in_python_is_found_on_the_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "slide").write_text(f"#!{sys.executable}\nimport sys\nsys.exit(sys.argv[0])")
    (folder / "bin" / "shell").write_text("#!/bin/sh\n")
    for each in (folder / "bin").iterdir():
        each.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    with pytest.raises(SystemExit) as caught:
        run_program(path_of("slide"), [], is_module=False)
    assert caught.value.code == f"{folder / 'bin' / 'slide'}"
    assert main(["exec", "shell", "x"]) == 2
    assert f"error: exec shell: {folder / 'bin' / 'shell'} is not written in Python" in capsys.readouterr().err


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py", "x"], "exec nothing.py: there is no such file, folder or command"),
        ([], "exec needs a program, as in: python -m monai_chunked exec program.py, or exec -m module"),
        (["--quiet"], "exec needs a program"),
        (["-m"], "exec needs a program"),
    ],
)
def test_what_is_no_program_is_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exec", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["exec", "--help"])
    assert "exec [--quiet] (program | -m module) [arguments ...]" in capsys.readouterr().out
