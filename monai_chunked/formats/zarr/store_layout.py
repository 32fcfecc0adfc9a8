"""How a result is stored in Zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from monai_chunked.formats.zarr.storage_chunks import channels_together, suitable_size
from monai_chunked.outputs.base import Result
from monai_chunked.plan.sizes import check_chunk_size

__all__ = ["StoreLayout", "store_layout"]


@dataclass(frozen=True)
class StoreLayout:
    """How a result is stored.

    Attributes:
        chunk: size of a storage chunk, ``(C, *spatial)``.
        shard: size of a shard, ``(C, *spatial)``; ``None``: every storage chunk is a file.
        compression_level: of zstd, or ``None``.
        levels: of resolution.
        label: whether voxels are labels.
        label_names: of labels, as far as they have one.
    """

    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    compression_level: int | None
    levels: int
    label: bool
    label_names: Mapping[int, str]

    def along(self, order: Sequence[int]) -> StoreLayout:
        """The same with the dimensions in another order."""
        shard = None if self.shard is None else tuple(self.shard[d] for d in order)
        return replace(self, chunk=tuple(self.chunk[d] for d in order), shard=shard)


def store_layout(
    result: Result,
    *,
    storage_chunk_size: Sequence[int] | int | None,
    shard_size: Sequence[int] | int | None,
    compression_level: int | None,
    levels: int,
    label: bool | None,
    label_names: Mapping[int, str],
) -> StoreLayout:
    """The layout of a result, by the parameters of :py:class:`ZarrOutput`.

    Raises:
        ValueError: when they do not fit the result.
    """
    dims, channels, itemsize = len(result.cuts), result.shape[1], result.dtype.itemsize
    if dims not in (2, 3):
        raise ValueError(f"OME-Zarr images have 2 or 3 spatial dimensions, but the {result.name} has {dims}")
    if label and channels > 1:
        raise ValueError(f"label=True needs one channel, but the {result.name} has {channels}")
    integer = not (result.dtype.is_floating_point or result.dtype == torch.bool)
    chunk = check_chunk_size(storage_chunk_size, dims, "storage_chunk_size")
    shard = check_chunk_size(shard_size, dims, "shard_size")
    if chunk is None:
        chunk = suitable_size(result.cuts, channels, itemsize)
        if shard is not None:
            chunk = tuple(max(n for n in range(1, min(c, s) + 1) if s % n == 0) for c, s in zip(chunk, shard))
    if shard is not None and any(s % c for s, c in zip(shard, chunk)):
        raise ValueError(f"shard_size={shard} must be a multiple of storage_chunk_size={chunk} in every dimension")
    together = channels_together(channels, chunk, itemsize) if storage_chunk_size is None and shard is None else 1
    return StoreLayout(
        (together, *chunk),
        None if shard is None else (1, *shard),
        compression_level,
        levels,
        integer and channels == 1 if label is None else label,
        label_names,
    )
