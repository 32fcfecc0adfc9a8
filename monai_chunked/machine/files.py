"""
Files: durable writes, space, folders.

Nothing else in the package asks the system to bring bytes or names to disk. A file is safe when its bytes are on disk
(:py:func:`sync`), then its name (:py:func:`rename`, or :py:func:`sync_folder` of a new file), and then the names of the
folders that were made for it (:py:func:`make_folder`).
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import FileIO, RawIOBase
from pathlib import Path
from typing import IO

import numpy as np

__all__ = [
    "ALLOCATES",
    "LONGEST_NAME",
    "allocate",
    "beside",
    "bytes_of",
    "check_folder",
    "leaving_no_empty_folder",
    "make_folder",
    "new_file",
    "read_all",
    "remove",
    "rename",
    "rename_all",
    "replace_folder",
    "restore_folder",
    "sync",
    "sync_folder",
    "write_all",
]


ALLOCATES = hasattr(os, "posix_fallocate")
"""Whether :py:func:`allocate` takes space, so that a full disk cannot end the process by a write through a map."""


LONGEST_NAME = 255
"""Bytes of the name of a file, which is the limit of most file systems."""


SYNCING_THREADS = 8
"""Files whose bytes are brought to disk at the same time, which is faster than one after the other."""


def check_folder(name: str, path: str | os.PathLike[str] | None, needed: int) -> None:
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
        folder = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
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


def sync(file: Path | IO[bytes]) -> None:
    """Return when the bytes of a file are on disk; that of a path, or one that is open."""
    if isinstance(file, Path):
        _sync(file, os.O_RDWR)
    else:
        file.flush()
        os.fsync(file.fileno())


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


def rename_all(root: Path, names: Mapping[Path, Path]) -> None:
    """Bring files in a folder to disk, then give them other names, which are safe then as are those of their folders.

    Args:
        root: the folder; its own name is safe already.
        names: of each file the one that it has from now on, in the same folder.
    """
    with ThreadPoolExecutor(SYNCING_THREADS) as threads:
        list(threads.map(sync, names))
    folders: set[Path] = set()
    for path, target in names.items():
        path.replace(target)
        folders.update(target.parents[: len(target.relative_to(root).parts)])
    for folder in folders:
        sync_folder(folder)


def replace_folder(folder: Path, target: Path, old: Path) -> None:
    """Give a folder the name that another one may have, which is removed when that is safe.

    What it holds must be on disk already. If it is not there, it has its name from a process that ended meanwhile.

    Args:
        folder: that gets the name.
        target: the name.
        old: what the other one is called in between.
    """
    if folder.is_dir():
        if os.path.lexists(target):
            remove(old)
            target.rename(old)
        rename(folder, target)
    remove(old)


def restore_folder(target: Path, old: Path) -> None:
    """Give a folder its name again, of which a process ended while it replaced it."""
    if os.path.lexists(old) and not os.path.lexists(target):
        rename(old, target)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it, if it is there. Of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def new_file(path: Path) -> FileIO:
    """An empty file of this name. A file that has it loses it, and stays as it is where it has others, or is linked to.

    Raises:
        OSError: when it cannot be made.
    """
    path.unlink(missing_ok=True)
    return FileIO(path, "x+")


def beside(path: Path, ending: str) -> Path:
    """In the same folder, the name with an ending; where that is longer than names can be, it begins as the name does.

    >>> beside(Path("results/scan.nii"), ".journal").name
    'scan.nii.journal'
    >>> name = beside(Path(249 * "x" + ".nii"), ".journal").name
    >>> len(name), name[-26:]
    (255, 'x~996dd6b307e115a8.journal')
    """
    name = path.name + ending
    if len(os.fsencode(name)) > LONGEST_NAME:
        start = path.name
        ending = f"~{blake2b(os.fsencode(path.name), digest_size=8).hexdigest()}{ending}"
        while len(os.fsencode(start + ending)) > LONGEST_NAME:
            start = start[:-1]
        name = start + ending
    return path.with_name(name)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing, so that their names are safe."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


@contextmanager
def leaving_no_empty_folder(folders: Iterable[Path]) -> Iterator[None]:
    """When the block fails, remove those of the folders, and of those above them, that it made and left empty."""
    missing = {parent for folder in folders for parent in (folder, *folder.parents) if not parent.exists()}
    try:
        yield
    except BaseException:
        for folder in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it is not empty, or was not made
                folder.rmdir()
        raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocate(file: IO[bytes], size: int) -> None:
    """Give a file its size in bytes, and the space for it where the system can tell at once that there is none."""
    file.truncate(size)
    if ALLOCATES:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def write_all(file: RawIOBase, data: memoryview) -> None:
    """Write all bytes at the place where an unbuffered file is, which may take several writes."""
    while data:
        data = data[file.write(data) :]


def read_all(file: RawIOBase, data: memoryview, path: Path) -> None:
    """Fill memory from the place where an unbuffered file is.

    Raises:
        OSError: when the file ends before.
    """
    while data:
        count = file.readinto(data)
        if not count:
            raise OSError(errno.EIO, "it is shorter than it was", str(path))
        data = data[count:]


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data
