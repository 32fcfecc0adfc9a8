"""What a run will take, before it runs: for people to read, print and draw."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple

from monai_chunked import checks
from monai_chunked.inputs import device_of, dtype_of, rows_of
from monai_chunked.memory import format_bytes, parse_bytes
from monai_chunked.outputs import MemoryOutput, Output
from monai_chunked.outputs.behind import DEPTH
from monai_chunked.plan import window_grid
from monai_chunked.planning import Layout, lay_out, least_peak
from monai_chunked.postprocessing import is_argmax, label_dtype
from monai_chunked.schedule import CPU, DEVICE, SCRATCH

__all__ = ["ChunkPlan", "plan_inferer"]

A_LOT = 0.75
"""Scanning along another dimension is mentioned if it brings the peak of open chunks below this fraction."""


@dataclass(frozen=True)
class ChunkPlan:
    """What a run will take. Sizes are in voxels and bytes; levels are the device, CPU memory and scratch.

    Attributes:
        image_size: spatial size of an image.
        roi_size: spatial size of a window.
        windows: number of windows in all.
        batches: number of times the network is called.
        chunks: number of chunks in all.
        chunk_size: spatial size of the largest chunk; those that the plan cuts by itself are of several sizes.
        scan_order: the dimensions, from the one along which windows advance last to the one along which they do first.
        device_peak, cpu_peak, scratch_peak: the most that open chunks take on each level under the limits. Scores that
            stay in memory, with no postprocessing and nothing that moves, have their open chunks in the output.
        device_limit, cpu_limit: the limits; ``None``: none was set.
        scratch_written, scratch_read: bytes to and from scratch.
        output_bytes: of the finished output; ``None`` if that depends on what the postprocessing returns.
        monai_bytes: of the scores and the count map of MONAI's ``SlidingWindowInferer``.
        advice: what another scan order would save, if that is a lot.
        curve: bytes on each level while each window is added to each output, for one image: ``(steps, 3)``.
        input_bytes: of the rows of the input that are kept, so that each voxel is read once; 0 if it is in memory or
            only its shape is known.
        input_in_memory: whether they are kept in memory, or else in a file in ``scratch_dir``.
        finished_bytes: of a chunk that is finished (its weights, its result) and of those that wait to be written.
        batch_bytes: of a batch of predictions, taken to be of the dtype of the sums, of the windows for it, and for the
            next one too where they are read ahead, and of the importance map.
        device_bytes, cpu_bytes: the most that a run takes there in all, but for the input and what the network itself
            needs: open chunks, the output if it is there, finished chunks, one batch, and rows of the input.
    """

    image_size: tuple[int, ...]
    roi_size: tuple[int, ...]
    windows: int
    batches: int
    chunks: int
    chunk_size: tuple[int, ...]
    scan_order: tuple[int, ...]
    device_peak: int
    cpu_peak: int
    scratch_peak: int
    device_limit: int | None
    cpu_limit: int | None
    scratch_written: int
    scratch_read: int
    output_bytes: int | None
    monai_bytes: int
    advice: str | None
    curve: np.ndarray = field(repr=False, compare=False)
    input_bytes: int = 0
    input_in_memory: bool = True
    finished_bytes: int = 0
    batch_bytes: int = 0
    device_bytes: int = 0
    cpu_bytes: int = 0

    def __str__(self) -> str:
        def size(voxels: Sequence[int]) -> str:
            return " x ".join(map(str, voxels))

        def held(device: int, cpu: int, scratch: int = 0) -> str:
            levels = {"the device": device, "CPU": cpu, "scratch": scratch}
            return ", ".join(f"{format_bytes(peak)} on {level}" for level, peak in levels.items() if peak) or "nothing"

        output = "depends on postprocessing" if self.output_bytes is None else format_bytes(self.output_bytes)
        limits = [("device_memory", self.device_limit), ("cpu_memory", self.cpu_limit)]
        rows = [
            ("image", f"{size(self.image_size)} voxels"),
            ("windows", f"{self.windows:,} of {size(self.roi_size)} voxels in {self.batches:,} batches"),
            ("scan order", f"dimensions {', '.join(map(str, self.scan_order))}, the last one first"),
            ("chunks", f"{self.chunks:,} of at most {size(self.chunk_size)} voxels"),
            ("limits", ", ".join(f"{n}={format_bytes(v)}" for n, v in limits if v is not None) or "none"),
            ("open chunks at most", held(self.device_peak, self.cpu_peak, self.scratch_peak)),
            ("to scratch and back", f"{format_bytes(self.scratch_written)}, {format_bytes(self.scratch_read)}"),
            ("output", output),
            ("finished chunks", f"{format_bytes(self.finished_bytes)} until they are written"),
            ("one batch", f"{format_bytes(self.batch_bytes)} of windows, predictions and weights"),
            ("memory in all", f"{held(self.device_bytes, self.cpu_bytes)}, beside what the network itself needs"),
            ("MONAI's scores", format_bytes(self.monai_bytes)),
        ]
        if self.input_bytes:
            place = "in memory" if self.input_in_memory else "on scratch"
            rows.append(("input rows kept", f"{format_bytes(self.input_bytes)} {place}, each voxel read once"))
        if self.advice:
            rows.append(("to save memory", self.advice))
        return "\n".join(f"{name:<20} {value}" for name, value in rows)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw open chunks over the run, each level a colour and each limit a line, into a file such as ``plan.png``.

        Raises:
            ImportError: when matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("drawing a plan needs matplotlib: pip install matplotlib") from None

        unit = 2**30
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        steps = np.linspace(0, len(self.curve) - 1, min(len(self.curve), 4000)).astype(int)
        levels = [(DEVICE, "device", "#7a5195"), (CPU, "CPU memory", "#2a78b5"), (SCRATCH, "scratch", "#e08e2b")]
        used = [level for level in levels if self.curve[:, level[0]].any()]
        x = (steps + 1) * self.windows / len(self.curve)
        y = [self.curve[steps, level] / unit for level, _, _ in used]
        axes.stackplot(x, *y, labels=[name for _, name, _ in used], colors=[color for _, _, color in used])
        stacked = 0
        for name, limit, (_, _, color) in zip(
            ("device_memory", "cpu_memory"), (self.device_limit, self.cpu_limit), levels
        ):
            if limit:
                stacked += limit
                label = name if stacked == limit else f"device_memory + {name}"
                axes.axhline(stacked / unit, color=color, linestyle="--", linewidth=2, label=label)
        axes.set_xlabel("windows")
        axes.set_ylabel("open chunks in GiB")
        axes.set_title(
            f"{' x '.join(map(str, self.image_size))} voxels; MONAI's scores take {format_bytes(self.monai_bytes)}"
        )
        axes.set_xlim(0, self.windows)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside right upper")
        figure.savefig(path, dpi=120)


def plan_inferer(
    inferer: SlidingWindowInferer,
    inputs_or_shape: Any,
    out_channels: int | Sequence[int],
    prediction_size: Sequence[int] | None = None,
) -> ChunkPlan:
    """The plan of :py:class:`ChunkedSlidingWindowInferer`, or of what would take the place of one of MONAI's.

    Args:
        inferer: the inferer.
        inputs_or_shape: the input, or its shape ``(B, C, *spatial)``.
        out_channels: number of channels that the network returns; one for each of its outputs if there are several.
        prediction_size: spatial size of what the network returns for one window, ``roi_size`` by default.

    Raises:
        ValueError: when a parameter does not fit, or the limits cannot hold the chunks of one window.
    """
    shape = tuple(int(n) for n in getattr(inputs_or_shape, "shape", inputs_or_shape))
    if len(shape) < 3 or min(shape) < 1:
        raise ValueError(f"inputs must have shape (B, C, *spatial), got {shape}")
    images, _, *image_size = shape
    dims = len(image_size)
    roi_size = checks.check_roi_size(inferer.roi_size, shape)
    sw_batch_size = checks.check_sw_batch_size(inferer.sw_batch_size)
    overlap = checks.check_overlap(inferer.overlap, dims)
    checks.check_buffer(inferer.buffer_steps, inferer.buffer_dim, dims)
    chunk_size = checks.check_chunk_size(getattr(inferer, "chunk_size", None), dims)
    device_limit = parse_bytes("device_memory", getattr(inferer, "device_memory", None))
    cpu_limit = parse_bytes("cpu_memory", getattr(inferer, "cpu_memory", None))
    given = hasattr(inputs_or_shape, "dtype")
    likely = "cpu" if device_limit is None else "cuda"
    device = inferer.sw_device or (device_of(inputs_or_shape) if given else likely)
    itemsize = 8 if given and dtype_of(inputs_or_shape) == torch.float64 else 4
    channels = [checks.check_positive("out_channels", c) for c in ensure_tuple(out_channels)]

    outputs = [(c, tuple(prediction_size or roi_size)) for c in channels]
    network_device = torch.device(device)
    on_cpu = network_device.type == "cpu"
    limits = (0 if on_cpu else device_limit, cpu_limit)
    windows = window_grid(image_size, roi_size, overlap, inferer.buffer_steps, inferer.buffer_dim)
    postprocessing = getattr(inferer, "postprocessing", None)
    labels_on_cpu = on_cpu and is_argmax(postprocessing)
    chosen = lay_out(windows, image_size, outputs, itemsize, chunk_size, *limits, labels_on_cpu=labels_on_cpu)
    least = {
        d: least_peak(window_grid(image_size, roi_size, overlap, 1, d), image_size, outputs, itemsize)
        for d in range(dims)
    }
    best = min(least, key=lambda d: least[d])
    advice = None
    if least[best] < A_LOT * least[windows.order[0]]:
        advice = (
            f"with buffer_steps=1 and buffer_dim={best} open chunks fit in {format_bytes(least[best])} instead of "
            f"{format_bytes(least[windows.order[0]])}, if that is the limit (other order than MONAI's, other last bits)"
        )
    voxels = [images * prod(grid.size) for grid in chosen.grids]
    output_bytes: int | None = None
    if postprocessing is None:
        output_bytes = sum(v * c * itemsize for v, c in zip(voxels, channels))
    elif postprocessing == "argmax":
        output_bytes = sum(v * label_dtype(c).itemsize for v, c in zip(voxels, channels))
    forecast = chosen.forecast
    kept = rows_of(inputs_or_shape, windows) if given else None
    source = device_of(inputs_or_shape) if given else torch.device(likely)
    result_device = _result_device(inferer, source)
    in_memory = result_device is not None
    in_place = postprocessing is None and result_device == network_device and not forecast.moved
    finished_bytes = _finished_bytes(chosen, itemsize, postprocessing, 0 if on_cpu and in_memory else DEPTH)
    far = source.type != network_device.type or (given and not isinstance(inputs_or_shape, torch.Tensor))
    window_bytes = shape[1] * prod(roi_size) * (dtype_of(inputs_or_shape).itemsize if given else 4)
    predicted = sum(prod(size) * each for (_, size), each in zip(outputs, chosen.voxel_bytes))
    batch_bytes = sw_batch_size * ((2 if far else 1) * window_bytes + predicted) + prod(roi_size) * itemsize
    in_all = [0 if in_place else forecast.peak[DEVICE], 0 if in_place else forecast.peak[CPU]]
    in_all[CPU if on_cpu else DEVICE] += finished_bytes + batch_bytes
    if result_device is not None:
        in_all[CPU if result_device.type == "cpu" else DEVICE] += output_bytes or 0
    if kept is not None and kept.in_memory:
        in_all[CPU] += kept.nbytes
    return ChunkPlan(
        image_size=tuple(image_size),
        roi_size=windows.roi_size,
        windows=images * len(windows),
        batches=windows.batch_count(images, sw_batch_size),
        chunks=images * sum(map(len, chosen.grids)),
        chunk_size=tuple(max(int(np.diff(g.cuts[d]).max()) for g in chosen.grids) for d in range(dims)),
        scan_order=windows.order,
        device_peak=forecast.peak[DEVICE],
        cpu_peak=forecast.peak[CPU],
        scratch_peak=forecast.peak[SCRATCH],
        device_limit=None if on_cpu else device_limit,
        cpu_limit=cpu_limit,
        scratch_written=images * forecast.written,
        scratch_read=images * forecast.read,
        output_bytes=output_bytes,
        monai_bytes=sum((images * c + 1) * prod(windows.image_size) * itemsize for c in channels),
        advice=advice,
        curve=forecast.curve,
        input_bytes=kept.nbytes if kept else 0,
        input_in_memory=kept is None or kept.in_memory,
        finished_bytes=finished_bytes,
        batch_bytes=batch_bytes,
        device_bytes=in_all[DEVICE],
        cpu_bytes=in_all[CPU],
    )


def _result_device(inferer: SlidingWindowInferer, source: torch.device) -> torch.device | None:
    """Where the result is in memory, if there is room; ``None`` if it goes to a file."""
    output = getattr(inferer, "output", "auto")
    if isinstance(output, Output):
        return output.device if isinstance(output, MemoryOutput) else None
    if output == "disk":
        return None
    return torch.device("cpu" if output == "cpu" else inferer.device or source)


def _finished_bytes(layout: Layout, itemsize: int, postprocessing: Any, waiting: int) -> int:
    """What finishing the largest chunk takes beside it, and what so many others take that wait to be written."""
    most = 0
    for grid, voxel_bytes in zip(layout.grids, layout.voxel_bytes):
        voxels = prod(int(np.diff(cuts).max()) for cuts in grid.cuts)
        labels = label_dtype(voxel_bytes // itemsize).itemsize if is_argmax(postprocessing) else voxel_bytes
        results = waiting if postprocessing is None else 1 + waiting  # without postprocessing a chunk is its result
        most = max(most, voxels * (itemsize + results * labels))
    return most
