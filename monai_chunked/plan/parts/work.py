"""How much the network has to do, batch after batch, and where that is cut for several workers. Integers only."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.window_grid import Skipped, WindowGrid

__all__ = ["Work", "cut", "needed_windows", "work_of"]


@dataclass(frozen=True)
class Work:
    """What the network has to do, batch after batch.

    Attributes:
        ends: the number of the first window behind each batch, over all images.
        predicted: how many windows the network gets with each batch; 0 where nobody needs what it would say.
    """

    ends: np.ndarray
    predicted: np.ndarray


def work_of(
    windows: WindowGrid,
    images: int,
    sw_batch_size: int,
    *,
    skipped: Skipped | None = None,
    needed: np.ndarray | None = None,
) -> Work:
    """The batches of a run.

    Args:
        windows: over an image.
        images: number of images in the input batch.
        sw_batch_size: how many windows the network gets at a time.
        skipped: the windows that are known to be skipped.
        needed: for each window in scan order over all images, whether a chunk that it touches is still to be made;
            ``None``: all are.
    """
    lengths = windows.run_lengths(images)
    run = np.repeat(np.arange(len(lengths)), lengths)
    seen = _seen(windows, images, skipped)
    before = np.cumsum(seen) - seen
    before -= before[(np.cumsum(lengths) - lengths)[run]]  # from the start of its run
    batch = np.stack([run, before // sw_batch_size])
    ends = np.append(np.flatnonzero((np.diff(batch) != 0).any(axis=0)) + 1, len(run))
    starts = np.append(0, ends[:-1])
    predicted = np.add.reduceat(seen.astype(np.int64), starts)
    if needed is not None:
        predicted[~np.logical_or.reduceat(seen & needed, starts)] = 0
    return Work(ends, predicted)


def cut(work: Work, workers: int) -> list[range]:
    """The windows of each of so many workers, or of fewer where there are fewer batches to be predicted.

    Args:
        work: what the network has to do.
        workers: how many share it.

    Returns:
        ranges that follow each other and end where batches end, with about as many windows to predict each.

    >>> cut(Work(np.array([4, 8, 12, 16]), np.array([4, 4, 4, 4])), 2)
    [range(0, 8), range(8, 16)]
    """
    done = np.cumsum(work.predicted)
    workers = max(1, min(workers, int((work.predicted > 0).sum())))
    shares = done[-1] * np.arange(1, workers) / workers
    after = np.searchsorted(done, shares)  # the first batch with which the share is reached
    nearer = after - (shares - np.append(0, done)[after] < done[after] - shares)
    stops: list[int] = []
    for k, batch in enumerate(nearer.tolist()):
        # each part has something to do, and leaves something for those behind it
        least = 0 if not stops else _next(work, stops[-1])
        stops.append(min(max(batch, least), _last(work, workers - 1 - k)))
    ends = [0, *(int(work.ends[batch]) for batch in stops), int(work.ends[-1])]
    return [range(start, stop) for start, stop in itertools.pairwise(ends)]


def needed_windows(grids: Sequence[ChunkGrid], images: int, done: Container[ChunkId]) -> np.ndarray:
    """For each window in scan order over all images, whether it touches a chunk that is not done.

    Args:
        grids: the chunks of each head of the network.
        images: number of images in the input batch.
        done: the chunks that are there already.
    """
    windows = grids[0].windows
    needed = np.zeros((images, *windows.shape), bool)
    for image in range(images):
        for head, grid in enumerate(grids):
            for position in np.ndindex(*grid.shape):
                if ChunkId(image, head, position) not in done:
                    around = [grid.around[d][c] for d, c in enumerate(position)]
                    needed[image][tuple(slice(side.start, side.stop) for side in around)] = True
    return _in_scan_order(windows, needed)


def _seen(windows: WindowGrid, images: int, skipped: Skipped | None) -> np.ndarray:
    """For each window in scan order over all images, whether the network may see it."""
    if skipped is None:
        return np.ones(images * len(windows), bool)
    return _in_scan_order(windows, np.broadcast_to(~skipped.each, (images, *windows.shape)))


def _in_scan_order(windows: WindowGrid, values: np.ndarray) -> np.ndarray:
    """A value for each image and position in the window grid, as a flat array in scan order."""
    return values.transpose(0, *(d + 1 for d in windows.order)).ravel()


def _next(work: Work, batch: int) -> int:
    """The next batch behind one that is predicted."""
    return batch + 1 + int(np.argmax(work.predicted[batch + 1 :] > 0))


def _last(work: Work, left: int) -> int:
    """The last batch behind which so many are predicted."""
    return int(np.flatnonzero(work.predicted)[-left]) - 1
