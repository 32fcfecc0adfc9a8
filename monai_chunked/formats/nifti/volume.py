"""
The files of one image that becomes a NIfTI file.

This is explicit file I/O, not a map. The file is written front to back when all chunks are there, span after span;
until then they are kept beside it, see :py:mod:`.spans`. The kept spans lie in a file of their own with the last one
first: what has gone over to the NIfTI file is cut off its end. So both together never take much more space than the
result, and their sizes tell how far a run got that was killed meanwhile.
"""

from __future__ import annotations

import errno
import gzip
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.openers import Opener
from tqdm import tqdm

from monai_chunked.formats.nifti.spans import Span, SpanLayout
from monai_chunked.machine.files import (
    allocate,
    beside,
    bytes_of,
    new_file,
    read_all,
    rename,
    sync,
    sync_folder,
    write_all,
)
from monai_chunked.outputs.file_output import partial_path
from monai_chunked.plan.boxes import Box, sizes

__all__ = ["CHUNKS", "PLAIN", "NiftiVolume"]


logger = logging.getLogger(__name__)


CHUNKS, PLAIN = ".chunks", ".plain"
"""Endings of the files where chunks are kept, and where the voxels of a ``.nii.gz`` are put in order."""


MOVED_BYTES = 2**27
"""Bytes of a file that are put in order before their space in the file of chunks is given back."""


COPY_BYTES = 2**20
"""Bytes that are compressed at a time."""


PROGRESS_DELAY = 3
"""Seconds until finishing a file shows its progress."""


