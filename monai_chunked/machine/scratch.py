"""Files for what does not fit in memory while a run lasts. They have no name, so nothing is left of them."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import torch

from monai_chunked.machine.files import allocate, bytes_of, check_folder, read_all, write_all

__all__ = ["ScratchFile", "scratch_map"]


def scratch_map(size: int, folder: str | os.PathLike[str] | None) -> mmap.mmap:
    """A file without a name, so that nothing is left of it whatever ends the process; all its space is taken now."""
    check_folder("scratch_dir", folder, size)
    with tempfile.TemporaryFile(dir=folder) as file:
        allocate(file, size)
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
        self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  open until close()
        allocate(self._file, size)

    def write(self, slot: int, chunk: torch.Tensor) -> None:
        """Keep a contiguous chunk that is in CPU memory, from this byte of the file on."""
        self._file.seek(slot)
        write_all(self._file, bytes_of(chunk.view(torch.uint8).numpy()))

    def read(self, slot: int, chunk: torch.Tensor) -> None:
        """Fill a contiguous chunk in CPU memory with what is there."""
        self._file.seek(slot)
        read_all(self._file, bytes_of(chunk.view(torch.uint8).numpy()), self.folder)

    def close(self) -> None:
        """Its space is free again."""
        self._file.close()
