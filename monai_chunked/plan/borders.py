"""
Where windows lie along one dimension, and what becomes of those that would reach over its end.

Five windows of eight voxels, or fewer, over 21, with an overlap of a half::

    fixed steps   0:8   4:12   8:16   12:20   16:24, 20:28 reach over
    "edge"        0:8   4:12   8:16   12:20   13:21     the first that does is moved back
    "even"        0:8   3:11   6:14   10:18   13:21     all are moved, by the same distance from each to the next
    "squeeze"     0:8   4:12   8:16   12:20   13:21     all are moved by whole voxels, the last one by what is left
    "adaptive"    0:8   4:12   8:16   12:20   16:21, 20:21 are cut
    "crop"        0:8   4:12   8:16   12:20             those that do are dropped

No rule places the same window twice, as steps of less than a voxel would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from math import ceil

import numpy as np
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

__all__ = ["BORDERS", "Span", "nearest"]


Span = tuple[int, int]
"""The first voxel, and the one behind the last."""


MEANT = 10**6
"""The largest denominator of an overlap that somebody means: six decimals, or voxels of windows of that size."""


def edge(size: int, roi: int, overlap: float, least: int) -> list[Span]:
    """MONAI's: fixed steps, as MONAI rounds them, the last window is moved back to the end.

    Args:
        size: of the image, at least ``least``.
        roi: of a window.
        overlap: of neighbouring windows, as a part of ``roi``.
        least: size of a window that is cut; ``roi`` where none is.

    >>> edge(21, 8, 0.5, 8)
    [(0, 8), (4, 12), (8, 16), (12, 20), (13, 21)]
    """
    windows = dense_patch_slices((size,), (roi,), _get_scan_interval((size,), (roi,), 1, (overlap,)))
    return [(int(window.start), int(window.start) + roi) for (window,) in windows]


def even(size: int, roi: int, overlap: float, least: int) -> list[Span]:
    """nnU-Net's (``compute_steps_for_sliding_window``): as few windows as steps of that length allow, spread evenly.

    >>> even(21, 8, 0.5, 8)
    [(0, 8), (3, 11), (6, 14), (10, 18), (13, 21)]
    """
    # in floating point, as nnU-Net: its step is the number nearest to what is left of a window
    number = min(ceil((size - roi) / (roi * float(1 - _meant(overlap)))), size - roi) + 1
    step = (size - roi) / max(number - 1, 1)
    return _spans((int(np.round(step * k)) for k in range(number)), roi)


def squeeze(size: int, roi: int, overlap: float, least: int) -> list[Span]:
    """Patchly's default: fixed steps, and what the last window reaches over the end is taken off all of them.

    >>> squeeze(23, 8, 0.25, 8)
    [(0, 8), (5, 13), (10, 18), (15, 23)]
    """
    step = _step(roi, overlap)
    last = ceil((size - roi) / step)
    less, rest = divmod(last * step + roi - size, max(last, 1))
    return _spans((k * (step - less) - (rest if k == last else 0) for k in range(last + 1)), roi)


def adaptive(size: int, roi: int, overlap: float, least: int) -> list[Span]:
    """Fixed steps, windows over the end are cut; those that would get too small begin before their step.

    >>> adaptive(21, 8, 0.5, 1)
    [(0, 8), (4, 12), (8, 16), (12, 20), (16, 21), (20, 21)]
    >>> adaptive(21, 8, 0.5, 3)
    [(0, 8), (4, 12), (8, 16), (12, 20), (16, 21), (18, 21)]
    """
    starts = range(0, size, _step(roi, overlap))
    return list(dict.fromkeys((min(start, size - least), min(start + roi, size)) for start in starts))


def crop(size: int, roi: int, overlap: float, least: int) -> list[Span]:
    """Fixed steps, windows over the end are dropped.

    >>> crop(21, 8, 0.5, 8)
    [(0, 8), (4, 12), (8, 16), (12, 20)]
    """
    return _spans(range(0, size - roi + 1, _step(roi, overlap)), roi)


BORDERS: Mapping[str, Callable[[int, int, float, int], list[Span]]] = {
    "edge": edge, "even": even, "squeeze": squeeze, "adaptive": adaptive, "crop": crop,
}  # fmt: skip
"""By name, what lays windows: the arguments are those of :py:func:`edge`."""


def nearest(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """For each window, those of its voxels that are nearer to its centre than to that of any other window over them.

    A voxel in the middle of two centres goes to the window that comes first, so that each voxel has one.

    Args:
        spans: of windows, both of their ends ascending.

    >>> nearest(((0, 8), (4, 12), (8, 16)))
    ((0, 6), (6, 10), (10, 16))
    """
    starts, stops = np.asarray(spans).T
    voxels = np.arange(starts[0], stops[-1])
    middles = (starts + stops)[:-1] + (starts + stops)[1:]  # of two centres, four times as large, as voxels are here
    owner = np.searchsorted(middles, 2 * (2 * voxels + 1))
    first, last = np.searchsorted(stops, voxels, "right"), np.searchsorted(starts, voxels, "right") - 1
    owner = np.clip(owner, first, last)  # one of the windows over the voxel
    numbers = np.arange(len(spans))
    begin, end = np.searchsorted(owner, numbers), np.searchsorted(owner, numbers, "right")
    return tuple(zip((starts[0] + begin).tolist(), (starts[0] + end).tolist()))


def _step(roi: int, overlap: float) -> int:
    """From one window to the next, in whole voxels.

    >>> _step(20, 0.9), int(20 * (1 - 0.9))
    (2, 1)
    """
    return max(int(roi * (1 - _meant(overlap))), 1)


def _meant(overlap: float) -> Fraction:
    """The fraction that was meant by a decimal, or by 1 minus a step: floating point holds neither exactly.

    >>> _meant(0.9), _meant(1 - 0.9), _meant(1 - 1 / 6)
    (Fraction(9, 10), Fraction(1, 10), Fraction(5, 6))
    """
    exact = Fraction(float(overlap))
    simple = exact.limit_denominator(MEANT)
    return simple if float(overlap) in (float(simple), 1 - float(1 - simple)) else exact


def _spans(starts: Iterable[int], roi: int) -> list[Span]:
    return [(start, start + roi) for start in starts]
