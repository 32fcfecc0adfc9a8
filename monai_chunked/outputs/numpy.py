"""
Finished chunks in a ``.npy`` file.

The file is written through explicit file I/O, not through a map: pages written through a map count as memory of the
process for as long as they stay resident, and a full disk ends it with a bus error instead of an exception.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from io import FileIO
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from monai_chunked.checks import check_folder
from monai_chunked.outputs.base import Metadata, Output, OutputWriter, Result
from monai_chunked.plan import Box

__all__ = ["NumpyOutput"]

logger = logging.getLogger(__name__)


class NumpyOutput(Output):
    """A memory-mapped ``.npy`` file of shape ``(B, C, *spatial)``, returned as a tensor over the map.

    The file is called ``prediction-0001.npy`` (with the number that is free, and the name of the output where a network
    has several) and ``prediction-0001.npy.partial`` until it is complete.

    Args:
        output_dir: an existing folder. By default a temporary one, removed when the tensor is gone.

    Raises:
        FileNotFoundError: when ``output_dir`` does not exist.
        NotADirectoryError: when it is something else than a folder.
        PermissionError: when it cannot be written to.
        OSError: when its disk has less free space than the output needs.
    """

    def __init__(self, output_dir: str | os.PathLike[str] | None = None) -> None:
        self.output_dir = output_dir

    def check(
        self,
        least_bytes: int,
        dtype: torch.dtype | None = None,
        metadata: Sequence[Metadata] = (),
        overwrite: bool = True,
    ) -> None:
        if dtype == torch.bfloat16:
            raise TypeError("a .npy file cannot hold torch.bfloat16; pass float32 inputs, or choose output='cpu'")
        check_folder("output_dir", self.output_dir, least_bytes)

    def create(self, result: Result) -> OutputWriter:
        name, shape, dtype = result.name, result.shape, result.dtype
        self.check(prod(shape) * dtype.itemsize, dtype)
        if self.output_dir is not None:
            return _NumpyWriter(Path(self.output_dir), name, shape, dtype)
        folder = tempfile.mkdtemp(prefix="monai_chunked-")
        return _NumpyWriter(Path(folder), name, shape, dtype, temporary=True)


class _NumpyWriter(OutputWriter):
    def __init__(
        self, folder: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype, temporary: bool = False
    ) -> None:
        self.shape = shape
        self.dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self.temporary = temporary
        self.path, self.file = _reserve(folder, name)
        logger.info("writing %s", self.path)
        try:
            header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
            npy.write_array_header_2_0(self.file, header)
            self.start = self.file.tell()
            self.file.truncate(self.start + prod(shape) * self.dtype.itemsize)
        except OSError as error:
            self.abandon()
            raise self._told(error) from error
        except BaseException:
            self.abandon()
            raise

    @property
    def partial(self) -> Path:
        return _partial(self.path)

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        index = (slice(image, image + 1), slice(0, self.shape[1]), *box)
        array = chunk.detach().cpu().contiguous().numpy()[None]
        # the longest runs that are contiguous in the file: all dimensions behind the last one that the chunk cuts
        cut = max((d for d, size in enumerate(self.shape) if array.shape[d] < size), default=0)
        strides = [prod(self.shape[d + 1 :]) for d in range(len(self.shape))]
        for at in itertools.product(*(range(size) for size in array.shape[:cut])):
            offset = sum((s.start + k) * stride for s, k, stride in zip(index, (*at, *[0] * len(index)), strides))
            self.file.seek(self.start + offset * self.dtype.itemsize)
            self._write(memoryview(array[at]).cast("B"))

    def _write(self, data: memoryview) -> None:
        while data:
            try:
                data = data[self.file.write(data) :]
            except OSError as error:
                raise self._told(error) from error

    def _told(self, error: OSError) -> OSError:
        size = prod(self.shape) * self.dtype.itemsize
        return OSError(error.errno, f"{error.strerror}; the whole output is {size:,} bytes", str(self.partial))

    def finish(self) -> torch.Tensor:
        self.file.close()
        self.partial.replace(self.path)
        mapped = np.load(self.path, mmap_mode="r+")
        if self.temporary:
            weakref.finalize(mapped, _remove, self.path.parent, os.getpid())
        return torch.from_numpy(mapped)

    def abandon(self) -> None:
        self.file.close()
        self.partial.unlink(missing_ok=True)
        if self.temporary:
            shutil.rmtree(self.path.parent, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _reserve(folder: Path, name: str) -> tuple[Path, FileIO]:
    """Open the file of a new output under a name that no other run takes, also in another thread or process."""
    name = re.sub(r"[^\w.-]+", "_", name)[:50]
    for number in itertools.count(1):
        path = folder / f"{name}-{number:04d}.npy"
        try:
            file = FileIO(_partial(path), "x")
        except FileExistsError:
            continue
        if not path.exists():
            return path, file
        file.close()
        _partial(path).unlink()
    raise AssertionError("unreachable")


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child holds a copy of the tensor, but the file is not its own
        shutil.rmtree(folder, ignore_errors=True)
