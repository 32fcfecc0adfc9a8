"""Files: durable writes, space, folders."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "_read",
    "_write",
    "allocate",
    "check_folder",
    "leaving_no_empty_folder",
    "make_folder",
    "rename",
    "sync",
    "sync_folder",
]


def check_folder(name: str, path: Any, needed: int) -> None:
    """It can be written to, and its disk has room; ``None`` is the folder for temporary files.

    A folder for scratch must exist. One for results need not: it is created when something is written to it, so what
    counts until then is the first of its parents that exists.

    Args:
        name: of the parameter.
        path: its value.
        needed: number of bytes.
    """
    try:
        folder = Path(tempfile.gettempdir() if path is None else path)
    except TypeError:
        raise TypeError(f"{name}={path!r} must be a path") from None
    if name == "output_dir":
        folder = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, f"{name} does not exist; create it first", str(folder))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{name} is not a folder", str(folder))
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"{name} cannot be written to ({error.strerror})"
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise OSError(error.errno, reason, str(folder)) from error
        number = errno.EACCES if error.errno == errno.ENOENT else error.errno  # of folders like /proc
        raise PermissionError(number, reason, str(folder)) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = {"output_dir": "the output", "scratch_dir": "scratch"}[name]
        raise OSError(errno.ENOSPC, f"{what} needs {needed:,} bytes but {name} has {free:,} free", str(folder))


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


def allocate(file: FileIO, size: int) -> None:
    """Give a file its size in bytes, and the space for it where the system can tell at once that there is none."""
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def _write(file: FileIO, array: np.ndarray) -> None:
    data = array.reshape(-1).view(np.uint8).data
    while data:
        data = data[file.write(data) :]


def _read(file: FileIO, array: np.ndarray, path: Path) -> None:
    data = array.reshape(-1).view(np.uint8).data
    while data:
        count = file.readinto(data)
        if not count:
            raise OSError(errno.EIO, "it is shorter than it was", str(path))
        data = data[count:]
