"""
Geometry: which windows the network sees, in which order and batches, how the output is cut into chunks, and when each
chunk opens and finishes. Integers only; no tensor and no file is touched here.

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

import numpy as np

from monai_chunked.plan.boxes import Box, Piece
from monai_chunked.plan.window_grid import WindowGrid

__all__ = ["ChunkGrid"]


@dataclass(frozen=True)
class ChunkGrid:
    """The chunks of one output of the network over one image, and which windows touch them.

    Attributes:
        windows: the windows.
        spans: for each dimension and window index, the output voxels ``(start, stop)`` that the window predicts; they
            may reach over the output where the image was padded.
        cuts: for each dimension, the borders of chunks from 0 to the size of the output; ascending.
    """

    windows: WindowGrid
    spans: tuple[tuple[tuple[int, int], ...], ...]
    cuts: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size of the output in voxels."""
        return tuple(c[-1] for c in self.cuts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(len(c) - 1 for c in self.cuts)

    def __len__(self) -> int:
        return prod(self.shape)

    def corner(self, chunk: tuple[int, ...]) -> tuple[int, ...]:
        """The first output voxel of a chunk."""
        return tuple(c[k] for c, k in zip(self.cuts, chunk))

    def box(self, chunk: tuple[int, ...]) -> Box:
        """The output voxels of a chunk."""
        return tuple(slice(c[k], c[k + 1]) for c, k in zip(self.cuts, chunk))

    @cached_property
    def _touched(self) -> list[list[range]]:
        """For each dimension and window index, the chunk indices that the window touches."""
        touched = []
        for spans, cuts in zip(self.spans, self.cuts):
            edges = np.asarray(cuts)
            first = np.searchsorted(edges, [max(start, 0) for start, _ in spans], side="right") - 1
            last = np.searchsorted(edges, [min(stop, cuts[-1]) for _, stop in spans], side="left")
            touched.append([range(a, b) for a, b in zip(first.tolist(), last.tolist())])
        return touched

    @cached_property
    def _touching(self) -> list[list[range]]:
        """For each dimension and chunk index, the window indices that touch the chunk."""
        touching = []
        for touched, chunks in zip(self._touched, self.shape):
            first, last = [0] * chunks, [0] * chunks
            for window in reversed(range(len(touched))):
                for chunk in touched[window]:
                    first[chunk] = window
            for window, chunks_here in enumerate(touched):
                for chunk in chunks_here:
                    last[chunk] = window
            touching.append([range(a, b + 1) for a, b in zip(first, last)])
        return touching

    @cached_property
    def _finished(self) -> list[list[list[int]]]:
        """For each dimension and window index, the chunk indices that no later window touches."""
        finished = []
        for touching, windows in zip(self._touching, self.windows.shape):
            by_window: list[list[int]] = [[] for _ in range(windows)]
            for chunk, around in enumerate(touching):
                by_window[around[-1]].append(chunk)
            finished.append(by_window)
        return finished

    @cached_property
    def uncut(self) -> ChunkGrid:
        """The same output as one chunk."""
        return replace(self, cuts=tuple((0, size) for size in self.size))

    def voxels(self, chunk: tuple[int, ...]) -> int:
        """Number of output voxels of a chunk."""
        return prod(c[k + 1] - c[k] for c, k in zip(self.cuts, chunk))

    def touched_by(self, window: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The chunks that a window touches."""
        return itertools.product(*(t[w] for t, w in zip(self._touched, window)))

    def pieces(self, window: tuple[int, ...]) -> Iterator[Piece]:
        """What a window shares with each chunk that it touches."""
        for chunk in self.touched_by(window):
            yield self._piece(window, chunk)

    def windows_of(self, chunk: tuple[int, ...]) -> Iterator[Piece]:
        """What a chunk shares with each window that touches it, in scan order."""
        around = [t[c] for t, c in zip(self._touching, chunk)]
        inverse = np.argsort(self.windows.order).tolist()
        for index in itertools.product(*(around[d] for d in self.windows.order)):
            yield self._piece(tuple(index[k] for k in inverse), chunk)

    @cached_property
    def _surroundings(self) -> list[list[tuple[tuple[int, ...], ...]]]:
        """For each dimension and chunk index, what the chunk shares with each window that touches it."""
        found = []
        for spans, cuts, touching in zip(self.spans, self.cuts, self._touching):
            each = []
            for chunk, around in enumerate(touching):
                start, end = cuts[chunk], cuts[chunk + 1]
                shared = ((max(spans[w][0], start), min(spans[w][1], end), spans[w][0]) for w in around)
                each.append((*((low - start, high - start, low - span) for low, high, span in shared), (end - start,)))
            found.append(each)
        return found

    def surroundings(self, chunk: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Where windows lie over a chunk, seen from it: chunks for which this is the same have the same weights."""
        return tuple(each[k] for each, k in zip(self._surroundings, chunk))

    def finished_by(self, window: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The chunks for which this window is the last one."""
        return itertools.product(*(f[w] for f, w in zip(self._finished, window)))

    def next_window(self, chunk: tuple[int, ...], window: tuple[int, ...]) -> int | None:
        """The number, in scan order, of the window that touches a chunk next after another one has; ``None``: none."""
        number, stride, following = 0, 1, None
        for d in reversed(self.windows.order):
            around = self._touching[d][chunk[d]]
            if following is None and window[d] < around[-1]:
                following = number + (window[d] + 1) * stride
            elif following is None:
                number += around[0] * stride
            else:
                following += window[d] * stride
            stride *= self.windows.shape[d]
        return following

    def _piece(self, window: tuple[int, ...], chunk: tuple[int, ...]) -> Piece:
        in_window, in_chunk = [], []
        for spans, cuts, w, c in zip(self.spans, self.cuts, window, chunk):
            (span, stop), start = spans[w], cuts[c]
            low, high = max(span, start), min(stop, cuts[c + 1])
            in_window.append(slice(low - span, high - span))
            in_chunk.append(slice(low - start, high - start))
        return Piece(chunk, tuple(in_window), tuple(in_chunk))

    @cached_property
    def _events(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of the chunks that each window opens, and of those that it finishes, in scan order."""
        opened, closed = np.ones(1, np.int64), np.ones(1, np.int64)
        for d in self.windows.order:
            sizes = np.diff(self.cuts[d])
            opening, closing = np.zeros(self.windows.shape[d], np.int64), np.zeros(self.windows.shape[d], np.int64)
            np.add.at(opening, [t[0] for t in self._touching[d]], sizes)
            np.add.at(closing, [t[-1] for t in self._touching[d]], sizes)
            opened, closed = np.outer(opened, opening).ravel(), np.outer(closed, closing).ravel()
        return opened, closed

    def open_voxels(self) -> np.ndarray:
        """Voxels of the chunks that are open while each window is added: int64, one number a window, in scan order."""
        opened, closed = self._events
        return np.cumsum(opened) - np.cumsum(closed) + closed

    def kept_voxels(self) -> np.ndarray:
        """Voxels of the chunks that are still open when each window has finished what it finishes."""
        opened, closed = self._events
        return np.cumsum(opened) - np.cumsum(closed)

    def peak_voxels(self) -> int:
        """The most voxels that are open at one time."""
        return int(self.open_voxels().max())

    def piece_count(self) -> int:
        """How often a window touches a chunk."""
        return prod(sum(map(len, touched)) for touched in self._touched)

    def window_voxels(self) -> int:
        """The most voxels of chunks that one window touches."""
        return prod(
            max(cuts[chunks[-1] + 1] - cuts[chunks[0]] for chunks in touched)
            for cuts, touched in zip(self.cuts, self._touched)
        )
