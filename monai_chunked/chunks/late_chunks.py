"""Open chunks of a run that learns only as it goes which windows are skipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from monai_chunked.chunks.levels import Memory
from monai_chunked.chunks.open_chunks import OpenChunks, Step
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.schedule import Move

__all__ = ["LateChunks"]


class LateChunks(OpenChunks):
    """Open chunks that get memory when something is added to them.

    The schedule takes every window to be predicted. A chunk moves as it says; one that nothing was added to yet is not
    there, so that nothing is moved, and it takes no memory on any level. So what the schedule says is what a run takes
    at most.

    Args:
        as for :py:class:`OpenChunks`.
    """

    def __init__(self, *args: Any) -> None:
        self._empty: dict[ChunkId, int] = {}  # with the level where the schedule has it
        super().__init__(*args)

    def step(self, needed: Iterable[ChunkId] = ()) -> Step:
        def before() -> None:
            self._wait()
            with torch.no_grad(), self._stream():
                for chunk in needed:
                    if chunk in self._empty:
                        self._open(chunk)
            self._opened(tuple(self.levels.open_bytes))

        return Step(before, self._prepare)

    def close_chunk(self, chunk: ChunkId) -> tuple[torch.Tensor, Memory] | None:
        self._empty.pop(chunk, None)
        return super().close_chunk(chunk)

    def _open(self, chunk: ChunkId) -> None:
        if not super()._move(Move(chunk, None, self._empty.pop(chunk))):
            for move in self._schedule.displace(chunk):
                self._move(move)

    def _move(self, move: Move) -> bool:
        if move.source is None or move.chunk in self._empty:
            self._empty[move.chunk] = move.target
            return True
        return super()._move(move)
