"""
One volume on many workers, by Dask.

The windows are cut into parts, which are tasks that make chunks of the result, from the windows to the last stage, and
give them back. The process that calls writes them, as it would write its own: to any output, with the same journal, so
that a run goes on where it stopped with any number of workers, and in one process, too.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_chunked.call.call import Call, Fingerprint
from monai_chunked.call.identity import described_output
from monai_chunked.call.observer import Observer
from monai_chunked.chunks.levels import Memory
from monai_chunked.chunks.stages import Finished
from monai_chunked.inputs.lazy.owned import Owned
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.layout import Layout, lay_out
from monai_chunked.plan.parts.forecast import forecast_parts
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import Work, cut, needed_windows, work_of
from monai_chunked.recovery.left import Left
from monai_chunked.run.assembly import Results, finisher_of
from monai_chunked.run.begun import Run
from monai_chunked.run.run import finished, hand_out, watched
from monai_chunked.workers.dask.cluster import Cluster
from monai_chunked.workers.dask.tasks import IndependentParts, LinkedParts
from monai_chunked.workers.part import SharedRun, makers
from monai_chunked.workers.worker import PartBox, Worker

__all__ = ["Elsewhere"]


MOST_PARTS = 4
"""Parts for each thread of the workers, at most: a lost worker costs few, and all end at about the same time."""

NEARLY_AS_FAST = 1.05
"""More parts than the fastest number are taken while they take no longer than this."""


class Elsewhere:
    """The workers of a Dask cluster do it; this process writes what they make.

    Args:
        cluster: the workers.
        parts: how many; ``None``: as many as are worthwhile.
    """

    def __init__(self, cluster: Cluster, parts: int | None) -> None:
        self.cluster = cluster
        self.parts = parts

    def whole(self, call: Call, reason: str) -> Any:
        """
        Raises:
            ValueError: the inverse cannot be done by several workers.
        """
        raise ValueError(
            f"inverse={call.settings.inverse!r} cannot be done a chunk at a time, so not by several workers: {reason}; "
            f"leave it out and undo the result, or call the inferer itself"
        )

    def fingerprint(self, call: Call) -> Callable[[], Fingerprint]:
        def fingerprint() -> Fingerprint:
            about = (Owned(call.settings.mask), described_output(call.output), call.inversion)
            texts: Fingerprint = self.cluster.run(Worker.fingerprint, *about)
            return texts

        return fingerprint

    def finished(self, run: Run) -> Results | None:
        return finished(run)

    def results(self, run: Run) -> Results:
        call, left = run.call, run.left
        if left.heads is None:
            left = self.cluster.run(Worker.first_heads, run.skipped)
        assert left.heads is not None
        layout = lay_out(call.volume(left.heads), cuts=left.cuts)  # nothing is open here
        written = run.written(layout)
        needed = needed_windows(layout.grids, call.images, written) if written else None
        parts = _cut(run, layout, needed, count=self.parts, threads=self.cluster.threads())
        with watched(run, call.windows) as observer:
            gathering = _Gathering(run, self.cluster, left, layout, parts, observer, needed)
            return Results(left.heads, gathering.results())

    def hand_out(self, run: Run, results: Results) -> Any:
        return hand_out(run.call, results)


@dataclass
class _Gathering:
    """Parts come, and are written.

    Attributes:
        run: the call that has begun.
        cluster: the workers.
        left: heads and chunks of the network, and what an earlier run left.
        layout: the chunks of each head.
        parts: the windows of each part.
        observer: is told what has happened.
        needed: for each window whether it is predicted; ``None``: all are, but for those that are skipped.
        finished, total: number of chunks of the result that are finished, and in all.
        open_bytes: nothing is open here.
    """

    run: Run
    cluster: Cluster
    left: Left
    layout: Layout
    parts: Parts
    observer: Observer
    needed: np.ndarray | None
    finished: int = 0
    total: int = 0
    open_bytes: int = 0

    def results(self) -> list[Any]:
        """The results, when every part has come and is written."""
        call, written = self.run.call, self.run.left.written
        boxes = makers(call, self.layout, self.parts)
        self.total, self.finished = len(boxes), len(written)
        missing = {part for box, part in boxes.items() if box not in written}
        if call.parts_hand_on:
            missing = set(range(len(self.parts)))  # others may wait for what they hand on
        assert self.left.heads is not None
        finisher = finisher_of(
            self.run,
            self.layout,
            self.left.heads,
            stages=lambda *_: [],
            threaded=lambda writer: not writer.in_memory,
        )
        try:
            for part in sorted(set(range(len(self.parts))) - missing):
                self._tell(part)
            for part, part_boxes in self.cluster.parts(sorted(missing), self._tasks().start):
                for box in part_boxes:
                    finisher.put(_finished(box))
                    finisher.poll()
                self.finished += len(part_boxes)
                self._tell(part)
            return finisher.finish()
        except BaseException:
            finisher.abandon()
            raise

    def _tasks(self) -> LinkedParts | IndependentParts:
        shared = SharedRun(self.left, self.parts.ranges, self.run.skipped)
        if self.run.call.parts_hand_on:
            return LinkedParts(self.cluster, self.parts, shared)
        return IndependentParts(self.cluster, shared, self.run.call.inversion)

    def _tell(self, part: int) -> None:
        """All windows of a part are done."""
        call, skipped, numbers = self.run.call, self.run.skipped, self.parts.ranges[part]
        windows = itertools.chain.from_iterable(call.settings.windows.runs(call.images, numbers))
        for number, window in zip(numbers, windows):
            skips = skipped is not None and skipped.window(window.image, window.position)
            predicted = not skips and (self.needed is None or bool(self.needed[number]))
            self.observer.window(window, predicted, self)


def _finished(box: PartBox) -> Finished:
    """A box of a result, as a chunk that has gone through all stages."""
    at = ChunkId(box.image, box.head, tuple(side.start for side in box.box))
    return Finished(at, box.box, box.values, Memory(box.values))


def _cut(run: Run, layout: Layout, needed: np.ndarray | None, *, count: int | None, threads: int) -> Parts:
    """The parts: as many as are asked for, or as many as are worthwhile."""
    settings, images, hands_on = run.call.settings, run.call.images, run.call.parts_hand_on
    work = work_of(settings.windows, images, settings.sw_batch_size, skipped=run.skipped, needed=needed)
    if not work.predicted.any():  # all that is left is of skipped windows
        return Parts(layout.grids, images, [run.call.windows], run.skipped)
    counts = [count] if count is not None else [threads * times for times in range(1, MOST_PARTS + 1)]
    ways = [Parts(layout.grids, images, cut(work, number), run.skipped) for number in counts]
    seconds = (
        [_slowest(parts, work, layout, hands_on=hands_on, threads=threads) for parts in ways] if len(ways) > 1 else [0]
    )
    fast = [parts for parts, time in zip(ways, seconds) if time <= NEARLY_AS_FAST * min(seconds)]
    # sums that go through a part have to wait for it, and the next part waits for them
    direct = [parts for parts in fast if not any(map(parts.passes_on, range(len(parts))))] if hands_on else []
    return (direct or fast)[-1]


def _slowest(parts: Parts, work: Work, layout: Layout, *, hands_on: bool, threads: int) -> int:
    """How many windows the busiest worker predicts, if each takes the next part as soon as it is ready."""
    no_background = [False] * len(parts.grids)
    forecast = forecast_parts(
        parts, work, voxel_bytes=layout.voxel_bytes, workers=threads, background_adds=no_background
    )
    busy = [0] * threads
    for part in forecast.handing_on if hands_on else forecast.independent:
        heapq.heappush(busy, heapq.heappop(busy) + part.windows)
    return max(busy)
