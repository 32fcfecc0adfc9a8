"""Fixtures of the tests of outputs."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from monai_chunked.outputs.nifti import output as nifti
from monai_chunked.outputs.nifti import volume as nifti_volume
from tests.outputs.disks import DISK_BYTES


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file has many of them."""
    monkeypatch.setattr(nifti, "SPAN_BYTES", 500)
    monkeypatch.setattr(nifti_volume, "MOVED_BYTES", 600)


@pytest.fixture(scope="module")
def new_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an empty file system."""
    disk = tmp_path_factory.mktemp("disk") / "new"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk], check=True)
    return disk
