"""Fixtures of the tests of outputs."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.outputs.disks import DISK_BYTES


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def new_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an empty file system."""
    disk = tmp_path_factory.mktemp("disk") / "new"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk], check=True)
    return disk