class NiftiVolume:
    """The files of one image.

    Args:
        path: of the file when it is complete.
        shape: ``(C, *spatial)``.
        dtype: in the file.
        header: all bytes before the voxels.
        layout: where voxels are kept until the file is written.
    """

    def __init__(
        self, path: Path, *, shape: tuple[int, ...], dtype: np.dtype, header: bytes, layout: SpanLayout
    ) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self.header = header
        self.layout = layout
        self.compressed = path.suffix == ".gz"
        self.chunks = beside(path, CHUNKS)
        self.partial = beside(path, PLAIN) if self.compressed else partial_path(path)
        self.bytes = prod(shape) * dtype.itemsize
        self._file: FileIO | None = None
        self._recorded = False

    def create(self) -> None:
        """Start afresh. What an earlier run left unfinished is gone; what it finished stays until this one is through.

        A power cut leaves the files their names and sizes.
        """
        logger.info("writing %s", self.path)
        with self._telling(self.chunks):
            self._file = new_file(self.chunks)
            allocate(self._file, self.bytes)
            sync(self._file)
        with self._telling(self.partial):
            with new_file(self.partial) as file:
                write_all(file, memoryview(self.header))
                sync(file)
            sync_folder(self.path.parent)

    def resume(self) -> bool:
        """Open what an earlier run left. Returns whether it had begun to finish the file."""
        self._recorded = True
        if self.chunks.exists():
            moved = self.bytes - self.chunks.stat().st_size
            ends = (span.offset + span.count for span in self.layout.spans())
            if moved != 0 and moved not in (end * self.dtype.itemsize for end in ends):
                raise self._wrong_size(self.chunks)
            self._check_size(self.partial, moved, at_least=True)
            self._file = FileIO(self.chunks, "r+")
            return moved > 0
        if self.partial.exists():
            self._check_size(self.partial, self.bytes)
        elif not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.chunks))
        elif not self.compressed:
            self._check_size(self.path, self.bytes)
        return True

    def write(self, box: Box, chunk: np.ndarray) -> None:
        """Keep a chunk ``(C, *chunk)``."""
        with self._telling(self.chunks):
            for piece in self.layout.of_chunk(box):
                values = chunk[self.layout.in_chunk(piece, box)].T
                write_all(self._at(piece.span, piece.offset), bytes_of(np.ascontiguousarray(values, self.dtype)))

    def read(self, box: Box) -> np.ndarray:
        """A chunk ``(C, *chunk)``."""
        chunk = np.empty((self.shape[0], *sizes(box)), self.dtype)
        for piece in self.layout.of_chunk(box):
            values = np.empty(piece.size[::-1], self.dtype)
            read_all(self._at(piece.span, piece.offset), bytes_of(values), self.chunks)
            chunk[self.layout.in_chunk(piece, box)] = values.T
        return chunk

    def flush(self) -> None:
        self._recorded = True
        if self._file is not None:
            with self._telling(self.chunks):
                sync(self._file)

    def complete(self) -> None:
        """Bring the file to its name when all chunks are written, also where that has failed half-way before.

        The ``.plain`` of a ``.nii.gz`` stays.
        """
        if self.chunks.exists():
            self._put_in_order()
        if self.partial.exists():
            if self.compressed:
                self._compress()
            else:
                rename(self.partial, self.path)

    def finish(self) -> np.ndarray:
        """Complete the file and map its voxels: ``(C, *spatial)``."""
        self.complete()
        if not self.partial.exists():
            return self.load()
        voxels = self._map(self.partial)
        self.partial.unlink()
        return voxels

    def load(self) -> np.ndarray:
        """The voxels of the complete file."""
        if not self.compressed:
            self._check_size(self.path, self.bytes)
            return self._map(self.path)
        with tempfile.TemporaryFile(dir=self.path.parent) as plain, self._telling(self.path):
            try:
                with gzip.open(self.path) as source:
                    shutil.copyfileobj(source, plain, COPY_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise OSError(errno.EIO, f"it is damaged ({error})", str(self.path)) from error
            if plain.tell() != len(self.header) + self.bytes:
                raise self._wrong_size(self.path)
            plain.flush()
            return self._map(plain)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        self.close()
        if self._file is not None:
            self.chunks.unlink(missing_ok=True)
            self.partial.unlink(missing_ok=True)

    def _put_in_order(self) -> None:
        """Move span after span to the file."""
        assert self._file is not None
        if self._recorded:  # otherwise no run goes on with it
            self.flush()
        moved = self.bytes - os.fstat(self._file.fileno()).st_size
        spans = [span for span in self.layout.spans() if span.offset * self.dtype.itemsize >= moved]
        with self._telling(self.partial):
            os.truncate(self.partial, len(self.header) + moved)
        with FileIO(self.partial, "r+") as target, ThreadPoolExecutor(1) as reader, self._progress() as bar:
            target.seek(0, os.SEEK_END)
            following = reader.submit(self._ordered, spans[0]) if spans else None
            for after in [*spans[1:], None][: len(spans)]:
                assert following is not None
                voxels = following.result()
                following = reader.submit(self._ordered, after) if after else None
                with self._telling(self.partial):
                    write_all(target, bytes_of(voxels))
                    written = target.tell() - len(self.header)
                    if written - moved >= MOVED_BYTES or not after:
                        sync(target)
                        moved = written
                        self._file.truncate(self.bytes - moved)
                bar.update(voxels.nbytes)
        self.close()
        self.chunks.unlink()
        sync_folder(self.chunks.parent)  # so that it is gone before the file gets its name

    def _ordered(self, span: Span) -> np.ndarray:
        kept = np.empty(span.count, self.dtype)
        read_all(self._at(span), bytes_of(kept), self.chunks)
        voxels = np.empty((span.stop - span.start, *self.layout.size[: self.layout.axis][::-1]), self.dtype)
        for piece in self.layout.of_span(span):
            *before, along = piece.box
            index = (slice(along.start - span.start, along.stop - span.start), *reversed(before))
            size = piece.size[::-1]
            voxels[index] = kept[piece.offset : piece.offset + prod(size)].reshape(size)
        return voxels

    def _at(self, span: Span, offset: int = 0) -> FileIO:
        """The file of the kept spans, at a voxel."""
        assert self._file is not None
        self._file.seek(self.bytes - (span.offset + span.count - offset) * self.dtype.itemsize)
        return self._file

    def _compress(self) -> None:
        target = partial_path(self.path)
        level = Opener.default_compresslevel
        try:
            with self._telling(target), BufferedWriter(new_file(target)) as file, self.partial.open("rb") as plain:
                with gzip.GzipFile("", "wb", level, file, mtime=0) as packed, self._progress() as bar:
                    while data := plain.read(COPY_BYTES):
                        packed.write(data)
                        bar.update(len(data))
                sync(file)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        rename(target, self.path)

    def _map(self, file: Path | IO[bytes]) -> np.ndarray:
        channels, *size = self.shape
        mapped = np.memmap(file, self.dtype, "r+", len(self.header), (*size, channels), order="F")
        return np.moveaxis(mapped, -1, 0)

    def _progress(self) -> tqdm:
        return tqdm(total=self.bytes, unit="B", unit_scale=True, desc=self.path.name, delay=PROGRESS_DELAY, leave=False)

    def _check_size(self, path: Path, voxel_bytes: int, at_least: bool = False) -> None:
        surplus = path.stat().st_size - len(self.header) - voxel_bytes
        if surplus < 0 or (surplus > 0 and not at_least):
            raise self._wrong_size(path)

    def _wrong_size(self, path: Path) -> OSError:
        whole = len(self.header) + self.bytes
        return OSError(errno.EIO, f"its size does not belong to a result of {whole:,} bytes", str(path))

    @contextmanager
    def _telling(self, path: Path) -> Iterator[None]:
        """Name the file, and what space would be enough, in errors of the system."""
        try:
            yield
        except OSError as error:
            if error.filename is not None and error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise
            whole = len(self.header) + self.bytes
            raise OSError(error.errno, f"{error.strerror}; the whole output is {whole:,} bytes", str(path)) from error
