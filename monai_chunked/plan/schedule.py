"""
Where open chunks are under limits: on the device, in CPU memory, or in a scratch file. Integers only.

Which window comes when is known, so the best choice is known: what moves down is the chunk whose next window comes last
(L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966). A
run makes the moves that are decided here and a forecast adds them up, so that neither can differ from the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np

from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.window_grid import Skipped

__all__ = ["CPU", "DEVICE", "SCRATCH", "UNLIMITED", "Forecast", "LimitError", "Limits", "Move", "Schedule"]


DEVICE, CPU, SCRATCH = range(3)
"""Where an open chunk can be. Predictions are added on the device and in CPU memory only."""


class Limits(NamedTuple):
    """The most bytes that open chunks may take.

    Attributes:
        device: on the device; ``None``: no limit, 0: none, or there is no device.
        cpu: in CPU memory; ``None``: no limit.
    """

    device: int | None = 0
    cpu: int | None = None


UNLIMITED = Limits()
"""There is no device, and no limit of CPU memory."""


class Move(NamedTuple):
    """An open chunk goes to another level.

    Attributes:
        chunk: the chunk.
        source: the level it leaves, ``None`` if it opens.
        target: the level it goes to.
        slot: where it is in the scratch file, in bytes, if one of the levels is scratch.
    """

    chunk: ChunkId
    source: int | None
    target: int
    slot: int = 0


class LimitError(ValueError):
    """The limits cannot hold the chunks of one window."""


@dataclass(frozen=True)
class Forecast:
    """What a run will hold and move, in bytes.

    Attributes:
        curve: what open chunks take on each level while each window is added to each head, for one image; an array of
            shape ``(windows x heads, 3)``.
        written, read: to and from scratch, for one image.
        scratch_file: size of the scratch file.
        moved: between the levels in all, for one image.
        images: how many images the curve is of: more than one where windows are skipped, not the same ones in all.
    """

    curve: np.ndarray
    written: int
    read: int
    moved: int
    scratch_file: int
    images: int = 1

    @property
    def peak(self) -> tuple[int, int, int]:
        """The most that open chunks take on each level."""
        device, cpu, scratch = self.curve.max(axis=0).tolist()
        return device, cpu, scratch


class Schedule:
    """Decides, window by window, on which level the open chunks of an image are.

    Args:
        grids: the chunks of each head of the network.
        voxel_bytes: what one voxel of an open chunk takes, for each head: channels times the size of a sum.
        limits: of what open chunks take.
        skipped: the windows that are known to be skipped; ``None``: all are predicted. A chunk that only skipped
            windows touch never opens.

    Attributes:
        used: bytes on each level.
        scratch_file: bytes of the scratch file so far.
    """

    def __init__(
        self,
        grids: Sequence[ChunkGrid],
        voxel_bytes: Sequence[int],
        limits: Limits,
        skipped: Skipped | None = None,
    ) -> None:
        self.grids = grids
        self.skipped = skipped
        self.voxel_bytes = voxel_bytes
        self.limits = [inf if limit is None else limit for limit in limits]
        self.used = [0, 0, 0]
        self.scratch_file = 0
        self._level: dict[ChunkId, int] = {}
        self._size: dict[ChunkId, int] = {}
        self._next: dict[ChunkId, int] = {}  # number of the next window that touches the chunk
        # a heap of (-next, chunk) for each limited level
        self._latest: tuple[list[tuple[int, ChunkId]], ...] = ([], [])
        self._needed: set[ChunkId] = set()
        self._slot: dict[ChunkId, int] = {}
        self._free_slots: dict[int, list[int]] = {}

    def size(self, chunk: ChunkId) -> int:
        """Bytes of an open chunk."""
        return self._size[chunk]

    def steps(
        self, image: int = 0, done: Container[ChunkId] = (), numbers: range | None = None
    ) -> Iterator[list[Move]]:
        """For each window in scan order and each head, what must move before the window can be added.

        Whoever asks for the next step has added the window, and finished what it finishes.

        Args:
            image: index in the input batch.
            done: chunks that are finished already, or somebody else's, and need no place.
            numbers: of the windows that come, where no other chunk is open at the first; ``None``: all of the image.

        Raises:
            LimitError: when the limits cannot hold the chunks that a window touches.
        """
        if self.limits == [0, inf] and self.skipped is None:
            yield from self._steps_without_limits(image, done, numbers)
            return
        first = 0 if numbers is None else numbers.start
        for number, position in enumerate(self.grids[0].windows.positions(numbers), first):
            skipped = self.skipped is not None and self.skipped.window(image, position)
            for head, grid in enumerate(self.grids):
                chunks = (ChunkId(image, head, chunk) for chunk in grid.touched_by(position))
                touched = [chunk for chunk in chunks if chunk not in done and (chunk in self._level or not skipped)]
                for chunk in touched:
                    self._size.setdefault(chunk, grid.voxels(chunk.position) * self.voxel_bytes[head])
                    self._next[chunk] = number
                self._needed = set(touched)
                yield [move for chunk in touched for move in self._bring(chunk)]
                for chunk in touched:
                    self._added(chunk, grid.next_window(chunk.position, position))

    def _steps_without_limits(
        self, image: int, done: Container[ChunkId], numbers: range | None
    ) -> Iterator[list[Move]]:
        """As :py:meth:`steps`, where all is in CPU memory and nothing ever moves: far less to do for each window."""
        for position in self.grids[0].windows.positions(numbers):
            for head, grid in enumerate(self.grids):
                moves = []
                for opened in grid.opened_by(position):
                    chunk = ChunkId(image, head, opened)
                    if chunk not in done:
                        self._size[chunk] = grid.voxels(opened) * self.voxel_bytes[head]
                        self.used[CPU] += self._size[chunk]
                        moves.append(Move(chunk, None, CPU))
                yield moves
                for finished in grid.finished_by(position):
                    self.used[CPU] -= self._size.pop(ChunkId(image, head, finished), 0)

    def forecast(self) -> Forecast:
        """Go through all steps without a run."""
        curve, written, read, moved = [], 0, 0, 0
        images = 1 if self.skipped is None else len(self.skipped.each)
        for moves in (moves for image in range(images) for moves in self.steps(image)):
            for chunk, source, target, _ in moves:
                size = self._size[chunk]
                written += size * (target == SCRATCH)
                read += size * (source == SCRATCH)
                moved += size * (source is not None)
            curve.append((self.used[DEVICE], self.used[CPU], self.used[SCRATCH]))
        return Forecast(np.array(curve), written, read, moved, self.scratch_file, images)

    def displace(self, chunk: ChunkId) -> list[Move]:
        """What makes room in CPU memory for a chunk that went there because the device had no room after all.

        From now on the device is taken to hold no more than it does.
        """
        self._place(chunk, CPU)
        self.limits[DEVICE] = self.used[DEVICE]
        for placed in self._level:
            self._push(placed)
        return list(self._make_room(CPU, 0))

    def _bring(self, chunk: ChunkId) -> Iterator[Move]:
        """Bring a chunk to where the window can be added to it: the device if it can be there, else CPU memory."""
        level = self._level.get(chunk)
        if level == DEVICE:
            return
        staying = sum(self._size[needed] for needed in self._needed if self._level.get(needed) == DEVICE)
        target = DEVICE if staying + self._size[chunk] <= self.limits[DEVICE] else CPU
        if level != target:
            yield from self._make_room(target, self._size[chunk])
            yield self._place(chunk, target)

    def _make_room(self, level: int, size: int) -> Iterator[Move]:
        """Move down chunks that the window does not touch, the one whose next window comes last first."""
        while self.used[level] + size > self.limits[level]:
            victim = self._pop_latest(level)
            if victim is None:
                raise LimitError("the limits cannot hold the chunks that one window touches")
            target = SCRATCH
            if level == DEVICE and self._size[victim] <= self.limits[CPU]:
                target = CPU
                # unless all that is in CPU memory is needed before it
                while self.used[CPU] + self._size[victim] > self.limits[CPU]:
                    latest = self._pop_latest(CPU)
                    if latest is None or self._next[latest] < self._next[victim]:
                        self._push(latest)
                        target = SCRATCH
                        break
                    yield self._place(latest, SCRATCH)
            yield self._place(victim, target)

    def _added(self, chunk: ChunkId, following: int | None) -> None:
        """A window was added to a chunk; ``following`` is the number of the next one, ``None`` if there is none."""
        if following is None:
            self.used[self._level.pop(chunk)] -= self._size.pop(chunk)
            del self._next[chunk]
        else:
            self._next[chunk] = following
            self._push(chunk)

    def _place(self, chunk: ChunkId, target: int) -> Move:
        size = self._size[chunk]
        source = self._level.get(chunk)
        slot = 0
        if source is not None:
            self.used[source] -= size
        if source == SCRATCH:
            slot = self._slot.pop(chunk)
            self._free_slots.setdefault(size, []).append(slot)
        self._level[chunk] = target
        self.used[target] += size
        if target == SCRATCH:
            free = self._free_slots.get(size)
            slot = free.pop() if free else self.scratch_file
            self.scratch_file = max(self.scratch_file, slot + size)
            self._slot[chunk] = slot
        self._push(chunk)
        return Move(chunk, source, target, slot)

    def _push(self, chunk: ChunkId | None) -> None:
        level = SCRATCH if chunk is None else self._level[chunk]
        if chunk is not None and level != SCRATCH and self.limits[level] < inf:
            heapq.heappush(self._latest[level], (-self._next[chunk], chunk))

    def _pop_latest(self, level: int) -> ChunkId | None:
        """Of the chunks on a level that the window does not touch, the one whose next window comes last."""
        heap = self._latest[level]
        while heap:
            following, chunk = heapq.heappop(heap)
            # the heap also has what has moved, been added to or finished since, and what is put back below
            if chunk not in self._needed and self._level.get(chunk) == level and self._next[chunk] == -following:
                return chunk
        return None
