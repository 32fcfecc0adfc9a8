"""
One volume on many workers, by Dask: ``monai_chunked.dask.infer``.

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

from monai_chunked.dask.cluster import Cluster
from monai_chunked.dask.tasks import HandingOn, Independent
from monai_chunked.inference.call import Call
from monai_chunked.inference.calling import calling, packed, sum_dtype_of, watched
from monai_chunked.inference.checks import check_inputs
from monai_chunked.inference.describing import described_output
from monai_chunked.inference.elsewhere import Worker, put, results_of
from monai_chunked.inference.inferer import ChunkedSlidingWindowInferer
from monai_chunked.inference.interruption import interruptible
from monai_chunked.inference.inverting import inversion_of, why_whole
from monai_chunked.inference.part_of_run import Agreed, makers
from monai_chunked.inference.progress import Observer
from monai_chunked.inference.run import load
from monai_chunked.inference.settings import Settings
from monai_chunked.inference.slice_inferer import ChunkedSliceInferer
from monai_chunked.inputs.owned import Owned
from monai_chunked.inputs.source import source_of
from monai_chunked.outputs.base import Output
from monai_chunked.plan.layout import Layout, lay_out
from monai_chunked.plan.part_forecast import forecast_parts
from monai_chunked.plan.parts import Parts
from monai_chunked.plan.sizes import check_positive
from monai_chunked.plan.work import Work, cut, needed_windows, work_of

__all__ = ["infer"]


MOST_PARTS = 4
"""Parts for each thread of the workers, at most: who is lost costs one, and all end at about the same time."""

NEARLY_AS_FAST = 1.05
"""More parts than the fastest number are taken while they take no longer than this."""


def infer(
    inferer: ChunkedSlidingWindowInferer,
    source: Any,
    network_factory: Callable[[], Any],
    client: Any,
    output: Output | str | None = None,
    *,
    parts: int | None = None,
    resources: Mapping[str, float] | None = None,
) -> Any:
    """The result of ``inferer(source, network_factory())``, made by the workers of a Dask cluster.

    The bits are those of one process. What a part has added to a chunk that a later one finishes is handed on to it.
    With an ``inverse``, a ``skip`` or a memory limit parts are independent, and windows that touch the chunks of two
    parts are predicted for both. ``inferer.plan(source, classes, workers=parts)`` says both beforehand. The network is
    built once in each worker, and runs without gradients and outside of any ``torch.autocast`` of the caller.

    Args:
        inferer: says what is to be done; its memory limits, ``sw_device`` and ``scratch_dir`` are those of each worker.
        source: the input, ``(B, C, *spatial)``. What is in memory is sent to the workers; a file is opened by each of
            them again, by the same path, and read as far as it is needed. Or a function without arguments that opens
            it, called here and in each worker: ``partial(open_image, "ct.nii.gz")``.
        network_factory: a function without arguments that builds the network, with its weights and on its device. It
            goes to the workers by pickle.
        client: a ``distributed.Client``.
        output: where the result goes, which this process writes; by default that of the inferer.
        parts: how many; by default up to four for each thread of the workers, as many as are worth while. The
            finished chunks of four parts for each thread may be in memory at a time.
        resources: of Dask, that a part needs: ``{"GPU": 1}`` has one part at a time on each GPU of a worker that was
            started with ``--resources "GPU=1"``.

    Raises:
        ImportError: when ``distributed`` is missing.
        TypeError: when the inferer is another one.
        ValueError: when a parameter does not fit; when the inverse cannot be done a chunk at a time.
        RuntimeError: when the worker of a part was lost too often; and whatever the network raises, when a part has
            failed and was tried twice again. The message names the part.
        OSError: when the result cannot be written.

    Returns:
        what the inferer returns.

    Example::

        client = Client(LocalCluster(n_workers=4, threads_per_worker=1))
        volume = partial(open_image, "embryo.ome.zarr")
        labels = infer(inferer, volume, load_network, client, ZarrOutput("results"))
    """
    if isinstance(inferer, ChunkedSliceInferer) or not isinstance(inferer, ChunkedSlidingWindowInferer):
        raise TypeError(f"inferer must be a ChunkedSlidingWindowInferer, got {type(inferer).__name__}")
    parts = None if parts is None else check_positive("parts", parts)
    inputs = source() if callable(source) else source
    check_inputs(inputs)
    given = Settings.given(inferer) | ({} if output is None else {"output": output, "output_dir": None})
    settings = Settings.check(inputs.shape, **given)
    _check(settings)
    opened = source_of(inputs)
    inversion = inversion_of(settings, opened)
    if inversion is not None and (reason := why_whole(inversion, settings, sum_dtype_of(opened, settings))):
        raise ValueError(
            f"inverse={settings.inverse!r} cannot be done a chunk at a time, so not by several workers: {reason}; "
            f"leave it out and undo the result, or call the inferer itself"
        )
    of_workers = replace(settings, output="cpu", output_dir=None, overwrite=False, mask=None, progress=False)
    here = replace(settings, sw_device=None)
    with Cluster(client, Worker(of_workers, source, network_factory), resources) as cluster:

        def fingerprint(call: Call) -> tuple[dict[str, str], list[str]]:
            return cluster.run(Worker.fingerprint, Owned(settings.mask), described_output(call.output), inversion)

        with calling(here, opened, inversion, fingerprint) as call:
            return _infer(call, cluster, parts)


def _check(settings: Settings) -> None:
    """Refuse what workers cannot do each by itself."""
    if settings.process_group is not None:
        raise ValueError("process_group is for torchrun, not for workers of Dask; leave it out")


def _infer(call: Call, cluster: Cluster, count: int | None) -> Any:
    """The result, from the parts that are still needed."""
    settings, recovery = call.settings, call.recovery
    agreed = Agreed(recovery.keys, recovery.heads, recovery.cuts, (), recovery.results, recovery.done)
    if not recovery.resumed:
        agreed = cluster.run(Worker.agree, call.skipped)
    sizes = (settings.windows, settings.image_size, agreed.heads, call.sum_dtype.itemsize)
    layout = lay_out(*sizes, cuts=agreed.cuts)  # nothing is open here
    results = load(call, layout if recovery.resumed else None)
    if results is None:
        recovery.begin(agreed.keys, agreed.heads, agreed.cuts)
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
