"""
How one head of the network is cut into chunks, and when each chunk opens and finishes. Integers only.

Windows overlap, chunks tile. Along one dimension, five windows of eight voxels over 23, and cuts where they begin and
end::

    windows  [--------------]
                     [--------------]
                             [--------------]
                                     [--------------]
                                           [--------------]
    cuts     |       |       |       |     | |       |     |
             0       4       8       12    15 16     20    23
    after 2  finished        | open  | not yet

Two windows are in. No later one touches the first eight voxels: these two chunks are finished. The chunk behind them
waits for the third window: it is open, and its four voxels are all that must be held.

Everything is separable. Windows form a grid (the product of one list of starts for each dimension) and so do chunks
(the product of one list of cuts for each dimension); a window touches a chunk if it does so in every dimension; and
since windows are visited in lexicographic order of their grid indices, the last window to touch a chunk is the one
with the last index in every dimension. So nothing here ever looks at all pairs of windows and chunks: a million
windows cost a few short lists.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from monai_chunked.plan.borders import Span
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.touching import finished, opened, surroundings, touched, touching
from monai_chunked.plan.window_grid import WindowGrid

__all__ = ["ChunkGrid", "ChunkId", "Overlap"]


class ChunkId(NamedTuple):
    """Which chunk it is.

    Attributes:
        image: index in the input batch.
        head: index among the heads of the network.
        position: in the chunk grid of the head, one integer for each spatial dimension.
    """

    image: int
    head: int
    position: tuple[int, ...]


class Overlap(NamedTuple):
    """What one window and one chunk have in common.

    Attributes:
        chunk: position of the chunk in the chunk grid.
        in_window: the common voxels, counted from the start of the window's prediction.
        in_chunk: the same voxels, counted from the start of the chunk.
    """

    chunk: tuple[int, ...]
    in_window: Box
    in_chunk: Box


@dataclass(frozen=True)
class ChunkGrid:
    """The chunks of one head of the network over one image, and which windows touch them.

    Attributes:
        windows: the windows.
        spans: for each dimension and window index, the output voxels ``(start, stop)`` that the window predicts; they
            may reach over the output where the image was padded.
        kept: those of them that are added: all, or those that are nearest to its centre.
        cuts: for each dimension, the borders of chunks from 0 to the size of the output; ascending.
    """

    windows: WindowGrid
    spans: tuple[tuple[Span, ...], ...]
    kept: tuple[tuple[Span, ...], ...]
    cuts: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size of the output in voxels."""
        return tuple(c[-1] for c in self.cuts)

    @property
    def covered(self) -> tuple[int, ...]:
        """Where the voxels that windows predict end; those behind have no prediction."""
        return tuple(min(kept[-1][1], size) for kept, size in zip(self.kept, self.size))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(len(c) - 1 for c in self.cuts)

    def __len__(self) -> int:
        return prod(self.shape)

    def chunk_size(self, chunk: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of a chunk in voxels."""
        return tuple(c[k + 1] - c[k] for c, k in zip(self.cuts, chunk))

    def box(self, chunk: tuple[int, ...]) -> Box:
        """The output voxels of a chunk."""
        return tuple(slice(c[k], c[k + 1]) for c, k in zip(self.cuts, chunk))

    @cached_property
    def _touched(self) -> list[list[range]]:
        """For each dimension and window index, the chunk indices that the window touches."""
        return [touched(kept, cuts) for kept, cuts in zip(self.kept, self.cuts)]

    @cached_property
    def around(self) -> list[list[range]]:
        """For each dimension and chunk index, the window indices that touch the chunk."""
        return [touching(windows, chunks) for windows, chunks in zip(self._touched, self.shape)]

    @cached_property
    def _finished(self) -> list[list[list[int]]]:
        """For each dimension and window index, the chunk indices that no later window touches."""
        return [finished(windows, number) for windows, number in zip(self.around, self.windows.shape)]

    @cached_property
    def _opened(self) -> list[list[list[int]]]:
        """For each dimension and window index, the chunk indices that no earlier window touches."""
        return [opened(windows, number) for windows, number in zip(self.around, self.windows.shape)]

    @cached_property
    def _shared(self) -> list[list[list[tuple[int, slice, slice]]]]:
        """What :py:class:`Overlap` says, for each dimension, window index and chunk that the window touches there."""
        return [
            [
                [(c, *_common(span[0], added, (cuts[c], cuts[c + 1]))) for c in chunks]
                for span, added, chunks in zip(spans, kept, by_window)
            ]
            for spans, kept, cuts, by_window in zip(self.spans, self.kept, self.cuts, self._touched)
        ]

    @cached_property
    def uncut(self) -> ChunkGrid:
        """The same output as one chunk."""
        return replace(self, cuts=tuple((0, size) for size in self.size))

    def voxels(self, chunk: tuple[int, ...]) -> int:
        """Number of output voxels of a chunk."""
        return prod(self.chunk_size(chunk))

    def touched_by(self, window: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The chunks that a window touches."""
        return itertools.product(*(t[w] for t, w in zip(self._touched, window)))

    def touched_along(self, dim: int, window: int) -> range:
        """Along one dimension, the indices of the chunks that the window with this index touches."""
        return self._touched[dim][window]

    def pieces(self, window: tuple[int, ...]) -> Iterator[Overlap]:
        """What a window shares with each chunk that it touches."""
        for shared in itertools.product(*[s[w] for s, w in zip(self._shared, window)]):
            yield Overlap(*zip(*shared))

    def windows_of(self, chunk: tuple[int, ...]) -> Iterator[Overlap]:
        """What a chunk shares with each window that touches it, in scan order."""
        sides = [
            [self._shared[d][w][c - self._touched[d][w][0]] for w in self.around[d][c]] for d, c in enumerate(chunk)
        ]
        for shared in self.windows.in_scan_order(sides):
            yield Overlap(*zip(*shared))

    def pieces_before(
        self, chunk: tuple[int, ...], window: tuple[int, ...]
    ) -> Iterator[tuple[Overlap, tuple[int, ...]]]:
        """What a chunk shares with each window that touches it before the given one, and the size of each."""
        positions = self.windows.in_scan_order([self.around[d][c] for d, c in enumerate(chunk)])
        for position, piece, size in zip(positions, self.windows_of(chunk), self.window_sizes_of(chunk)):
            if position == window:
                return
            yield piece, size

    def window_sizes_of(self, chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The spatial size of each window that touches a chunk, in scan order."""
        sides = zip(chunk, self.around, self.windows.lengths)
        return self.windows.in_scan_order([[lengths[w] for w in around[c]] for c, around, lengths in sides])

    @cached_property
    def _surroundings(self) -> list[list[int]]:
        """For each dimension and chunk index, a number that is the same where windows lie over chunks alike."""
        return list(map(surroundings, self.spans, self.kept, self.cuts, self.around))

    def surroundings(self, chunk: tuple[int, ...]) -> tuple[int, ...]:
        """How windows lie over a chunk: chunks for which this is the same have the same weights."""
        return tuple(numbers[k] for numbers, k in zip(self._surroundings, chunk))

    def finished_by(self, window: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The chunks for which this window is the last one."""
        return itertools.product(*[f[w] for f, w in zip(self._finished, window)])

    def opened_by(self, window: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The chunks for which this window is the first one."""
        return itertools.product(*[o[w] for o, w in zip(self._opened, window)])

    def next_window(self, chunk: tuple[int, ...], window: tuple[int, ...]) -> int | None:
        """The number, in scan order, of the next window after this one that touches a chunk; ``None``: none does."""
        number, stride, following = 0, 1, None
        for d in reversed(self.windows.order):
            around = self.around[d][chunk[d]]
            if following is None and window[d] < around[-1]:
                following = number + (window[d] + 1) * stride
            elif following is None:
                number += around[0] * stride
            else:
                following += window[d] * stride
            stride *= self.windows.shape[d]
        return following

    @cached_property
    def _events(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of the chunks that each window opens, and of those that it finishes, in scan order."""
        opens, closes = np.ones(1, np.int64), np.ones(1, np.int64)
        for d in self.windows.order:
            sizes = np.diff(self.cuts[d])
            opening, closing = np.zeros(self.windows.shape[d], np.int64), np.zeros(self.windows.shape[d], np.int64)
            np.add.at(opening, [windows[0] for windows in self.around[d]], sizes)
            np.add.at(closing, [windows[-1] for windows in self.around[d]], sizes)
            opens, closes = np.outer(opens, opening).ravel(), np.outer(closes, closing).ravel()
        return opens, closes

    def open_voxels(self) -> np.ndarray:
        """Voxels of the chunks that are open while each window is added: int64, one number a window, in scan order."""
        return self.kept_voxels() + self._events[1]

    def kept_voxels(self) -> np.ndarray:
        """Voxels of the chunks that are still open when each window has finished what it finishes."""
        opens, closes = self._events
        return np.cumsum(opens) - np.cumsum(closes)

    def overlap_count(self) -> int:
        """How often a window touches a chunk."""
        return prod(sum(map(len, by_window)) for by_window in self._touched)

    def window_voxels(self) -> int:
        """The most voxels of chunks that one window touches."""
        return prod(
            max(cuts[chunks[-1] + 1] - cuts[chunks[0]] for chunks in by_window)
            for cuts, by_window in zip(self.cuts, self._touched)
        )


def _common(start: int, window: Span, chunk: Span) -> tuple[slice, slice]:
    """What they have in common along one dimension, counted from where the prediction starts, and from the chunk."""
    low = max(window[0], chunk[0])
    high = max(min(window[1], chunk[1]), low)
    return slice(low - start, high - start), slice(low - chunk[0], high - chunk[0])
