"""A file with a file system, which is mounted; a helper."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

DISK_BYTES = 2**25


def why_not() -> str | None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root may mount a disk"
    missing = [name for name in ("losetup", "mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is missing"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True)
    return None if found.returncode == 0 else f"there is no loop device ({found.stderr.strip()})"


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
