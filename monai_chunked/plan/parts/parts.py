"""
How several workers share a volume: the windows of each, and who adds to which chunk. Integers only.

A part is a range of windows in scan order over all images. A chunk belongs to the part of its last window; what earlier
parts have added to it goes from one to the next, in scan order, as one process would have added it::

    windows  0 1 2 3 4 | 5 6 7 8 9
    chunk          ---------            first window 3, last window 7: opened by part 0, finished by part 1

Which windows touch a chunk is a range in every dimension, so the first and the last of them are corners, and what lies
between can be counted dimension by dimension. Nothing here looks at all pairs of windows and chunks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.window_grid import Skipped

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """Who adds to which chunk, and who finishes it.

    Attributes:
        grids: the chunks of each head of the network.
        images: number of images in the input batch.
        ranges: the windows of each part, by their number in scan order over all images.
        skipped: the windows that are known to be skipped. Where only skipped windows touch a chunk it never opens, so
            nobody has to hand it on.
    """

    grids: Sequence[ChunkGrid]
    images: int
    ranges: Sequence[range]
    skipped: Skipped | None = None

    def __len__(self) -> int:
        return len(self.ranges)

    def part_of(self, number: int) -> int:
        """The part that a window belongs to."""
        return bisect_right(self._starts, number) - 1

    def owner(self, chunk: ChunkId) -> int:
        """The part that finishes a chunk."""
        return self.part_of(self._number(chunk, -1))

    def touching(self, chunk: ChunkId) -> list[int]:
        """The parts that add to a chunk, in the order in which they do; the last one finishes it."""
        owner = self.owner(chunk)
        number = self._opens(chunk)
        parts = [owner if number is None else self.part_of(number)]
        while parts[-1] != owner:
            number = self._first_from(chunk, self.ranges[parts[-1]].stop)
            assert number is not None
            parts.append(self.part_of(number))
        return parts

    def inherited(self, part: int) -> dict[ChunkId, int]:
        """The chunks that a part adds to, or finishes, after others; from whom it gets their sums.

        First those that the others have opened, then those that had to wait themselves, each in the order in which they
        are finished: who takes and gives in this order never waits for somebody who waits for it.
        """
        return self._neighbours(self.ranges[part].start, part, -1)

    def handed_on(self, part: int) -> dict[ChunkId, int]:
        """The chunks that others add to after a part; to whom it gives their sums. In the order of ``inherited()``."""
        return self._neighbours(self.ranges[part].stop, part, 1)

    def passes_on(self, part: int) -> bool:
        """Whether sums may go through a part: windows before and after it touch the same chunk."""
        numbers = self.ranges[part]
        image, number = divmod(numbers.start, self._windows_per_image)
        last = [_across(grid, number)[1] for grid in self.grids] if number else []
        stop = numbers.stop - image * self._windows_per_image
        return any(bool((windows >= stop).any()) for windows in last)

    def first_window(self, part: int, done: Container[ChunkId] = ()) -> int:
        """The first window that a part must see to finish its chunks by itself.

        Args:
            part: its number.
            done: chunks that it need not finish, though they are its own.
        """
        start = self.ranges[part].start
        own = (chunk for chunk in self._across(start) if self.owner(chunk) == part and chunk not in done)
        return min([start, *(self.first_window_of(chunk) for chunk in own)])

    def first_window_of(self, chunk: ChunkId) -> int:
        """The number of the first window that touches a chunk."""
        return self._number(chunk, 0)

    @cached_property
    def _starts(self) -> list[int]:
        return [numbers.start for numbers in self.ranges]

    @cached_property
    def _windows_per_image(self) -> int:
        return len(self.grids[0].windows)

    def _number(self, chunk: ChunkId, which: int) -> int:
        """The number of the first (0) or the last (-1) window that touches a chunk."""
        grid = self.grids[chunk.head]
        position = [grid.around[d][c][which] for d, c in enumerate(chunk.position)]
        return chunk.image * self._windows_per_image + grid.windows.number(position)

    def _opens(self, chunk: ChunkId) -> int | None:
        """The number of the first window that is not skipped and touches a chunk; ``None``: all are skipped."""
        if self.skipped is None:
            return self._number(chunk, 0)
        grid = self.grids[chunk.head]
        around = [grid.around[d][c] for d, c in enumerate(chunk.position)]
        for position in grid.windows.in_scan_order(around):
            if not self.skipped.window(chunk.image, position):
                return chunk.image * self._windows_per_image + grid.windows.number(position)
        return None

    def _first_from(self, chunk: ChunkId, number: int) -> int | None:
        """The number of the first window, from this one on, that touches a chunk."""
        grid, base = self.grids[chunk.head], chunk.image * self._windows_per_image
        here = grid.windows.position(number - base)
        stride, first = 1, 0
        following: int | None = 0
        for d in reversed(grid.windows.order):
            around = grid.around[d][chunk.position[d]]
            if following is not None and here[d] in around:
                following += here[d] * stride
            else:
                later = max(here[d] + 1, around[0])
                following = first + later * stride if later <= around[-1] else None
            first += around[0] * stride
            stride *= grid.windows.shape[d]
        return None if following is None else base + following

    def _neighbours(self, number: int, part: int, step: int) -> dict[ChunkId, int]:
        """The chunks on both sides of a window that a part adds to, and who does before (-1) or after (1) it."""
        neighbours = []
        for order, chunk in enumerate(self._across(number)):
            touching = self.touching(chunk)
            if part in touching and 0 <= touching.index(part) + step < len(touching):
                neighbours.append((touching.index(part), order, chunk, touching[touching.index(part) + step]))
        return {chunk: neighbour for _, _, chunk, neighbour in sorted(neighbours)}

    def _across(self, number: int) -> Iterator[ChunkId]:
        """The chunks that windows before a number touch and others from there on, in the order they are finished."""
        image, number = divmod(number, self._windows_per_image)
        if number == 0:
            return
        chunks = []
        for head, grid in enumerate(self.grids):
            positions, last = _across(grid, number)
            chunks += [(at, head, tuple(position)) for at, position in zip(last.tolist(), positions.tolist())]
        for _, head, position in sorted(chunks):
            yield ChunkId(image, head, position)


def _across(grid: ChunkGrid, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the chunks that windows before a number touch and others from there on; their last windows."""
    slowest = grid.windows.order[0]
    near = list(grid.touched_along(slowest, grid.windows.position(number)[slowest]))
    indices = [np.array(near) if d == slowest else np.arange(size) for d, size in enumerate(grid.shape)]
    first = last = np.zeros(1, np.int64)
    for d in grid.windows.order:
        side = [grid.around[d][c] for c in indices[d].tolist()]
        first = np.add.outer(first * grid.windows.shape[d], [around[0] for around in side])
        last = np.add.outer(last * grid.windows.shape[d], [around[-1] for around in side])
    inside = np.argwhere((first[0] < number) & (number <= last[0]))
    positions = np.empty_like(inside)
    for k, d in enumerate(grid.windows.order):
        positions[:, d] = indices[d][inside[:, k]]
    return positions, last[0][tuple(inside.T)]
