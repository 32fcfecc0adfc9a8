"""What a finished chunk goes through on its way to the output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from monai_chunked.chunks.levels import Memory
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkId

__all__ = ["Finished", "Stage"]


@dataclass(frozen=True)
class Finished:
    """A chunk that all its windows have been added to.

    Attributes:
        chunk: which one it is.
        box: its voxels.
        values: ``(C, *chunk)``.
        memory: where they are; whoever is the last to need them recycles it.
        borrowed: whether somebody else may use the memory of the values again as soon as the next chunk comes, so that
            who needs them longer must copy them.
    """

    chunk: ChunkId
    box: Box
    values: torch.Tensor
    memory: Memory
    borrowed: bool = False

    def become(self, values: torch.Tensor) -> Finished:
        """Other values in memory of their own take the place of these, whose memory can be used again."""
        self.memory.recycle()
        return replace(self, values=values, memory=Memory(values), borrowed=False)


class Stage(Protocol):
    """One step on the way. It may hold chunks back, and make others of them."""

    def put(self, finished: Finished) -> Iterable[Finished]:
        """What can go on now that this chunk is here."""
        ...

    def finish(self) -> Iterable[Finished]:
        """What was held back, when all chunks are in."""
        ...
