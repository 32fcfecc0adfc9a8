"""Files that are damaged or not complete: one sentence, with the path, whoever reads them."""

from __future__ import annotations

import errno
import gzip
import itertools
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from monai_chunked.machine.optional import is_of

__all__ = ["naming", "read_stored"]


DAMAGE = (RuntimeError, ValueError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, zlib.error)
"""What decompressing raises."""


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Errors of a damaged NIfTI or NumPy file become one sentence with its path."""
    try:
        yield
    except (ImageFileError, HeaderDataError) as error:
        raise OSError(errno.EIO, f"it is no NIfTI file, or a damaged one ({_line(error)})", path) from error
    except (EOFError, zlib.error) as error:
        raise OSError(errno.EIO, f"it is cut off or damaged ({_line(error)})", path) from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, f"it is cut off or damaged ({_line(error)})", path) from error


def read_stored(array: Any, index: tuple[slice, ...]) -> np.ndarray:
    """A part of anything with slicing, given a slice for each dimension.

    Raises:
        OSError: when a storage chunk of Zarr cannot be decompressed.
    """
    try:
        return np.asarray(array[index])
    except DAMAGE as error:
        chunk = _damaged_chunk(array, index) if is_of(array, "zarr", "Array") else None
        if chunk is None:
            raise
        raise OSError(errno.EIO, f"its storage chunk {chunk} is damaged ({error})", str(array.store)) from error


def _damaged_chunk(array: Any, index: tuple[slice, ...]) -> str | None:
    """The first storage chunk under a part of an array that cannot be read, as its store calls it."""
    unit = array.shards or array.chunks
    indices = [range(size)[part] for part, size in zip(index, array.shape)]
    touched = [sorted({k // length for k in along}) for along, length in zip(indices, unit)]
    for position in itertools.product(*touched):
        try:
            array[tuple(slice(k * length, (k + 1) * length) for k, length in zip(position, unit))]
        except DAMAGE:
            return f"{array.path}/{array.metadata.encode_chunk_key(position)}".strip("/")
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
