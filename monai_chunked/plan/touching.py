"""Which windows touch which chunks along one dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["finished", "opened", "surroundings", "touched", "touching"]


def touched(spans: Sequence[tuple[int, int]], cuts: Sequence[int]) -> list[range]:
    """For each window, the chunks that it touches: at least one, and the last window all that no window reaches.

    Args:
        spans: for each window, the voxels ``(start, stop)`` that it adds to; they may reach over the borders. Both
            ascending.
        cuts: where chunks begin, and the size; ascending from 0.

    >>> touched([(0, 8), (4, 12)], [0, 4, 8, 12])
    [range(0, 2), range(1, 3)]
    >>> touched([(0, 8), (4, 12)], [0, 4, 8, 12, 14])
    [range(0, 2), range(1, 4)]
    """
    edges, size = np.asarray(cuts), cuts[-1]
    starts, stops = np.clip(spans, (0, 0), (size - 1, size)).T
    first = np.searchsorted(edges, starts, side="right") - 1
    last = np.maximum(np.searchsorted(edges, stops, side="left"), first + 1)
    last[-1] = len(cuts) - 1
    return [range(a, b) for a, b in zip(first.tolist(), last.tolist())]


def touching(touched: Sequence[range], chunks: int) -> list[range]:
    """For each of so many chunks, the windows that touch it.

    >>> touching([range(0, 2), range(1, 3)], 3)
    [range(0, 1), range(0, 2), range(1, 2)]
    """
    first, last = [0] * chunks, [0] * chunks
    for window in reversed(range(len(touched))):
        for chunk in touched[window]:
            first[chunk] = window
    for window, here in enumerate(touched):
        for chunk in here:
            last[chunk] = window
    return [range(a, b + 1) for a, b in zip(first, last)]


def finished(touching: Sequence[range], windows: int) -> list[list[int]]:
    """For each of so many windows, the chunks that no later one touches.

    >>> finished([range(0, 1), range(0, 2), range(1, 2)], 2)
    [[0], [1, 2]]
    """
    by_window: list[list[int]] = [[] for _ in range(windows)]
    for chunk, around in enumerate(touching):
        by_window[around[-1]].append(chunk)
    return by_window


def opened(touching: Sequence[range], windows: int) -> list[list[int]]:
    """For each of so many windows, the chunks that no earlier one touches.

    >>> opened([range(0, 1), range(0, 2), range(1, 2)], 2)
    [[0, 1], [2]]
    """
    by_window: list[list[int]] = [[] for _ in range(windows)]
    for chunk, around in enumerate(touching):
        by_window[around[0]].append(chunk)
    return by_window


def surroundings(
    spans: Sequence[tuple[int, int]],
    kept: Sequence[tuple[int, int]],
    cuts: Sequence[int],
    touching: Sequence[range],
) -> list[int]:
    """For each chunk a number, the same one for chunks of one size that windows lie over in the same way.

    Args:
        spans: for each window, the voxels that it predicts.
        kept: those of them that it adds to.
        cuts: where chunks begin, and the size; ascending from 0.
        touching: for each chunk, the windows that touch it.

    >>> spans, cuts = [(0, 8), (4, 12), (8, 16)], [0, 4, 8, 12, 16]
    >>> surroundings(spans, spans, cuts, [range(0, 1), range(0, 2), range(1, 3), range(2, 3)])
    [0, 1, 1, 2]
    """
    numbers: dict[tuple[object, ...], int] = {}
    by_chunk = []
    for chunk, around in enumerate(touching):
        start, stop = cuts[chunk], cuts[chunk + 1]
        shared = (
            (max(low, start) - start, min(high, stop) - start, start - a, b - a)
            for (low, high), (a, b) in ((kept[w], spans[w]) for w in around)
        )
        by_chunk.append(numbers.setdefault((stop - start, *shared), len(numbers)))
    return by_chunk
