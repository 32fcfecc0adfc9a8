"""
What is on disk when the power goes: bytes of files, and names in folders.

A system holds both in memory for a while. A new name is safe when its folder has been synced, and a folder that is new
when the one it lies in has been.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["leaving_no_empty_folder", "make_folder", "rename", "sync", "sync_folder"]


def sync(file: Path) -> None:
    """Return when the bytes of a file are on disk."""
    _sync(file, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on disk, where the system can do that."""
    if os.name == "nt":
        return  # Windows does not open folders
    try:
        _sync(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):  # network folders that know no such thing
            raise


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name, which is safe then. What it holds must be on disk already."""
    path.replace(target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing, so that their names are safe."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


@contextmanager
def leaving_no_empty_folder(folders: Iterable[Path]) -> Iterator[None]:
    """When the block fails, remove those of the folders, and of those above them, that it made and left empty."""
    missing = {each for folder in folders for each in (folder, *folder.parents) if not each.exists()}
    try:
        yield
    except BaseException:
        for each in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it is not empty, or was not made
                each.rmdir()
        raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
