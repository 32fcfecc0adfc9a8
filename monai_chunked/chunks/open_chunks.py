"""Open chunks of all heads, each on the level where the schedule has it. A voxel's sum is here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from monai_chunked.chunks.levels import Levels, Memory
from monai_chunked.machine.accelerator import on_stream_of
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.schedule import SCRATCH, Move

__all__ = ["OpenChunks"]


class OpenChunks:
    """Sums of predictions, until their last window is in.

    What a window needs is brought up by a thread while the network predicts it.

    A run that learns only as it goes which windows are skipped opens chunks on touch. The schedule takes every window
    to be predicted, and a chunk moves as it says. But as long as nothing was added to a chunk it is empty: nothing is
    moved, and it takes no memory on any level. So what the schedule says is what a run takes at most.

    Args:
        layout: the chunks, and what the run will hold and move.
        numbers: the windows that come, by their number in scan order over all images.
        elsewhere: the chunks that an earlier run has finished, or somebody else does; they have no place here.
        levels: where chunks are.
        in_results: ``(B, C, *spatial)`` of the heads whose chunks are added up in the result, where they stay.
        on_touch: whether a chunk gets memory when something is added to it, or else when the schedule opens it.
        opened: told at each step what is open on each level, in bytes.
    """

    def __init__(
        self,
        layout: Layout,
        numbers: range,
        elsewhere: Container[ChunkId],
        levels: Levels,
        *,
        in_results: Mapping[int, torch.Tensor],
        on_touch: bool,
        opened: Callable[[tuple[int, ...]], None],
    ) -> None:
        self.grids = layout.grids
        self.in_results = in_results
        self.levels = levels
        self._opened = opened
        self._schedule = schedule = layout.schedule()
        by_image = layout.grids[0].windows.by_image(numbers)
        self._steps = (moves for image, of_image in by_image for moves in schedule.steps(image, elsewhere, of_image))
        self._chunks: dict[ChunkId, Memory] = {}
        self._on_touch = on_touch
        self._empty: dict[ChunkId, int] = {}  # the level where the schedule has a chunk without memory
        self._arrays: dict[ChunkId, np.ndarray] = {}  # over the memory of chunks
        self._level: dict[ChunkId, int] = {}
        self._new: set[ChunkId] = set()
        self._mover = ThreadPoolExecutor(1, "monai_chunked-move") if layout.forecast.moved else None
        self._stream = on_stream_of(levels.device)
        self._moves: Sequence[Move] = ()
        self._pending: Future[None] | None = None
        self._prepare()

    @contextmanager
    def step(self, touched: Iterable[ChunkId] = ()) -> Iterator[None]:
        """Within it, all chunks that the next window touches are where it can be added to them.

        Enter it once for each head of each window, in scan order.

        Args:
            touched: the chunks that something is added to.
        """
        if self._pending is None:
            self._make(self._moves)
        else:
            self._pending.result()
        if self._empty:
            self._fill(touched)
        self._opened(tuple(self.levels.open_bytes))
        yield
        self._prepare()

    def is_open(self, chunk: ChunkId) -> bool:
        """Whether a chunk that the window touches is open. One that only skipped windows touch never is."""
        return chunk in self._chunks

    def sums(self, chunk: ChunkId) -> torch.Tensor:
        """The sums of a chunk that the window touches, ``(C, *chunk)``."""
        memory = self._chunks[chunk]
        if memory.in_result:
            return memory.tensor
        return memory.tensor.view(-1, *self.grids[chunk.head].chunk_size(chunk.position))

    def array(self, chunk: ChunkId) -> np.ndarray:
        """The sums as an array, where they are in CPU memory. It is kept for the windows to come."""
        array = self._arrays.get(chunk)
        if array is None:
            array = self._arrays[chunk] = self.sums(chunk).numpy()
        return array

    def is_new(self, chunk: ChunkId) -> bool:
        """Whether a chunk has just been opened, so that its memory holds nothing yet. Said once."""
        if chunk in self._new:
            self._new.remove(chunk)
            return True
        return False

    def close_chunk(self, chunk: ChunkId) -> tuple[torch.Tensor, Memory] | None:
        """A chunk is finished: its sums, in memory that belongs to the caller; ``None``: it never was open."""
        self._empty.pop(chunk, None)
        if chunk not in self._chunks:
            return None
        sums, memory = self.sums(chunk), self._chunks.pop(chunk)
        self._arrays.pop(chunk, None)
        self.levels.leave(self._level.pop(chunk), memory)
        return sums, memory

    def close(self) -> None:
        """The run is over, well or not."""
        if self._mover is not None:
            self._mover.shutdown(wait=True, cancel_futures=True)
        self.levels.close()

    def _prepare(self) -> None:
        """Begin to bring up what the next window touches."""
        self._moves = next(self._steps, ())
        if self._mover is not None:
            self._pending = self._mover.submit(self._make, self._moves)

    def _make(self, moves: Sequence[Move]) -> None:
        if not moves:
            return
        with torch.no_grad(), self._stream():
            displaced = [move.chunk for move in moves if not self._move(move)]
            for chunk in displaced:
                self._displace(chunk)

    def _fill(self, touched: Iterable[ChunkId]) -> None:
        """Give memory to those of the touched chunks that have none yet."""
        with torch.no_grad(), self._stream():
            for chunk in touched:
                level = self._empty.pop(chunk, None)
                if level is not None and not self._place(Move(chunk, None, level)):
                    self._displace(chunk)

    def _displace(self, chunk: ChunkId) -> None:
        """A chunk went to CPU memory for want of room on the device: make room for it there."""
        for move in self._schedule.displace(chunk):
            self._move(move)

    def _move(self, move: Move) -> bool:
        """Make a move, if there is anything to move. Returns what :py:meth:`_place` returns."""
        if self._on_touch and (move.source is None or move.chunk in self._empty):
            self._empty[move.chunk] = move.target
            return True
        return self._place(move)

    def _place(self, move: Move) -> bool:
        """Bring a chunk to its place; ``False`` if the device had no room and the chunk went to CPU memory."""
        chunk, source, target, slot = move
        size = self._schedule.size(chunk)
        if chunk.head in self.in_results:
            self._count(chunk, target, size)
            return True
        before = None if source in (None, SCRATCH) else self._chunks.pop(chunk)
        if target == SCRATCH:
            assert before is not None
            self.levels.store(slot, before, self._schedule.scratch_file)
            level = SCRATCH
        else:
            after, level = self.levels.open(target, size)
            if source is None:
                self._new.add(chunk)
            elif before is None:
                self.levels.restore(slot, after)
            else:
                after.tensor.copy_(before.tensor)
            self._chunks[chunk] = after
        if before is not None:
            self._arrays.pop(chunk, None)
            self.levels.leave(self._level[chunk], before)
            before.recycle()
        self._level[chunk] = level
        return level == target

    def _count(self, chunk: ChunkId, level: int, size: int) -> None:
        """A chunk in the result opens, or would move: it counts where the schedule has it, and stays where it is."""
        if chunk not in self._chunks:
            place = self.in_results[chunk.head][chunk.image][(slice(None), *self.grids[chunk.head].box(chunk.position))]
            self._chunks[chunk] = Memory(place, in_result=True)
        else:
            self.levels.open_bytes[self._level[chunk]] -= size
        self.levels.open_bytes[level] += size
        self._level[chunk] = level
