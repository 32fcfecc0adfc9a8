"""Printed at the top of a run: what is needed to repeat it. And how tests of small tensors run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import ROOT

# how long an example takes says how busy the machine is, and nothing of the promise
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

pytest.register_assert_rewrite("tests.side_by_side", "tests.outputs", "tests.formats")


def pytest_report_header() -> str:
    from tests.run.test_exactness import RANDOM_SEED

    return f"monai {monai.__version__}, torch {torch.__version__}, EXACTNESS_SEED={RANDOM_SEED}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower with more, and much slower beside other work; a forked process has no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """As inference runs; the tests that want gradients enable them."""
    with torch.no_grad():
        yield


@pytest.fixture
def grad(request: pytest.FixtureRequest) -> Iterator[None]:
    """Inference runs without gradients unless a test asks for them."""
    with torch.set_grad_enabled(getattr(request, "param", False)):
        yield


Answer = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def request_of_a_process() -> Iterator[Answer]:
    """One that has imported the package, and does all that is asked for in forks of itself: `tests.killed_run`."""
    command = [sys.executable, "-m", "tests.killed_run"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def ask(**request: Any) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(request, default=str), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield ask
    process.communicate()


@pytest.fixture
def ask(request_of_a_process: Answer) -> Answer:
    """Have a run in a process of its own."""

    def ask(output: str, folder: Path, kill_at: int | None = None, seconds: float = 0, **more: Any) -> dict[str, Any]:
        return request_of_a_process(output=output, folder=folder, kill_at=kill_at, seconds=seconds, **more)

    return ask


@pytest.fixture
def python(
    request_of_a_process: Answer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program as `python -W ignore -c` does, but at once."""

    def run(program: str, *arguments: Any, temporary: Path | None = None) -> subprocess.CompletedProcess[str]:
        said = tmp_path_factory.mktemp("said")
        out, errors = said / "out", said / "errors"
        asked = {"program": program, "arguments": list(map(str, arguments)), "out": out, "errors": errors}
        done = request_of_a_process(**asked, temporary=temporary or tempfile.gettempdir())
        return subprocess.CompletedProcess(program, done["exit"], out.read_text(), errors.read_text())

    return run
