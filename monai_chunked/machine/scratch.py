"""Scratch files, which have no name."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_chunked.machine.files import check_folder

__all__ = ["ScratchFile", "_scratch"]


def _scratch(size: int, folder: str | os.PathLike[str] | None) -> mmap.mmap:
    """A file without a name, so that nothing is left of it whatever ends the process; all its space is taken now."""
    check_folder("scratch_dir", folder, size)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return mmap.mmap(file.fileno(), size)


class ScratchFile:
    """One preallocated file without a name, so that nothing is left of it whatever ends the process.

    Args:
        size: of the file in bytes.
        folder: where it is; the folder for temporary files by default.

    Raises:
        OSError: when the folder is missing, cannot be written to, or has less free space than ``size``.
    """

    def __init__(self, size: int, folder: str | os.PathLike[str] | None = None) -> None:
        check_folder("scratch_dir", folder, size)
        self.folder = Path(tempfile.gettempdir() if folder is None else folder)
        self._file: Any = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
        self._file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, size)

    def write(self, slot: int, chunk: torch.Tensor) -> None:
        self._file.seek(slot)
        data = chunk.numpy().view(np.uint8).data
        while data:
            data = data[self._file.write(data) :]

    def read(self, slot: int, chunk: torch.Tensor) -> None:
        self._file.seek(slot)
        data = chunk.numpy().view(np.uint8).data
        while data:
            count = self._file.readinto(data)
            if not count:
                raise OSError(errno.EIO, "the scratch file ends too early", str(self.folder))
            data = data[count:]

    def close(self) -> None:
        self._file.close()
