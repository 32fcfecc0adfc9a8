"""From checked settings to a plan: for a run, and for people who want to know before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple

from monai_chunked.chunks.background import backgrounds_of
from monai_chunked.chunks.ending import Ending, ending_of
from monai_chunked.chunks.write_behind import DEPTH
from monai_chunked.inputs.kept_rows import RowsPlan
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.machine.accelerator import likely_device
from monai_chunked.outputs.base import Form, Output
from monai_chunked.outputs.memory import MemoryOutput
from monai_chunked.plan.chunk_plan import ChunkPlan
from monai_chunked.plan.heads import Head, Heads
from monai_chunked.plan.layout import Volume, lay_out, least_peak
from monai_chunked.plan.parts.forecast import PartsForecast, forecast_parts
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import cut, work_of
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH
from monai_chunked.plan.sizes import check_positive, format_bytes
from monai_chunked.plan.window_grid import batches_without
from monai_chunked.run.call import inversion_of, sum_dtype_of
from monai_chunked.run.settings import Settings
from monai_chunked.transforms.argmax import label_dtype
from monai_chunked.transforms.chain import Chain
from monai_chunked.transforms.resampling.faces import finishing_order, largest_box, most_kept

__all__ = ["plan_inferer"]


A_LOT = 0.75
"""Scanning along another dimension is mentioned if it brings the peak of open chunks below this fraction."""


def plan_inferer(
    inferer: SlidingWindowInferer,
    inputs_or_shape: Any,
    out_channels: int | Sequence[int],
    prediction_size: Sequence[int] | None = None,
    workers: int | None = None,
) -> ChunkPlan:
    """The plan of :py:class:`ChunkedSlidingWindowInferer`, or of what would take the place of one of MONAI's.

    Args:
        inferer: the inferer.
        inputs_or_shape: the input, or its shape ``(B, C, *spatial)``.
        out_channels: number of channels that the network returns; one for each of its heads if there are several.
        prediction_size: spatial size of what the network returns for one window, ``roi_size`` by default.
        workers: how many share the volume; ``None``: it is for one process.

    Raises:
        ValueError: when a parameter does not fit, or the limits cannot hold the chunks of one window.
    """
    workers = None if workers is None else check_positive("workers", workers)
    shape = tuple(int(n) for n in getattr(inputs_or_shape, "shape", inputs_or_shape))
    if len(shape) < 3 or min(shape) < 1:
        raise ValueError(f"inputs must have shape (B, C, *spatial), got {shape}")
    source = source_of(inputs_or_shape) if hasattr(inputs_or_shape, "dtype") else None
    settings = Settings.of_inferer(inferer, shape)
    channels = [check_positive("out_channels", c) for c in ensure_tuple(out_channels)]
    size = tuple(prediction_size or settings.windows.roi_size)
    heads = Heads.of([(c, *size) for c in channels])
    planned = _Planned(settings, shape, source, heads)
    plan = planned.plan()
    return plan if workers is None else replace(plan, parts=planned.parts(workers))


class _Planned:
    """What is known of a run before it.

    Args:
        settings: what is asked for.
        shape: of the input, ``(B, C, *spatial)``.
        source: the input; ``None``: only its shape is known.
        heads: of the network.
    """

    def __init__(self, settings: Settings, shape: tuple[int, ...], source: Source | None, heads: Heads) -> None:
        self.settings = settings
        self.images, self.channels = shape[:2]
        self.source = source
        self.heads = heads
        self.sum_dtype = sum_dtype_of(source, settings) if source else torch.float32
        self.itemsize = self.sum_dtype.itemsize
        self.device = self._likely_device()
        self.windows = settings.windows
        self._background = [isinstance(settings.background, dict)] * len(heads)
        if not isinstance(settings.background, dict):  # the names of heads are not known here
            self._background = [bool(each.any()) for each in backgrounds_of(heads, settings.background)]
        self.chains = _chains_of(settings, heads)
        self.skipped = settings.skipped()
        self.layout = lay_out(
            Volume(self.windows, settings.image_size, heads, self.itemsize, self.skipped),
            settings.limits(self.device),
            chunk_size=settings.chunk_size,
            labels_on_cpu=settings.labels_on_cpu(self.device),
        )
        inversion = inversion_of(settings, source) if source else None
        if inversion is not None and inversion.why_whole(settings.image_size, self.sum_dtype):
            inversion = None  # it is done behind the run
        self.endings = [ending_of(grid, inversion) for grid in self.layout.grids]

    def plan(self) -> ChunkPlan:
        settings, windows, forecast = self.settings, self.windows, self.layout.forecast
        limits = settings.limits(self.device)
        kept = self.source.rows(windows) if self.source else None
        device_bytes, cpu_bytes = self._bytes_in_all(kept)
        padded = prod(windows.image_size) * self.itemsize
        return ChunkPlan(
            image_size=settings.image_size,
            roi_size=windows.roi_size,
            windows=self.images * len(windows),
            batches=self._batches(),
            passes=settings.passes,
            chunks=self.images * sum(map(len, self.layout.grids)),
            chunk_size=self.layout.largest_chunk_size(),
            scan_order=windows.order,
            device_peak=forecast.peak[DEVICE],
            cpu_peak=forecast.peak[CPU],
            scratch_peak=forecast.peak[SCRATCH],
            device_limit=limits.device or None,
            cpu_limit=limits.cpu,
            scratch_written=self.images // forecast.images * forecast.written,
            scratch_read=self.images // forecast.images * forecast.read,
            output_bytes=self._output_bytes(),
            monai_bytes=sum((self.images * head.channels + 1) * padded for head in self.heads),
            advice=self._advice(),
            curve=forecast.curve,
            input_bytes=kept.nbytes if kept else 0,
            input_in_memory=kept is None or kept.in_memory,
            finished_bytes=self._finished_bytes(),
            inverse_bytes=self._inverse_bytes(),
            result_size=self.endings[0].size,
            monai_inverse_bytes=self._monai_inverse_bytes(),
            batch_bytes=self._batch_bytes(),
            device_bytes=device_bytes,
            cpu_bytes=cpu_bytes,
            skipped=self.skipped.count(self.images) if self.skipped else 0,
        )

    def parts(self, workers: int) -> PartsForecast:
        """What each part takes where so many workers share the volume."""
        work = work_of(self.windows, self.images, self.settings.sw_batch_size, self.skipped)
        parts = Parts(self.layout.grids, self.images, cut(work, workers), self.skipped)
        return forecast_parts(parts, work, self.layout.voxel_bytes, workers, self._background)

    def _batches(self) -> int:
        """How often the network is called."""
        sw_batch_size = self.settings.sw_batch_size
        if self.skipped is None:
            return self.windows.batch_count(self.images, sw_batch_size)
        batches = (batches_without(run, self.skipped, sw_batch_size) for run in self.windows.runs(self.images))
        return max(1, sum(bool(predicted) for run in batches for _, predicted in run))

    def _monai_inverse_bytes(self) -> int:
        """Of MONAI's ``Invertd``, which holds scores in float64 before and after, and their coordinates."""
        each = [
            (head.channels, prod(e.grid.size), prod(e.size)) for e, head in zip(self.endings, self.heads) if e.moves
        ]
        return max((channels * (12 * read + 8 * made) + 24 * made for channels, read, made in each), default=0)

    def _likely_device(self) -> torch.device:
        """Where predictions will be: as settings and input say, else on an accelerator if it has a limit."""
        if self.settings.sw_device is not None:
            return torch.device(self.settings.sw_device)
        if self.source is not None:
            return self.source.device
        return torch.device("cpu") if self.settings.device_memory is None else likely_device()

    def _result_device(self) -> torch.device | None:
        """Where the result is in memory, if there is room; ``None`` if it goes to a file."""
        output = self.settings.output
        if isinstance(output, Output):
            return output.device if isinstance(output, MemoryOutput) else None
        if output == "disk":
            return None
        source = self.source.device if self.source else self.device
        return torch.device("cpu" if output == "cpu" else self.settings.device or source)

    def _bytes_in_all(self, kept: RowsPlan | None) -> tuple[int, int]:
        """The most that a run takes on the device and in CPU memory, but for what the network itself needs."""
        forecast, result_device = self.layout.forecast, self._result_device()
        in_all = [forecast.peak[DEVICE], forecast.peak[CPU]]
        if not self.settings.postprocessing and result_device == self.device and not forecast.moved:
            in_all = [0, 0]  # open chunks are in the output
        in_all[_level(self.device)] += self._finished_bytes() + self._inverse_bytes() + self._batch_bytes()
        if result_device is not None:
            in_all[_level(result_device)] += self._output_bytes() or 0
        if kept is not None and kept.in_memory:
            in_all[CPU] += kept.nbytes
        return in_all[DEVICE], in_all[CPU]

    def _output_bytes(self) -> int | None:
        """Of the finished output; ``None`` if that depends on what the postprocessing returns."""
        forms = [self._form(*parts) for parts in zip(self.endings, self.heads, self.chains)]
        sizes = [prod(ending.size) * form.voxel_bytes for ending, form in zip(self.endings, forms) if form]
        return self.images * sum(sizes) if len(sizes) == len(forms) else None

    def _form(self, ending: Ending, head: Head, chain: Chain | None) -> Form | None:
        """The form of a result, if it is known."""
        return None if chain is None else ending.form(head, chain, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Of scores."""
        return torch.promote_types(self.sum_dtype, torch.float32)

    def _inverse_bytes(self) -> int:
        """Of the faces that are kept of finished chunks, and of the largest box that is made of one."""
        most = 0
        for ending, head, chain, grid in zip(self.endings, self.heads, self.chains, self.layout.grids):
            if not ending.moves:
                continue
            voxel, total = (chain or Chain()).voxel_before(head.channels, torch.float32).nbytes, 0
            cuts, order = grid.cuts, finishing_order(grid)
            for resampled in ending.chunks[0]:
                kept, order = most_kept(resampled, cuts, order)
                total += kept * voxel
                cuts = resampled.cuts
            form = self._form(ending, head, chain)
            made = form.voxel_bytes if form else voxel
            most = max(most, total + largest_box(resampled) * made)
        return most

    def _finished_bytes(self) -> int:
        """What finishing the largest chunk takes beside it, and what those take that wait to be written."""
        waiting = 0 if self.device.type == "cpu" and self._result_device() is not None else DEPTH
        results = waiting + bool(self.settings.postprocessing)  # without postprocessing a chunk is its result
        most = 0
        for head, chain, grid in zip(self.heads, self.chains, self.layout.grids):
            size = prod(int(np.diff(cuts).max()) for cuts in grid.cuts)
            labels = chain is not None and chain.is_argmax
            voxel = label_dtype(head.channels).itemsize if labels else head.channels * self.itemsize
            # of chunks that were skipped channels share their memory, until a callable gets them
            scores = 0 if self.skipped is None or labels else head.channels * self.itemsize
            most = max(most, size * (self.itemsize + scores + results * voxel))
        return most

    def _batch_bytes(self) -> int:
        """Of a batch: its windows, also those read ahead or mirrored, their predictions, and the importance map."""
        ahead = self.source is not None and self.source.is_far(self.device)
        roi = prod(self.windows.roi_size)
        window = self.channels * roi * (self.source.dtype.itemsize if self.source else 4)
        predicted = sum(prod(head.size) * head.channels * self.itemsize for head in self.heads)
        mirrored = self.settings.passes > 1
        at_once = self.settings.passes if self.settings.mirror_batch else mirrored  # beside the window, and the sum
        batch = (1 + ahead + at_once) * window + (1 + at_once) * predicted
        return self.settings.sw_batch_size * batch + roi * self.itemsize

    def _advice(self) -> str | None:
        """What another scan order would save, if that is a lot; where windows are skipped nobody has counted that."""
        if self.skipped is not None:
            return None
        size = self.settings.image_size
        scans = [replace(self.settings, buffer_steps=1, buffer_dim=d).windows for d in range(len(size))]
        least = [least_peak(Volume(windows, size, self.heads, self.itemsize)) for windows in scans]
        best, now = min(range(len(size)), key=least.__getitem__), least[self.windows.order[0]]
        if least[best] >= A_LOT * now:
            return None
        return (
            f"with buffer_steps=1 and buffer_dim={best} open chunks fit in {format_bytes(least[best])} instead of "
            f"{format_bytes(now)}, if that is the limit (other order than MONAI's, other last bits)"
        )


def _chains_of(settings: Settings, heads: Heads) -> list[Chain | None]:
    """The postprocessing of each head; ``None``: nobody knows, because heads have no names here."""
    chains = settings.chains
    if chains and all(chain.is_argmax for chain in chains):
        settings = replace(settings, postprocessing=chains[0])
    if isinstance(settings.postprocessing, dict):
        return [None] * len(heads)
    return [*settings.chains_of(heads)]


def _level(device: torch.device) -> int:
    return CPU if device.type == "cpu" else DEVICE
