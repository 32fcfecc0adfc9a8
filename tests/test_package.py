"""What is built and installed is whole, and says of itself what is true."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import monai_chunked
from tests import ROOT
from tests.house import tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ["monai_chunked", "tests", "configs", "models", "tutorials", "benchmarks", "docs"]
FILES = ["README.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml"]
CACHES = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".hypothesis")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built and unpacked."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools is older than pyproject.toml asks for")
    folder = tmp_path_factory.mktemp("sdist")
    (source := folder / "source").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    if (ROOT / "MANIFEST.in").exists():
        shutil.copy(ROOT / "MANIFEST.in", source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=CACHES)
    program = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (path,) = (folder / "unpacked").iterdir()
    return path


def test_the_source_distribution_has_all_that_its_tests_need(unpacked: Path) -> None:
    source = unpacked.parents[1] / "source"
    wanted = {path.relative_to(source) for name in FOLDERS for path in (source / name).rglob("*") if path.is_file()}
    wanted |= set(map(Path, FILES))
    assert wanted - {path.relative_to(unpacked) for path in unpacked.rglob("*")} == set()


@pytest.mark.long
def test_the_tests_of_the_source_distribution_are_found(unpacked: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    environment = {"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin", "HOME": str(unpacked)}
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_distribution_has_the_version_of_the_package_and_links(unpacked: Path) -> None:
    metadata = (unpacked / "PKG-INFO").read_text()
    assert f"\nVersion: {monai_chunked.__version__}\n" in metadata
    assert metadata.count("\nProject-URL: ") == len(PROJECT["urls"]) > 0


def test_all_modules_are_packed() -> None:
    setuptools = pytest.importorskip("setuptools")
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packages = setuptools.find_packages(str(ROOT), **find)
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "monai_chunked").rglob("*.py")}
    assert set(packages) == found


def test_messages_name_packages_that_pip_finds_from_a_clone() -> None:
    """The package itself is installed from a clone, so that its extras mean nothing to pip elsewhere."""
    told = []
    for path in (ROOT / "monai_chunked").rglob("*.py"):
        told += re.findall(r"pip install ([^\"]+)\"", path.read_text())
    assert len(told) >= 5
    assert [command for command in told if "monai" in command] == []
    wanted = {re.split(r"[<>=\[]", name)[0] for extra in PROJECT["optional-dependencies"].values() for name in extra}
    assert {re.split(r"[<>=\[]", command.strip("'"))[0] for command in told} <= wanted


def test_tab_completion_offers_public_names_only(python: Callable[..., Any]) -> None:
    assert dir(monai_chunked) == sorted([*monai_chunked.__all__, "__version__"])
    program = "import monai_chunked; print(*dir(monai_chunked))"
    assert python(program).stdout.split() == dir(monai_chunked)
