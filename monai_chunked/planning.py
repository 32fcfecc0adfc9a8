"""From sizes and limits to a plan: how the output is cut into chunks, and what a run will hold and move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from monai_chunked.memory import format_bytes
from monai_chunked.plan import ChunkGrid, WindowGrid, chunk_grids
from monai_chunked.schedule import CPU, DEVICE, Forecast, LimitError, Schedule

__all__ = ["Layout", "lay_out", "least_peak"]

WORTHWHILE = 0.8
"""Without a limit, chunks are cut smaller where that brings the peak of open chunks below this fraction."""

PIECE_BYTES = 2**20
"""Below this size of a piece of a window, what many pieces cost outweighs what it spares to add them without gaps."""


@dataclass(frozen=True)
class Layout:
    """The chunks of each output of the network, and where the open ones are throughout a run.

    Attributes:
        grids: the chunks of each output.
        voxel_bytes: what one voxel of an open chunk takes, for each output.
        device_limit, cpu_limit: as for :py:class:`Schedule`.
        forecast: what the run holds and moves.
    """

    grids: list[ChunkGrid]
    voxel_bytes: list[int]
    device_limit: int | None
    cpu_limit: int | None
    forecast: Forecast

    def schedule(self) -> Schedule:
        """What the run follows."""
        return Schedule(self.grids, self.voxel_bytes, self.device_limit, self.cpu_limit)

    def largest_chunk(self) -> int:
        """Bytes of the largest chunk."""
        sizes = (prod(int(np.diff(cuts).max()) for cuts in grid.cuts) for grid in self.grids)
        return max(size * each for size, each in zip(sizes, self.voxel_bytes))


def lay_out(
    windows: WindowGrid,
    image_size: Sequence[int],
    outputs: Sequence[tuple[int, tuple[int, ...]]],
    itemsize: int,
    chunk_size: Sequence[int] | None = None,
    device_limit: int | None = 0,
    cpu_limit: int | None = None,
    cuts: Sequence[tuple[tuple[int, ...], ...]] | None = None,
    labels_on_cpu: bool = False,
) -> Layout:
    """Cut the outputs of the network into chunks.

    With limits, the way with the fewest pieces of each window that keeps open chunks where predictions are; else the
    one that moves the fewest bytes to scratch and back, and then between device and CPU memory.

    Args:
        windows: the windows.
        image_size: spatial size of the image in voxels.
        outputs: number of channels and spatial size of the prediction of one window, for each output of the network.
        itemsize: bytes of a sum, 4 or 8.
        chunk_size: spatial size of a chunk in voxels, chosen if ``None``.
        device_limit: the most bytes of open chunks on the device; ``None``: no limit, 0: none, or there is no device.
        cpu_limit: the most bytes of open chunks in CPU memory; ``None``: no limit.
        cuts: of the chunks of each output in each dimension, where they are given.
        labels_on_cpu: predictions are in CPU memory, and only labels are written. Chunks are cut in every dimension
            then, unless pieces get small: adding is faster where what a window and a chunk have in common has no gaps,
            fewer bytes are open, and the short runs in which such chunks are written do not matter for labels.

    Raises:
        ValueError: when the limits cannot hold the chunks of one window; the message says what would do.
    """
    limited = device_limit not in (None, 0) or cpu_limit is not None
    ways = _ways(windows, image_size, outputs, chunk_size, limited)
    if cuts is not None:
        ways = [tuple(replace(grid, cuts=each) for grid, each in zip(ways[0], cuts))]
    voxel_bytes = [channels * itemsize for channels, _ in outputs]
    if labels_on_cpu and len(ways) > 1:
        predicted = len(windows) * sum(prod(size) * each for (_, size), each in zip(outputs, voxel_bytes))
        if predicted / sum(grid.piece_count() for grid in ways[1]) >= PIECE_BYTES:
            del ways[0]
    top, limit = (CPU, cpu_limit) if device_limit == 0 else (DEVICE, device_limit)
    layouts = []
    for grids in ways:
        forecast = _forecast_unlimited(grids, voxel_bytes, top)
        if limit is not None and forecast.peak[top] > limit:
            try:
                forecast = Schedule(grids, voxel_bytes, device_limit, cpu_limit).forecast()
            except LimitError:
                continue
        layouts.append(Layout(list(grids), voxel_bytes, device_limit, cpu_limit, forecast))
    if not layouts:
        smallest = min(max(g.window_voxels() * b for g, b in zip(grids, voxel_bytes)) for grids in ways)
        raise ValueError(
            f"cpu_memory={cpu_limit:,} bytes cannot hold the chunks that one window touches; the smallest limit that "
            f"would do is {smallest:,} bytes ({format_bytes(smallest)})"
        )
    best = min(layouts, key=lambda layout: (layout.forecast.written, layout.forecast.moved))
    if limit is None and layouts[-1].forecast.peak[top] < WORTHWHILE * best.forecast.peak[top]:
        return layouts[-1]
    return best


def least_peak(
    windows: WindowGrid, image_size: Sequence[int], outputs: Sequence[tuple[int, tuple[int, ...]]], itemsize: int
) -> int:
    """The least memory in which all open chunks fit, in bytes, however they are cut."""
    voxel_bytes = [channels * itemsize for channels, _ in outputs]
    ways = _ways(windows, image_size, outputs, None, limited=True)
    return min(_forecast_unlimited(grids, voxel_bytes, CPU).peak[CPU] for grids in ways)


def _ways(
    windows: WindowGrid,
    image_size: Sequence[int],
    outputs: Sequence[tuple[int, tuple[int, ...]]],
    chunk_size: Sequence[int] | None,
    limited: bool,
) -> list[tuple[ChunkGrid, ...]]:
    """The different ways to cut all outputs alike."""
    each = (chunk_grids(windows, image_size, size, chunk_size, limited) for _, size in outputs)
    return list(dict.fromkeys(zip(*each)))


def _forecast_unlimited(grids: Sequence[ChunkGrid], voxel_bytes: Sequence[int], level: int) -> Forecast:
    """What :py:meth:`Schedule.forecast` would say without limits, without going through the windows one by one."""
    during = [grid.open_voxels() * size for grid, size in zip(grids, voxel_bytes)]
    after = [grid.kept_voxels() * size for grid, size in zip(grids, voxel_bytes)]
    before = [np.concatenate([[0], kept[:-1]]) for kept in after]
    curve = np.zeros((len(during[0]), len(grids), 3), np.int64)
    for k in range(len(grids)):
        curve[:, k, level] = sum(after[:k]) + during[k] + sum(before[k + 1 :])
    return Forecast(curve.reshape(-1, 3), 0, 0, 0, 0)
