"""What a ``.npy`` file says before its voxels."""

from __future__ import annotations

import errno
import io
import os
from math import prod
from pathlib import Path

from numpy.lib import format as npy

from monai_chunked.outputs.base import Result
from monai_chunked.outputs.files import numpy_dtype

__all__ = ["check_file", "header"]


def header(result: Result) -> bytes:
    """All that stands before the voxels ``(B, C, *spatial)`` of a result."""
    memory = io.BytesIO()
    descr = npy.dtype_to_descr(numpy_dtype(result.dtype))
    npy.write_array_header_2_0(memory, {"descr": descr, "fortran_order": False, "shape": result.shape})
    return memory.getvalue()


def check_file(path: Path, result: Result) -> None:
    """It is a file of this result, and whole.

    Raises:
        OSError: when it is not.
    """
    start = header(result)
    expected = len(start) + prod(result.shape) * result.dtype.itemsize
    with path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != expected or file.read(len(start)) != start:
            reason = f"it is not the result of shape {result.shape} that was written ({found:,} of {expected:,} bytes)"
            raise OSError(errno.EIO, reason, str(path))
