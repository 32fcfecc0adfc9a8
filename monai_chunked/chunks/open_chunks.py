"""The memory of open chunks: on the device, in CPU memory, in a scratch file; moved as the schedule says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch

from monai_chunked.machine.pages import ChunkMemory
from monai_chunked.machine.scratch import ScratchFile
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH, Key, Move
from monai_chunked.plan.sizes import format_bytes

__all__ = ["Placement"]


class Placement:
    """Open chunks, each where the schedule has it.

    What a window needs is brought up by a thread while the network predicts it.

    Args:
        layout: the chunks, and what the run will hold and move.
        done: for each image, the chunks that an earlier run has finished; they have no place here.
        device: where predictions are.
        dtype: of the sums.
        reuse: whether the memory of a finished chunk may be used again.
        scratch_dir: the folder of the scratch file.

    Attributes:
        in_place: the outputs of the network whose open chunks lie in the result. They are counted here, and never move.
        open_bytes: bytes of open chunks on each level.
        written, read: bytes to and from scratch so far.
    """

    def __init__(
        self,
        layout: Layout,
        done: Sequence[Container[Key]],
        device: torch.device,
        dtype: torch.dtype,
        reuse: bool = True,
        scratch_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.in_place: set[int] = set()
        self.open_bytes = [0, 0, 0]
        self.written = self.read = 0
        forecast = layout.forecast
        self._schedule = schedule = layout.schedule()
        self._steps = (moves for keys in done for moves in schedule.steps(keys))
        self._dtype = dtype
        self._device = device
        self._memory: ChunkMemory | None = None
        if reuse and ChunkMemory.supported():
            self._memory = ChunkMemory(dtype, forecast.peak[CPU], layout.largest_chunk())
        self._chunks: dict[Key, torch.Tensor] = {}
        self._empty: set[Key] = set()
        self._in_place: dict[Key, int] = {}
        self._scratch_dir = scratch_dir
        self._scratch: ScratchFile | None = None
        if forecast.scratch_file:
            self._scratch = ScratchFile(forecast.scratch_file, scratch_dir)
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._mover = ThreadPoolExecutor(1, "monai_chunked-move") if forecast.moved else None
        self._pending: Future[None] | None = None
        self._moves: list[Move] = []

    def prepare(self) -> None:
        """Begin to bring up what the next window touches. Call it first, and when a window is added and finished."""
        self._moves = next(self._steps, [])
        if self._mover is not None:
            self._pending = self._mover.submit(self._make, self._moves)

    def wait(self) -> None:
        """Return when the next window can be added."""
        if self._pending is None:
            self._make(self._moves)
        else:
            self._pending.result()

    def get(self, key: Key) -> torch.Tensor:
        """An open chunk that the window touches, flat."""
        return self._chunks[key]

    def is_empty(self, key: Key) -> bool:
        """Whether a chunk has just been opened, so that its memory holds nothing yet. Said once."""
        if key in self._empty:
            self._empty.remove(key)
            return True
        return False

    def release(self, key: Key) -> torch.Tensor:
        """A chunk is finished, and open no more. It belongs to the caller until it is recycled."""
        chunk = self._chunks.pop(key)
        self._count_out(chunk)
        return chunk

    def release_in_place(self, key: Key) -> None:
        """A chunk in the result is finished."""
        self.open_bytes[self._in_place.pop(key)] -= self._schedule.size(key)

    def recycle(self, chunk: torch.Tensor) -> None:
        """The memory of a released chunk can be used again."""
        if self._memory is not None and self._level(chunk) == CPU:
            self._memory.recycle(chunk)

    def close(self) -> None:
        """The run is over, well or not."""
        if self._mover is not None:
            self._mover.shutdown(wait=True, cancel_futures=True)
        if self._scratch is not None:
            self._scratch.close()

    def _make(self, moves: list[Move]) -> None:
        with torch.no_grad(), nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            displaced = [move.key for move in moves if not self._move(move)]
            for key in displaced:
                for move in self._schedule.displace(key):
                    self._move(move)

    def _move(self, move: Move) -> bool:
        """Make a move; ``False`` if the device had no room and the chunk went to CPU memory."""
        key, source, target, slot = move
        size = self._schedule.size(key)
        if key[0] in self.in_place:
            self._in_place[key] = target
            self.open_bytes[target] += size
            if source is not None:  # not foreseen, and nothing but a number
                self.open_bytes[source] -= size
            return True
        before = None if source in (None, SCRATCH) else self._chunks.pop(key)
        if target == SCRATCH:
            assert before is not None
            if self._scratch is None:  # not foreseen: the device turned out to have less room than it said
                self._scratch = ScratchFile(self._schedule.scratch_file, self._scratch_dir)
            self._scratch.write(slot, before.cpu())
            self.written += size
            self.open_bytes[SCRATCH] += size
            self._leave(before)
            return True
        after = self._enter(target, size)
        if source == SCRATCH:
            host = after if after.device.type == "cpu" else torch.empty(after.shape, dtype=after.dtype)
            assert self._scratch is not None
            self._scratch.read(slot, host)
            self.read += size
            self.open_bytes[SCRATCH] -= size
            before = host
        if before is None:
            self._empty.add(key)
        elif before is not after:
            after.copy_(before)
            if source != SCRATCH:
                self._leave(before)
        self._chunks[key] = after
        return self._level(after) == target

    def _enter(self, target: int, size: int) -> torch.Tensor:
        """Memory for a chunk on a level, or in CPU memory where a device turns out to have none."""
        elements = size // self._dtype.itemsize
        try:
            chunk = self._allocate(target, elements)
        except torch.OutOfMemoryError:
            if target != DEVICE:
                raise
            warnings.warn(
                f"the device has no room for open chunks beyond {format_bytes(self.open_bytes[DEVICE])}; "
                f"they go to CPU memory from now on (device_memory sets a limit beforehand)",
                stacklevel=2,
            )
            chunk = self._allocate(CPU, elements)
        self.open_bytes[self._level(chunk)] += size
        return chunk

    def _allocate(self, level: int, elements: int) -> torch.Tensor:
        if level == DEVICE:
            return torch.empty(elements, dtype=self._dtype, device=self._device)
        if self._memory is None:
            return torch.empty(elements, dtype=self._dtype)
        return self._memory.allocate(elements)

    def _leave(self, chunk: torch.Tensor) -> None:
        self._count_out(chunk)
        self.recycle(chunk)

    def _count_out(self, chunk: torch.Tensor) -> None:
        level = self._level(chunk)
        self.open_bytes[level] -= chunk.nbytes
        if self._memory is not None and level == CPU:
            self._memory.release(chunk)

    def _level(self, chunk: torch.Tensor) -> int:
        return CPU if chunk.device.type == "cpu" else DEVICE
