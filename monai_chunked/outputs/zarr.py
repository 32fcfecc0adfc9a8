"""Finished chunks in OME-Zarr images and labels. Nothing here imports zarr before somebody wants such an output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from monai_chunked.checks import check_chunk_size, check_positive
from monai_chunked.outputs.base import Metadata, OutputWriter, Result
from monai_chunked.outputs.files import FileOutput, check_different, make_folders
from monai_chunked.outputs.storage_chunks import channels_together, storage_chunk_size

if TYPE_CHECKING:
    from monai_chunked.outputs.zarr_places import Place
    from monai_chunked.outputs.zarr_writer import ZarrWriter

__all__ = ["Layout", "ZarrOutput"]


@dataclass(frozen=True)
class Layout:
    """How a result is stored.

    Attributes:
        chunk: size of a storage chunk, ``(C, *spatial)``.
        shard: size of a shard, ``(C, *spatial)``; ``None``: every storage chunk is a file.
        compression_level: of zstd, or ``None``.
        levels: of resolution.
        label: whether voxels are labels.
    """

    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    compression_level: int | None
    levels: int
    label: bool


class ZarrOutput(FileOutput):
    """An OME-Zarr 0.5 image or label (Zarr 3) for each image of the batch, ``<image>_<postfix>.ome.zarr``.

    Array ``"0"`` of the store is the result, ``(C, *spatial)`` in MONAI's order of axes, which are called ``c`` and
    after the axes of the world that they are closest to: ``c, x, y, z`` for what ``LoadImage`` reads. Scale and
    translation come from the metadata's ``affine``; as OME-Zarr knows no rotation, the affine itself is beside them, in
    the attribute ``monai_chunked`` of the group. It is written under the name with ``.partial`` behind it, and
    renamed when it is complete. What a run returns is the ``zarr.Array`` ``"0"``, opened for reading; a list of them
    for a batch of several images.

    ``output_dir`` may also be a URL that fsspec opens (or else obstore), such as ``"s3://bucket/folder"``. Nothing can
    be renamed there, so the store is written in place, says that it is an image only when it is complete, and is
    removed when the run fails; such a run cannot be resumed.

    Storage chunks are written once, whole, unless all of their voxels are zero. Their size is chosen by the cuts of the
    chunks, so that next to nothing has to be held in memory until one is whole, and never more than 512 MiB an image.

    Args:
        output_dir: an existing folder, or a URL.
        output_postfix, separate_folder, data_root_dir: as in MONAI's ``SaveImage``.
        label: whether voxels are labels. ``None``: they are if the result has one channel of integers.
        levels: of resolution; each has half the one before it, in every dimension. Labels and integers keep the first
            voxel of each two, others have the mean.
        storage_chunk_size: spatial size of a storage chunk of one channel in voxels. By default it is some 2 MiB that
            suit the chunks, of several channels where one is much less.
        shard_size: spatial size of a shard in voxels, a multiple of the storage chunk's, which has one channel then. By
            default every storage chunk is a file.
        compression_level: of zstd, from 1 to 22; ``None``: no compression.
        storage_options: for the URL, such as credentials.

    Raises:
        ImportError: when zarr 3 is missing.
        ValueError: when a parameter does not fit, or a result has another number of spatial dimensions than 2 or 3.
        TypeError: when Zarr cannot hold the dtype, or labels are not of integers.
        FileNotFoundError, NotADirectoryError, PermissionError: when ``output_dir`` is not a folder for files.
        FileExistsError: when a result exists and may not be replaced, or two images would have the same store.
        OSError: when its disk has less free space than results without compression need.

    Example::

        output = ZarrOutput("/results", output_postfix="labels", levels=4)
        labels = ChunkedSlidingWindowInferer(96, postprocessing="argmax", output=output)(image, network)
    """

    extension = ".ome.zarr"

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        output_postfix: str = "trans",
        separate_folder: bool = True,
        data_root_dir: str | os.PathLike[str] = "",
        *,
        label: bool | None = None,
        levels: int = 1,
        storage_chunk_size: Sequence[int] | int | None = None,
        shard_size: Sequence[int] | int | None = None,
        compression_level: int | None = 3,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(output_dir, output_postfix, separate_folder, data_root_dir)
        _zarr_writer()  # says early that zarr is missing
        self.label = label
        self.levels = check_positive("levels", levels)
        self.storage_chunk_size = storage_chunk_size
        self.shard_size = shard_size
        if compression_level is not None and not 1 <= compression_level <= 22:
            raise ValueError(f"compression_level={compression_level} must be from 1 to 22, or None")
        self.compression_level = compression_level
        self.storage_options = storage_options

    @property
    def is_remote(self) -> bool:
        """Whether ``output_dir`` is a URL."""
        return "://" in str(self.output_dir)

    def check(
        self,
        least_bytes: int,
        dtype: torch.dtype | None = None,
        metadata: Sequence[Metadata] = (),
        overwrite: bool = True,
    ) -> None:
        from monai_chunked.outputs.zarr_places import RemotePlace

        self._check_dtype(dtype)
        if not self.is_remote:
            super().check(least_bytes if self.compression_level is None else 0, dtype, metadata, overwrite)
            return
        RemotePlace(str(self.output_dir), self.storage_options).open()  # says early that a package for it is missing
        places = self._places(metadata)
        check_different([place.name for place in places])
        for place in places:
            if not overwrite and place.is_published:
                raise FileExistsError(f"{place.name} exists; overwrite=True replaces it, another output_dir keeps it")

    def create(self, result: Result) -> OutputWriter:
        self.check(prod(result.shape) * result.dtype.itemsize, result.dtype, result.metadata, result.overwrite)
        layout = self._layout(result)
        if not self.is_remote:
            make_folders(result, self.paths(result.metadata, result.name))
        return _zarr_writer().create(result, self._places(result.metadata, result.name), layout)

    def journal(self, metadata: Sequence[Metadata]) -> Path | None:
        """As for other files; ``None`` for a URL, where a run cannot be resumed."""
        return None if self.is_remote else super().journal(metadata)

    def folders(self, metadata: Sequence[Metadata]) -> list[Path]:
        return [] if self.is_remote else super().folders(metadata)

    def resume(self, result: Result) -> OutputWriter:
        layout = self._layout(result)
        return _zarr_writer().resume(result, self._places(result.metadata, result.name), layout)

    def load(self, result: Result) -> Any:
        """The array, or arrays, as a run returns them."""
        return _zarr_writer().load(result, self._places(result.metadata, result.name))

    def _check_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype is None:
            return
        try:
            torch.empty(0, dtype=dtype).numpy()
        except TypeError:
            raise TypeError(f"Zarr cannot hold {dtype}; pass float32 inputs, or choose output='cpu'") from None
        if self.label and (dtype.is_floating_point or dtype == torch.bool):
            raise TypeError(f"label=True needs a result of integers, as postprocessing='argmax' returns, not {dtype}")

    def _places(self, metadata: Sequence[Metadata], name: str = "prediction") -> list[Place]:
        from monai_chunked.outputs.zarr_places import LocalPlace, RemotePlace

        paths = self.paths(metadata, name)
        if not self.is_remote:
            return [LocalPlace(path) for path in paths]
        url, folder = str(self.output_dir).rstrip("/"), os.path.normpath(self.output_dir)
        names = [path.relative_to(folder).as_posix() for path in paths]  # FolderLayout takes the URL for a path
        return [RemotePlace(f"{url}/{each}", self.storage_options) for each in names]

    def _layout(self, result: Result) -> Layout:
        dims, channels, itemsize = len(result.cuts), result.shape[1], result.dtype.itemsize
        if dims not in (2, 3):
            raise ValueError(f"OME-Zarr images have 2 or 3 spatial dimensions, but the {result.name} has {dims}")
        if self.label and channels > 1:
            raise ValueError(f"label=True needs one channel, but the {result.name} has {channels}")
        integer = not (result.dtype.is_floating_point or result.dtype == torch.bool)
        label = integer and channels == 1 if self.label is None else self.label
        chunk = check_chunk_size(self.storage_chunk_size, dims, "storage_chunk_size")
        shard = check_chunk_size(self.shard_size, dims, "shard_size")
        if chunk is None:
            chunk = storage_chunk_size(result.cuts, channels, itemsize)
            if shard is not None:
                chunk = tuple(max(n for n in range(1, min(c, s) + 1) if s % n == 0) for c, s in zip(chunk, shard))
        if shard is not None and any(s % c for s, c in zip(shard, chunk)):
            raise ValueError(f"shard_size={shard} must be a multiple of storage_chunk_size={chunk} in every dimension")
        automatic = self.storage_chunk_size is None and shard is None
        together = channels_together(channels, chunk, itemsize) if automatic else 1
        sharded = None if shard is None else (1, *shard)
        return Layout((together, *chunk), sharded, self.compression_level, self.levels, label)


def _zarr_writer() -> type[ZarrWriter]:
    try:
        from monai_chunked.outputs.zarr_writer import ZarrWriter
    except ImportError as error:
        raise ImportError("ZarrOutput needs zarr 3: pip install 'monai-chunked[zarr]'") from error
    return ZarrWriter
