"""How a result is stored in Zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
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

    def along(self, order: Sequence[int]) -> Layout:
        """With the dimensions in another order."""
        shard = None if self.shard is None else tuple(self.shard[d] for d in order)
        return replace(self, chunk=tuple(self.chunk[d] for d in order), shard=shard)
