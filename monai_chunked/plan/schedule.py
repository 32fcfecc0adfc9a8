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

from monai_chunked.plan.chunk_grid import ChunkGrid

__all__ = ["CPU", "DEVICE", "SCRATCH", "Forecast", "Key", "LimitError", "Move", "Schedule"]


DEVICE, CPU, SCRATCH = range(3)
"""Where an open chunk can be. Predictions are added on the device and in CPU memory only."""


Key = tuple[int, tuple[int, ...]]
"""An open chunk: the output of the network, and the position in its chunk grid."""


class Move(NamedTuple):
    """An open chunk goes to another level.

    Attributes:
        key: the chunk.
        source: the level it leaves, ``None`` if it opens.
        target: the level it goes to.
        slot: where it is in the scratch file, in bytes, if one of the levels is scratch.
    """

    key: Key
    source: int | None
    target: int
    slot: int = 0


class LimitError(ValueError):
    """The limits cannot hold the chunks of one window."""


@dataclass(frozen=True)
class Forecast:
    """What a run will hold and move, in bytes.

    Attributes:
        curve: what open chunks take on each level while each window is added to each output, for one image; an array
            of shape ``(windows x outputs, 3)``.
        written, read: to and from scratch, for one image.
        scratch_file: size of the scratch file.
        moved: between the levels in all, for one image.
    """

    curve: np.ndarray
    written: int
    read: int
    moved: int
    scratch_file: int

    @property
    def peak(self) -> tuple[int, int, int]:
        """The most that open chunks take on each level."""
        device, cpu, scratch = self.curve.max(axis=0).tolist()
        return device, cpu, scratch


