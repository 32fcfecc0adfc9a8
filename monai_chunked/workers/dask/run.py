"""
One volume on many workers, by Dask.

The windows are cut into parts, which are tasks that make chunks of the result, from the windows to the last stage, and
give them back. The process that calls writes them, as it would write its own: to any output, with the same journal, so
that a run goes on where it stopped with any number of workers, and in one process, too.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from monai_chunked.inputs.owned import Owned
from monai_chunked.inputs.source import source_of
from monai_chunked.machine.signals import interruptible
from monai_chunked.plan.layout import Layout, lay_out
from monai_chunked.plan.parts.forecast import forecast_parts
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import Work, cut, needed_windows, work_of
from monai_chunked.run.call import Call
from monai_chunked.run.calling import calling, packed, sum_dtype_of, watched
from monai_chunked.run.identity import described_output
from monai_chunked.run.inverting import inversion_of, why_whole
from monai_chunked.run.observer import Observer
from monai_chunked.run.run import load
from monai_chunked.run.settings import Settings
from monai_chunked.workers.dask.cluster import Cluster
from monai_chunked.workers.dask.tasks import HandingOn, Independent
from monai_chunked.workers.parts import Agreed, makers
from monai_chunked.workers.worker import Worker, put, results_of

__all__ = ["Asked", "infer_on"]


MOST_PARTS = 4
"""Parts for each thread of the workers, at most: who is lost costs one, and all end at about the same time."""

NEARLY_AS_FAST = 1.05
"""More parts than the fastest number are taken while they take no longer than this."""


@dataclass(frozen=True)
class Asked:
    """What is asked of the workers.

    Attributes:
        settings: what is asked for.
        source: the input, or a function that opens it.
        inputs: the input, opened here.
        network_factory: builds the network.
        parts: how many; ``None``: as many as are worth while.
        resources: of Dask, that a part needs.
    """

    settings: Settings
    source: Any
    inputs: Any
    network_factory: Callable[[], Any]
    parts: int | None
    resources: Mapping[str, float] | None


def infer_on(client: Any, asked: Asked) -> Any:
    """The result, made by the workers of a Dask cluster.

    Args:
        client: a ``distributed.Client``.
        asked: what is asked of them.

    Raises:
        ValueError: when the inverse cannot be done a chunk at a time.
    """
    settings = asked.settings
    opened = source_of(asked.inputs)
    inversion = inversion_of(settings, opened)
    if inversion is not None and (reason := why_whole(inversion, settings, sum_dtype_of(opened, settings))):
        raise ValueError(
            f"inverse={settings.inverse!r} cannot be done a chunk at a time, so not by several workers: {reason}; "
            f"leave it out and undo the result, or call the inferer itself"
        )
    of_workers = replace(settings, output="cpu", output_dir=None, overwrite=False, mask=None, progress=False)
    here = replace(settings, sw_device=None)
    with Cluster(client, Worker(of_workers, asked.source, asked.network_factory), asked.resources) as cluster:

        def fingerprint(call: Call) -> tuple[dict[str, str], list[str]]:
            return cluster.run(Worker.fingerprint, Owned(settings.mask), described_output(call.output), inversion)

        with calling(here, opened, inversion, fingerprint) as call:
            return _infer(call, cluster, asked.parts)


def _infer(call: Call, cluster: Cluster, count: int | None) -> Any:
    """The result, from the parts that are still needed."""
    settings, recovery = call.settings, call.recovery
    agreed = Agreed(recovery.heads, recovery.cuts, (), recovery.results, recovery.done)
    if not recovery.resumed:
        agreed = cluster.run(Worker.agree, call.skipped)
    sizes = (settings.windows, settings.image_size, agreed.heads, call.sum_dtype.itemsize)
    layout = lay_out(*sizes, cuts=agreed.cuts)  # nothing is open here
    results = load(call, layout if recovery.resumed else None)
    if results is None:
        recovery.begin(agreed.heads, agreed.cuts)
        needed = needed_windows(layout.grids, len(call.metadata), done) if (done := call.done(layout)) else None
        parts = _cut(call, layout, needed, count, cluster.threads())
        agreed = replace(agreed, ranges=parts.ranges)
        writes_files = settings.output_dir is not None or not call.output.in_memory
        with interruptible(recovery.journal) if writes_files else nullcontext(), watched(call) as observer:
            tell = partial(_tell, call, observer, needed)
            results = _gather(call, cluster, agreed, layout, parts, tell)
        recovery.finish()
    return packed(call, results)


def _gather(
    call: Call, cluster: Cluster, agreed: Agreed, layout: Layout, parts: Parts, tell: Callable[[range, _Counts], None]
) -> list[Any]:
    """The results, when every part has come and is written."""
    every = makers(call, layout, parts)
    counts = _Counts(len(every), len(call.recovery.done))
    missing = {part for box, part in every.items() if box not in call.recovery.done}
    if call.hands_on:
        missing = set(range(len(parts)))  # others may wait for what they hand on
    results = results_of(call, agreed, layout)
    try:
        for part in sorted(set(range(len(parts))) - missing):
            tell(parts.ranges[part], counts)
        tasks = (
            HandingOn(cluster, parts, agreed) if call.hands_on else Independent(cluster, parts, agreed, call.inversion)
        )
        for part, boxes in cluster.parts(sorted(missing), tasks.start):
            for made in boxes:
                put(results, made)
                results.poll()
            counts.finished += len(boxes)
            tell(parts.ranges[part], counts)
        return results.finish()
    except BaseException:
        results.abandon()
        raise


@dataclass
class _Counts:
    """What an observer asks of a run: how many chunks of the result there are, how many are finished, what is open."""

    total: int
    finished: int
    open_bytes: int = 0


def _tell(call: Call, observer: Observer, needed: np.ndarray | None, numbers: range, counts: Any) -> None:
    """All windows of a part are done."""
    every = itertools.chain.from_iterable(call.settings.windows.runs(len(call.metadata), numbers))
    for number, window in zip(numbers, every):
        skipped = call.skipped is not None and call.skipped.window(window.image, window.position)
        observer.window(window, not skipped and (needed is None or bool(needed[number])), counts)


def _cut(call: Call, layout: Layout, needed: np.ndarray | None, count: int | None, threads: int) -> Parts:
    """The parts: as many as are asked for, or as many as are worth while."""
    settings, images = call.settings, len(call.metadata)
    work = work_of(settings.windows, images, settings.sw_batch_size, call.skipped, needed)
    if not work.predicted.any():  # all that is left is of skipped windows
        return Parts(layout.grids, images, [range(images * len(settings.windows))], call.skipped)
    ways = [count] if count is not None else [threads * times for times in range(1, MOST_PARTS + 1)]
    parts = [Parts(layout.grids, images, cut(work, each), call.skipped) for each in ways]
    how = (call.hands_on, work, layout, threads)
    seconds = [_slowest(each, *how) for each in parts] if len(ways) > 1 else [0]
    fast = [each for each, time in zip(parts, seconds) if time <= NEARLY_AS_FAST * min(seconds)]
    # sums that go through a part have to wait for it, and those of the next part for them
    direct = [each for each in fast if not any(map(each.passes_on, range(len(each))))] if call.hands_on else []
    return (direct or fast)[-1]


def _slowest(parts: Parts, hands_on: bool, work: Work, layout: Layout, threads: int) -> int:
    """How many windows the network of a worker gets, if each takes the next part as soon as it is ready."""
    no_background = [False] * len(parts.grids)
    forecast = forecast_parts(parts, work, layout.voxel_bytes, threads, no_background)
    busy = [0] * threads
    for part in forecast.handing_on if hands_on else forecast.independent:
        heapq.heappush(busy, heapq.heappop(busy) + part.windows)
    return max(busy)
