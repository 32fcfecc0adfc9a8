"""
Finished chunks in a ``.npy`` file.

The file is written through explicit file I/O where a chunk lies in long runs: pages written through a map count as
memory of the process for as long as they stay resident, and a full disk ends it with a bus error instead of an
exception. Where it lies in very many short runs, one system call for each takes far longer than copying; these go
through a map of one channel at a time, where the file has got its space beforehand.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO, FileIO
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from monai_chunked.machine.files import (
    ALLOCATES,
    allocate,
    check_folder,
    make_folder,
    new_file,
    read_all,
    rename,
    sync,
    sync_folder,
    write_all,
)
from monai_chunked.outputs.base import Expected, Metadata, Result, ResumableWriter
from monai_chunked.outputs.file_output import FileOutput, numpy_dtype, partial_path
from monai_chunked.plan.boxes import Box, sizes

__all__ = ["NumpyOutput"]


logger = logging.getLogger(__name__)


SHORT_RUN = 4096
"""Bytes; a chunk that lies in shorter runs is copied into a map of the file."""


class NumpyOutput(FileOutput):
    """A memory-mapped ``.npy`` file of shape ``(B, C, *spatial)``, returned as a tensor over the map.

    It has the name that ``SaveImage`` would give the first image of the batch, and that of the head where the network
    has several. Without names of images and where a run cannot be resumed it is called ``prediction-0001.npy``, with
    the number that is free. Until it is complete, ``.partial`` is appended.

    Args:
        output_dir: the folder, which is created if it is missing. By default the result is in a file without a name in
            the folder for temporary files, which is gone with the tensor, and with the process whatever ends it.
        output_postfix, separate_folder, data_root_dir: as in MONAI's ``SaveImage``.

    Raises:
        TypeError: when the result is of ``torch.bfloat16``, which a ``.npy`` file cannot hold.
        NotADirectoryError, PermissionError, FileExistsError, OSError: as :py:class:`FileOutput`.
    """

    extension = ".npy"
    numbers_unnamed = True

    def __init__(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        output_postfix: str = "trans",
        separate_folder: bool = True,
        data_root_dir: str | os.PathLike[str] = "",
    ) -> None:
        self.temporary = output_dir is None
        super().__init__(output_dir or "", output_postfix, separate_folder, data_root_dir)

    def check(self, expected: Expected) -> None:
        if expected.dtype == torch.bfloat16:
            raise TypeError("a .npy file cannot hold torch.bfloat16; pass float32 inputs, or choose output='cpu'")
        if self.temporary:
            check_folder("output_dir", None, expected.least_bytes)
        else:
            named = tuple(image for image in _first(expected.metadata) if _is_named(image))
            super().check(replace(expected, metadata=named))

    def folders(self, metadata: Sequence[Metadata]) -> list[Path]:
        return [] if self.temporary else super().folders(metadata[:1])

    def journal(self, metadata: Sequence[Metadata]) -> Path | None:
        return None if self.temporary else super().journal(_first(metadata))

    def create(self, result: Result) -> ResumableWriter:
        path = self._only(result) if not self.temporary and _is_named(result.metadata[0]) else None
        self.check_result(result)
        if self.temporary:
            return _NumpyWriter.create(None, tempfile.TemporaryFile(buffering=0), result)
        folder = Path(self.output_dir) if path is None else path.parent
        make_folder(folder)
        if path is not None:
            return _NumpyWriter.create(path, new_file(partial_path(path)), result)
        return _NumpyWriter.create(*_reserve(folder, result.name), result)

    def resume(self, result: Result) -> ResumableWriter:
        path = self._only(result)
        if path.exists() and not partial_path(path).exists():
            _check_file(path, result)
            return _NumpyWriter(path, FileIO(path, "r"), result, complete=True)
        _check_file(partial_path(path), result)
        return _NumpyWriter(path, FileIO(partial_path(path), "r+"), result)

    def load(self, result: Result) -> torch.Tensor:
        path = self._only(result)
        _check_file(path, result)
        return torch.from_numpy(np.load(path, mmap_mode="r+"))

    def _only(self, result: Result) -> Path:
        return self.paths(_first(result.metadata), result.name)[0]


class _NumpyWriter(ResumableWriter):
    """Writes to a file that has its header already.

    Args:
        path: of the complete file; ``None``: it has no name.
        file: its ``.partial``, or the file if it is complete.
        result: that the file holds.
        complete: whether it holds all of it.
    """

    def __init__(self, path: Path | None, file: FileIO, result: Result, complete: bool = False) -> None:
        self.path = path
        self.partial = None if path is None else partial_path(path)
        self.name = str(self.partial or tempfile.gettempdir())  # a file without a name is told by its folder
        self.file = file
        self.shape = result.shape
        self.dtype = numpy_dtype(result.dtype)
        self.start = len(_header(result))
        self.bytes = prod(self.shape) * self.dtype.itemsize
        self.resumable = result.resumable
        self.complete = complete

    @classmethod
    def create(cls, path: Path | None, file: FileIO, result: Result) -> _NumpyWriter:
        """Start the file. A power cut leaves it its name and size."""
        logger.info("writing %s", path or "a file without a name")
        writer = cls(path, file, result)
        writer.resumable = False
        try:
            with writer._telling():
                write_all(file, memoryview(_header(result)))
                allocate(file, writer.start + writer.bytes)
                if path is not None:
                    sync(file)
                    sync_folder(path.parent)
        except BaseException:
            writer.abandon()
            raise
        writer.resumable = result.resumable
        return writer

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        array = chunk.detach().cpu().contiguous().numpy()
        if self._in_short_runs(box):
            for channel, target in enumerate(self._maps(image, box)):
                target[...] = array[channel]
            return
        for offset, at in self._runs(image, box):
            self.file.seek(offset)
            with self._telling():
                write_all(self.file, memoryview(array[None][at]).cast("B"))

    def read(self, image: int, box: Box) -> torch.Tensor:
        array = np.empty((1, self.shape[1], *sizes(box)), self.dtype)
        if self._in_short_runs(box):
            for channel, source in enumerate(self._maps(image, box)):
                array[0, channel] = source
            return torch.from_numpy(array[0])
        for offset, at in self._runs(image, box):
            self.file.seek(offset)
            read_all(self.file, memoryview(array[at]).cast("B"), Path(self.name))
        return torch.from_numpy(array[0])

    def flush(self, last: bool = False) -> None:
        with self._telling():
            sync(self.file)

    def finish(self) -> torch.Tensor:
        if self.path is None or self.partial is None:
            mapped = np.memmap(self.file, self.dtype, "r+", self.start, self.shape)
            self.file.close()  # the map keeps it
            return torch.from_numpy(mapped)
        if not self.complete:
            self.flush()
        self.file.close()
        if not self.complete:
            rename(self.partial, self.path)
        return torch.from_numpy(np.load(self.path, mmap_mode="r+"))

    def abandon(self) -> None:
        self.file.close()
        if self.partial is not None and not self.resumable:
            self.partial.unlink(missing_ok=True)

    def _in_short_runs(self, box: Box) -> bool:
        if not ALLOCATES:
            return False
        lengths = sizes(box)
        cut = max((d for d, size in enumerate(self.shape[2:]) if lengths[d] < size), default=0)
        return prod(lengths[cut:]) * self.dtype.itemsize < SHORT_RUN

    def _maps(self, image: int, box: Box) -> Iterator[np.ndarray]:
        """Maps of a chunk in the file, channel after channel; each goes when nobody holds it any more."""
        first, *others = box
        row = prod(self.shape[3:])
        for channel in range(self.shape[1]):
            at = ((image * self.shape[1] + channel) * self.shape[2] + first.start) * row
            size = (first.stop - first.start, *self.shape[3:])
            mapped = np.memmap(self.file, self.dtype, "r+", self.start + at * self.dtype.itemsize, size)
            yield mapped[(slice(None), *others)]

    def _runs(self, image: int, box: Box) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Parts of a chunk that are contiguous in the file: the byte there, and the index in ``(1, C, *chunk)``."""
        index = (slice(image, image + 1), slice(0, self.shape[1]), *box)
        lengths = sizes(index)
        # all dimensions behind the last one that the chunk cuts
        cut = max((d for d, size in enumerate(self.shape) if lengths[d] < size), default=0)
        strides = [prod(self.shape[d + 1 :]) for d in range(len(self.shape))]
        for at in itertools.product(*map(range, lengths[:cut])):
            first = sum((part.start + k) * stride for part, k, stride in zip(index, (*at, *[0] * len(index)), strides))
            yield self.start + first * self.dtype.itemsize, at

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Name the file, and what space would be enough, in errors of the system."""
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror}; the whole output is {self.bytes:,} bytes"
            raise OSError(error.errno, reason, self.name) from error


def _first(metadata: Sequence[Metadata]) -> list[Metadata]:
    """The image that names the file of a batch; the file of several time points has no number of one."""
    several = len(metadata) > 1
    return [{key: image[key] for key in image if not (several and key == "patch_index")} for image in metadata[:1]]


def _is_named(metadata: Metadata) -> bool:
    return bool(metadata.get("filename_or_obj"))


def _reserve(folder: Path, name: str) -> tuple[Path, FileIO]:
    """Open the file of a new output under a name that no other run takes, also in another thread or process."""
    name = re.sub(r"[^\w.-]+", "_", name)[:50]
    for number in itertools.count(1):
        path = folder / f"{name}-{number:04d}.npy"
        try:
            file = FileIO(partial_path(path), "x+")
        except FileExistsError:
            continue
        if not path.exists():
            return path, file
        file.close()
        partial_path(path).unlink()
    raise AssertionError("unreachable")


def _header(result: Result) -> bytes:
    """All that stands in a file before the voxels ``(B, C, *spatial)`` of a result."""
    memory = BytesIO()
    descr = npy.dtype_to_descr(numpy_dtype(result.dtype))
    npy.write_array_header_2_0(memory, {"descr": descr, "fortran_order": False, "shape": result.shape})
    return memory.getvalue()


def _check_file(path: Path, result: Result) -> None:
    """Check that a file holds this result, and all of it.

    Raises:
        OSError: when it is not.
    """
    start = _header(result)
    expected = len(start) + prod(result.shape) * result.dtype.itemsize
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected or file.read(len(start)) != start:
            reason = f"it is not the result of shape {result.shape} that was written ({size:,} of {expected:,} bytes)"
            raise OSError(errno.EIO, reason, str(path))