class Schedule:
    """Decides, window by window, on which level the open chunks of an image are.

    Args:
        grids: the chunks of each output of the network.
        voxel_bytes: what one voxel of an open chunk takes, for each output: channels times the size of a sum.
        device_limit: the most that open chunks may take on the device; ``None``: no limit, 0: none.
        cpu_limit: the most that open chunks may take in CPU memory; ``None``: no limit.

    Attributes:
        used: bytes on each level.
        scratch_file: bytes of the scratch file so far.
    """

    def __init__(
        self,
        grids: Sequence[ChunkGrid],
        voxel_bytes: Sequence[int],
        device_limit: int | None,
        cpu_limit: int | None,
    ) -> None:
        self.grids = grids
        self.voxel_bytes = voxel_bytes
        self.limits = [inf if limit is None else limit for limit in (device_limit, cpu_limit)]
        self.used = [0, 0, 0]
        self.scratch_file = 0
        self._level: dict[Key, int] = {}
        self._size: dict[Key, int] = {}
        self._next: dict[Key, int] = {}  # number of the next window that touches the chunk
        self._latest: tuple[list[tuple[int, Key]], ...] = ([], [])  # a heap of (-next, chunk) for each limited level
        self._needed: set[Key] = set()
        self._slot: dict[Key, int] = {}
        self._free_slots: dict[int, list[int]] = {}

    def size(self, key: Key) -> int:
        """Bytes of an open chunk."""
        return self._size[key]

    def steps(self, done: Container[Key] = ()) -> Iterator[list[Move]]:
        """For each window in scan order and each output, what must move before the window can be added.

        Whoever asks for the next step has added the window, and finished what it finishes.

        Args:
            done: chunks that are finished already, and need no place.

        Raises:
            LimitError: when the limits cannot hold the chunks that a window touches.
        """
        if self.limits == [0, inf]:
            yield from self._steps_without_limits(done)
            return
        for number, position in enumerate(self.grids[0].windows.positions()):
            for output, grid in enumerate(self.grids):
                keys = ((output, chunk) for chunk in grid.touched_by(position))
                touched = [key for key in keys if key not in done]
                for key in touched:
                    self._size.setdefault(key, grid.voxels(key[1]) * self.voxel_bytes[output])
                    self._next[key] = number
                self._needed = set(touched)
                yield [move for key in touched for move in self._bring(key)]
                for key in touched:
                    self._added(key, grid.next_window(key[1], position))

    def _steps_without_limits(self, done: Container[Key]) -> Iterator[list[Move]]:
        """The same where everything is in CPU memory and nothing ever moves: far less to find out for each window."""
        for position in self.grids[0].windows.positions():
            for output, grid in enumerate(self.grids):
                keys = [(output, chunk) for chunk in grid.touched_by(position)]
                opened = [key for key in keys if key not in self._level and key not in done]
                for key in opened:
                    self._size[key] = grid.voxels(key[1]) * self.voxel_bytes[output]
                    self._level[key] = CPU
                    self.used[CPU] += self._size[key]
                yield [Move(key, None, CPU) for key in opened]
                for chunk in grid.finished_by(position):
                    if self._level.pop((output, chunk), None) is not None:
                        self.used[CPU] -= self._size.pop((output, chunk))

    def forecast(self) -> Forecast:
        """Go through all steps without a run."""
        curve, written, read, moved = [], 0, 0, 0
        for moves in self.steps():
            for key, source, target, _ in moves:
                size = self._size[key]
                written += size * (target == SCRATCH)
                read += size * (source == SCRATCH)
                moved += size * (source is not None)
            curve.append((self.used[DEVICE], self.used[CPU], self.used[SCRATCH]))
        return Forecast(np.array(curve), written, read, moved, self.scratch_file)

    def displace(self, key: Key) -> list[Move]:
        """The device had no room for a chunk after all, and it went to CPU memory: what must make room there.

        From now on the device is taken to hold no more than it does.
        """
        self._place(key, CPU)
        self.limits[DEVICE] = self.used[DEVICE]
        for other in self._level:
            self._push(other)
        return list(self._make_room(CPU, 0))

    def _bring(self, key: Key) -> Iterator[Move]:
        """Bring a chunk to where the window can be added to it: the device if it can be there, else CPU memory."""
        level = self._level.get(key)
        if level == DEVICE:
            return
        staying = sum(self._size[other] for other in self._needed if self._level.get(other) == DEVICE)
        target = DEVICE if staying + self._size[key] <= self.limits[DEVICE] else CPU
        if level != target:
            yield from self._make_room(target, self._size[key])
            yield self._place(key, target)

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
                    other = self._pop_latest(CPU)
                    if other is None or self._next[other] < self._next[victim]:
                        self._push(other)
                        target = SCRATCH
                        break
                    yield self._place(other, SCRATCH)
            yield self._place(victim, target)

    def _added(self, key: Key, following: int | None) -> None:
        """A window was added to a chunk; ``following`` is the number of the next one, ``None`` if there is none."""
        if following is None:
            self.used[self._level.pop(key)] -= self._size.pop(key)
            del self._next[key]
        else:
            self._next[key] = following
            self._push(key)

    def _place(self, key: Key, target: int) -> Move:
        size = self._size[key]
        source = self._level.get(key)
        slot = 0
        if source is not None:
            self.used[source] -= size
        if source == SCRATCH:
            slot = self._slot.pop(key)
            self._free_slots.setdefault(size, []).append(slot)
        self._level[key] = target
        self.used[target] += size
        if target == SCRATCH:
            free = self._free_slots.get(size)
            slot = free.pop() if free else self.scratch_file
            self.scratch_file = max(self.scratch_file, slot + size)
            self._slot[key] = slot
        self._push(key)
        return Move(key, source, target, slot)

    def _push(self, key: Key | None) -> None:
        level = SCRATCH if key is None else self._level[key]
        if key is not None and level != SCRATCH and self.limits[level] < inf:
            heapq.heappush(self._latest[level], (-self._next[key], key))

    def _pop_latest(self, level: int) -> Key | None:
        """Of the chunks on a level that the window does not touch, the one whose next window comes last."""
        heap = self._latest[level]
        while heap:
            following, key = heapq.heappop(heap)
            # the heap also has what has moved, been added to or finished since, and what is put back below
            if key not in self._needed and self._level.get(key) == level and self._next[key] == -following:
                return key
        return None
