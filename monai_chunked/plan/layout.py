"""From sizes and limits to a plan: how the output is cut into chunks, and what a run will hold and move."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np

from monai_chunked.plan.borders import nearest
from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.schedule import CPU, DEVICE, UNLIMITED, Forecast, LimitError, Limits, Schedule
from monai_chunked.plan.sizes import format_bytes
from monai_chunked.plan.window_grid import Skipped, WindowGrid, padding

__all__ = ["Layout", "NothingLeft", "Volume", "chunk_grids", "lay_out", "least_peak"]


MAX_CUTS_PER_WINDOW = 8
"""Upper limit of the automatic cuts that a window meets along one dimension."""


class NothingLeft(ValueError):
    """An output without voxels: rounding has left none of a small image."""


def chunk_grids(
    windows: WindowGrid,
    image_size: Sequence[int],
    prediction_size: Sequence[int] | None = None,
    chunk_size: Sequence[int] | None = None,
    *,
    limited: bool = False,
) -> list[ChunkGrid]:
    """The ways to cut one head of the network into chunks, from few pieces of each window to many.

    Args:
        windows: the windows.
        image_size: spatial size of the image in voxels, before padding.
        prediction_size: spatial size of the prediction of one window in voxels, ``roi_size`` by default.
        chunk_size: spatial size of a chunk in output voxels; there is one way then. By default chunks end where windows
            start or end, which is where voxels become complete: with no cuts along the dimension in which windows
            advance first, or with cuts there too. Buffered, a chunk is as long as a buffer in the buffer's dimension.
        limited: whether memory is limited, so that chunks may also end where any window does.

    Raises:
        ValueError: when a window does not predict a whole number of output voxels.
    """
    predicted = tuple(prediction_size or windows.roi_size)
    spans, sizes = [], []
    for d, (size, image, roi, least) in enumerate(zip(predicted, image_size, windows.roi_size, windows.least_size)):
        # the rounding of zoomed outputs, of their windows and of what padding added is MONAI's
        zoom = size / float(roi)
        missing = padding((image,), (least,))[0][0]
        full = int(windows.image_size[d] * zoom)
        crop, stop = 0, full
        if windows.image_size[d] > image:
            scale = full / roi
            crop, stop = round(missing * scale), min(round((missing + image) * scale), full)
        if stop <= crop:
            raise NothingLeft(
                f"no output voxel is left of the {image} voxels of spatial dimension {d} at zoom {zoom:g}"
            )
        for start, end in windows.spans[d]:
            if int(end * zoom) - int(start * zoom) != (end - start) * size / roi:
                raise ValueError(
                    f"the network maps {roi} voxels of spatial dimension {d} to {size}, and by rounding its window at "
                    f"{start} does not cover {(end - start) * size / roi:g} output voxels; choose roi_size and overlap "
                    f"so that every window start times {size}/{roi} is an integer "
                    f"(starts: {_shorten(windows.starts[d])})"
                )
        spans.append(tuple((int(start * zoom) - crop, int(end * zoom) - crop) for start, end in windows.spans[d]))
        sizes.append(stop - crop)

    kept = tuple(map(nearest, spans)) if windows.nearest_only else tuple(spans)
    if chunk_size is not None:
        regular = tuple(tuple(range(0, size, chunk)) + (size,) for size, chunk in zip(sizes, chunk_size))
        return [ChunkGrid(windows, tuple(spans), kept, regular)]

    fine = [_automatic_cuts(along, size) for along, size in zip(kept, sizes)]
    slowest, fastest = windows.order[0], windows.order[-1]
    coarse = list(fine)
    if windows.steps_per_buffer:
        starts = {start for start, _ in kept[slowest][:: windows.steps_per_buffer]}
        coarse[slowest] = (0, *sorted(start for start in starts if 0 < start < sizes[slowest]), sizes[slowest])
    uncut = list(coarse)
    if slowest != fastest or not windows.steps_per_buffer:
        uncut[fastest] = (0, sizes[fastest])
    ways = [uncut, coarse, fine] if limited else [uncut, coarse]
    return [ChunkGrid(windows, tuple(spans), kept, tuple(cuts)) for cuts in ways]


def _automatic_cuts(spans: tuple[tuple[int, int], ...], size: int) -> tuple[int, ...]:
    """Cuts at every window start and end, where voxels become complete, or at some of them if these are very many."""
    cuts = sorted({cut for span in spans for cut in span if 0 < cut < size})
    inside = [bisect_left(cuts, stop) - bisect_right(cuts, start) for start, stop in spans]
    return (0, *cuts[:: ceil(max(inside) / MAX_CUTS_PER_WINDOW) or 1], size)


def _shorten(values: Sequence[int], most: int = 6) -> str:
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "")


WORTHWHILE = 0.8
"""Without a limit, chunks are cut smaller where that brings the peak of open chunks below this fraction."""


PIECE_BYTES = 2**20
"""Smaller pieces of windows cost more, by their number, than is saved where they have no gaps."""


@dataclass(frozen=True)
class Volume:
    """What is laid out: the windows over a volume, and what the network says of each.

    Attributes:
        windows: the windows.
        image_size: spatial size of the image in voxels.
        heads: of the network.
        itemsize: bytes of a sum, 4 or 8.
        skipped: the windows that are known to be skipped.
    """

    windows: WindowGrid
    image_size: tuple[int, ...]
    heads: Heads
    itemsize: int
    skipped: Skipped | None = None

    @property
    def voxel_bytes(self) -> list[int]:
        """What one voxel of an open chunk takes, for each head."""
        return [head.channels * self.itemsize for head in self.heads]

    def ways(self, chunk_size: Sequence[int] | None = None, *, limited: bool) -> list[tuple[ChunkGrid, ...]]:
        """The different ways to cut all heads alike, as :py:func:`chunk_grids` has them for one."""
        of_heads = [
            chunk_grids(self.windows, self.image_size, head.size, chunk_size, limited=limited) for head in self.heads
        ]
        return list(dict.fromkeys(zip(*of_heads)))

    def piece_bytes(self, grids: Sequence[ChunkGrid]) -> float:
        """What a window and a chunk have in common, on average over all heads."""
        predicted = sum(prod(head.size) * size for head, size in zip(self.heads, self.voxel_bytes))
        return len(self.windows) * predicted / sum(grid.overlap_count() for grid in grids)


@dataclass(frozen=True)
class Layout:
    """The chunks of each head of the network, and where the open ones are throughout a run.

    Attributes:
        grids: the chunks of each head.
        voxel_bytes: what one voxel of an open chunk takes, for each head.
        limits: of what open chunks take.
        forecast: what the run holds and moves.
        skipped: the windows that are known to be skipped.
    """

    grids: list[ChunkGrid]
    voxel_bytes: list[int]
    limits: Limits
    forecast: Forecast
    skipped: Skipped | None = None

    def schedule(self) -> Schedule:
        """What the run follows."""
        return Schedule(self.grids, self.voxel_bytes, self.limits, self.skipped)

    def largest_chunk_size(self) -> tuple[int, ...]:
        """Spatial size of the largest chunk in voxels, in each dimension of whichever head."""
        return tuple(map(max, zip(*map(_largest, self.grids))))

    def largest_chunk(self) -> int:
        """Bytes of the largest chunk."""
        return max(prod(_largest(grid)) * size for grid, size in zip(self.grids, self.voxel_bytes))


def lay_out(
    volume: Volume,
    limits: Limits = UNLIMITED,
    *,
    chunk_size: Sequence[int] | None = None,
    cuts: Sequence[tuple[tuple[int, ...], ...]] | None = None,
    labels_on_cpu: bool = False,
) -> Layout:
    """Cut the heads of the network into chunks.

    With limits, the way with the fewest pieces of each window that keeps open chunks where predictions are; else the
    one that moves the fewest bytes to scratch and back, and then between device and CPU memory.

    Args:
        volume: what is laid out.
        limits: of what open chunks take.
        chunk_size: spatial size of a chunk in voxels, chosen if ``None``.
        cuts: of the chunks of each head in each dimension, where they are given.
        labels_on_cpu: predictions are in CPU memory, and only labels are written. Chunks are cut in every dimension
            then, unless pieces get small: adding is faster where what a window and a chunk have in common has no gaps,
            fewer bytes are open, and the short runs in which such chunks are written do not matter for labels.

    Raises:
        ValueError: when the limits cannot hold the chunks of one window; the message says what would do.
    """
    ways = volume.ways(chunk_size, limited=limits.device not in (None, 0) or limits.cpu is not None)
    if cuts is not None:
        ways = [tuple(replace(grid, cuts=of_head) for grid, of_head in zip(ways[0], cuts))]
    if labels_on_cpu and len(ways) > 1 and volume.piece_bytes(ways[1]) >= PIECE_BYTES:
        del ways[0]
    top, limit = (CPU, limits.cpu) if limits.device == 0 else (DEVICE, limits.device)
    layouts = []
    for grids in ways:
        forecast = _forecast_unlimited(grids, volume, top)
        if limit is not None and forecast.peak[top] > limit:
            try:
                forecast = Schedule(grids, volume.voxel_bytes, limits, volume.skipped).forecast()
            except LimitError:
                continue
        layouts.append(Layout(list(grids), volume.voxel_bytes, limits, forecast, volume.skipped))
    if not layouts:
        smallest = min(
            max(grid.window_voxels() * size for grid, size in zip(grids, volume.voxel_bytes)) for grids in ways
        )
        raise ValueError(
            f"cpu_memory={limits.cpu:,} bytes cannot hold the chunks that one window touches; the smallest limit that "
            f"would do is {smallest:,} bytes ({format_bytes(smallest)})"
        )
    best = min(layouts, key=lambda layout: (layout.forecast.written, layout.forecast.moved))
    if limit is None and layouts[-1].forecast.peak[top] < WORTHWHILE * best.forecast.peak[top]:
        return layouts[-1]
    return best


def least_peak(volume: Volume) -> int:
    """The least memory in which all open chunks fit, in bytes, however they are cut."""
    return min(_forecast_unlimited(grids, volume, CPU).peak[CPU] for grids in volume.ways(limited=True))


def _largest(grid: ChunkGrid) -> tuple[int, ...]:
    """Spatial size of the largest chunk of a head, in each dimension."""
    return tuple(int(np.diff(cuts).max()) for cuts in grid.cuts)


def _forecast_unlimited(grids: Sequence[ChunkGrid], volume: Volume, level: int) -> Forecast:
    """What :py:meth:`Schedule.forecast` says without limits; where no window is skipped, without going through all."""
    if volume.skipped is not None:
        unlimited = UNLIMITED if level == CPU else Limits(None)
        return Schedule(grids, volume.voxel_bytes, unlimited, volume.skipped).forecast()
    during = [grid.open_voxels() * size for grid, size in zip(grids, volume.voxel_bytes)]
    after = [grid.kept_voxels() * size for grid, size in zip(grids, volume.voxel_bytes)]
    before = [np.concatenate([[0], kept[:-1]]) for kept in after]
    curve = np.zeros((len(during[0]), len(grids), 3), np.int64)
    for k in range(len(grids)):
        curve[:, k, level] = sum(after[:k]) + during[k] + sum(before[k + 1 :])
    return Forecast(curve.reshape(-1, 3), 0, 0, 0, 0)
