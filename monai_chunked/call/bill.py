"""From checked settings to a plan: for a run, and for people who want to know before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple

from monai_chunked.call.call import inversion_of, sum_dtype_of
from monai_chunked.call.settings import Settings
from monai_chunked.chunks.background import backgrounds_of
from monai_chunked.chunks.ending import Ending, ending_of
from monai_chunked.chunks.write_behind import DEPTH
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.machine.accelerator import likely_device
from monai_chunked.outputs.base import Output
from monai_chunked.outputs.memory_output import MemoryOutput
from monai_chunked.plan.chunk_plan import BATCH, FACES, FINISHED, OPEN, OUTPUT, ROWS, ChunkPlan, Item
from monai_chunked.plan.heads import Head, Heads
from monai_chunked.plan.layout import Volume, lay_out, least_peak
from monai_chunked.plan.parts.forecast import PartsForecast, forecast_parts
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.parts.work import cut, work_of
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH
from monai_chunked.plan.sizes import check_positive, format_bytes
from monai_chunked.resampling.faces import largest_box, most_kept
from monai_chunked.transforms.argmax import label_dtype
from monai_chunked.transforms.chain import Chain

__all__ = ["plan_inferer"]


A_LOT = 0.75
"""Scanning along another dimension is mentioned if it brings the peak of open chunks below this fraction."""


def plan_inferer(
    inferer: SlidingWindowInferer,
    inputs_or_shape: Any,
    out_channels: int | Sequence[int],
    *,
    prediction_size: Sequence[int] | None = None,
    workers: int | None = None,
) -> ChunkPlan:
    """The plan of :py:class:`ChunkedSlidingWindowInferer`, or of what would take the place of one of MONAI's.

    Args:
        inferer: the inferer.
        inputs_or_shape, out_channels, prediction_size, workers: as for its ``plan``.

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
    return _Bill(settings, shape, source, heads).plan(workers)


class _Bill:
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
        self.device = _likely_device(settings, source)
        self.windows = settings.windows
        self.background_adds = [isinstance(settings.background, dict)] * len(heads)
        if not isinstance(settings.background, dict):  # the names of heads are not known here
            self.background_adds = [bool(values.any()) for values in backgrounds_of(heads, settings.background)]
        self.skipped = settings.skipped()
        self.work = work_of(self.windows, self.images, settings.sw_batch_size, skipped=self.skipped)
        self.layout = lay_out(
            Volume(self.windows, settings.image_size, heads, self.sum_dtype.itemsize, self.skipped),
            settings.limits(self.device),
            chunk_size=settings.chunk_size,
            labels_on_cpu=settings.labels_on_cpu(self.device),
        )
        inversion = inversion_of(settings, source) if source else None
        if inversion is not None and inversion.why_whole(settings.image_size, self.sum_dtype):
            inversion = None  # it is done behind the run
        self.bills = [
            _HeadBill(head, chain, ending_of(grid, inversion), self.sum_dtype)
            for head, chain, grid in zip(heads, _chains_of(settings, heads), self.layout.grids)
        ]

    def plan(self, workers: int | None) -> ChunkPlan:
        """The plan of the run, and of the parts of so many workers."""
        windows, forecast = self.windows, self.layout.forecast
        runs = self.images // forecast.images
        padded = prod(windows.image_size) * self.sum_dtype.itemsize
        return ChunkPlan(
            image_size=self.settings.image_size,
            roi_size=windows.roi_size,
            windows=self.images * len(windows),
            skipped=self.skipped.count(self.images) if self.skipped else 0,
            batches=max(1, int(np.count_nonzero(self.work.predicted))),
            passes=self.settings.passes,
            chunks=self.images * sum(map(len, self.layout.grids)),
            chunk_size=self.layout.largest_chunk_size(),
            scan_order=windows.order,
            result_size=self.bills[0].ending.size,
            items=tuple(item for item in self._items() if item.bytes),
            device_limit=self.layout.limits.device or None,
            cpu_limit=self.layout.limits.cpu,
            curve=forecast.curve,
            scratch_written=runs * forecast.written,
            scratch_read=runs * forecast.read,
            monai_bytes=sum((self.images * head.channels + 1) * padded for head in self.heads),
            monai_inverse_bytes=max(bill.monai_inverse_bytes() for bill in self.bills),
            advice=self._advice(),
            parts=None if workers is None else self._parts(workers),
        )

    def _items(self) -> Iterator[Item]:
        """What open and finished chunks, a batch, the output and rows of the input take."""
        forecast, result_device = self.layout.forecast, self._result_device()
        in_files, here = result_device is None, _level(self.device)
        if self.settings.postprocessing or result_device != self.device or forecast.moved:
            for level, peak in enumerate(forecast.peak):
                yield Item(OPEN, level, peak)  # else they are in the output
        # those that wait to be written; without postprocessing a chunk is its result
        results = (DEPTH if in_files or here == DEVICE else 0) + bool(self.settings.postprocessing)
        yield Item(FINISHED, here, max(bill.finished_bytes(results, self.skipped is not None) for bill in self.bills))
        yield Item(FACES, here, max(bill.inverse_bytes() for bill in self.bills))
        yield Item(BATCH, here, self._batch_bytes())
        sizes = [bill.result_bytes() for bill in self.bills]
        known_sizes = [size for size in sizes if size is not None]
        if len(known_sizes) == len(sizes):
            yield Item(OUTPUT, None if result_device is None else _level(result_device), self.images * sum(known_sizes))
        if self.source and (rows := self.source.rows(self.windows)):
            yield Item(ROWS, CPU if rows.in_memory else SCRATCH, rows.nbytes)

    def _result_device(self) -> torch.device | None:
        """Where the result is in memory, if there is room; ``None`` if it goes to a file."""
        output = self.settings.output
        if isinstance(output, Output):
            return output.device if isinstance(output, MemoryOutput) else None
        if output == "disk":
            return None
        source = self.source.device if self.source else self.device
        return torch.device("cpu" if output == "cpu" else self.settings.device or source)

    def _batch_bytes(self) -> int:
        """A batch: its windows, also those read ahead or mirrored, their predictions, and the importance map."""
        ahead = self.source is not None and self.source.is_far(self.device)
        roi, itemsize = prod(self.windows.roi_size), self.sum_dtype.itemsize
        window = self.channels * roi * (self.source.dtype.itemsize if self.source else 4)
        predicted = sum(prod(head.size) * head.channels * itemsize for head in self.heads)
        mirrored = self.settings.passes > 1
        at_once = self.settings.passes if self.settings.mirror_batch else mirrored  # beside the window, and the sum
        batch = (1 + ahead + at_once) * window + (1 + at_once) * predicted
        return self.settings.sw_batch_size * batch + roi * itemsize

    def _advice(self) -> str | None:
        """What another scan order would save, if that is a lot; not counted where windows are skipped."""
        if self.skipped is not None:
            return None
        size = self.settings.image_size
        scans = [replace(self.settings, buffer_steps=1, buffer_dim=d).windows for d in range(len(size))]
        least = [least_peak(Volume(windows, size, self.heads, self.sum_dtype.itemsize)) for windows in scans]
        best, now = min(range(len(size)), key=least.__getitem__), least[self.windows.order[0]]
        if least[best] >= A_LOT * now:
            return None
        return (
            f"with buffer_steps=1 and buffer_dim={best} open chunks fit in {format_bytes(least[best])} instead of "
            f"{format_bytes(now)}, if that is the limit (other order than MONAI's, other last bits)"
        )

    def _parts(self, workers: int) -> PartsForecast:
        """What each part takes where so many workers share the volume."""
        parts = Parts(self.layout.grids, self.images, cut(self.work, workers), self.skipped)
        return forecast_parts(
            parts, self.work, voxel_bytes=self.layout.voxel_bytes, workers=workers, background_adds=self.background_adds
        )


@dataclass(frozen=True)
class _HeadBill:
    """What one head of the network takes.

    Attributes:
        head: of the network.
        chain: its postprocessing; ``None``: nobody knows, because heads have no names here.
        ending: where its chunks end.
        sum_dtype: of sums.
    """

    head: Head
    chain: Chain | None
    ending: Ending
    sum_dtype: torch.dtype

    def result_bytes(self) -> int | None:
        """The bytes of one image's result; ``None`` if they depend on what the postprocessing returns."""
        voxel = self._result_voxel()
        return None if voxel is None else prod(self.ending.size) * voxel

    def _result_voxel(self) -> int | None:
        if self.chain is None:
            return None
        form = self.ending.form(self.head, self.chain, torch.promote_types(self.sum_dtype, torch.float32))
        return None if form is None else form.voxel_bytes

    def finished_bytes(self, results: int, skips: bool) -> int:
        """The bytes of the largest finished chunk: weights, so many results, and scores where windows are skipped."""
        labels, itemsize = self.chain is not None and self.chain.is_argmax, self.sum_dtype.itemsize
        voxel = label_dtype(self.head.channels).itemsize if labels else self.head.channels * itemsize
        # of chunks that were skipped channels share their memory, until a callable gets them
        scores = self.head.channels * itemsize if skips and not labels else 0
        largest = prod(int(np.diff(cuts).max()) for cuts in self.ending.grid.cuts)
        return largest * (itemsize + scores + results * voxel)

    def inverse_bytes(self) -> int:
        """The bytes of the faces that are kept of finished chunks, and of the largest box that is made of one."""
        if not self.ending.moves:
            return 0
        voxel = (self.chain or Chain()).voxel_before(self.head.channels, torch.float32).nbytes
        inverse = self.ending.chunks[0]
        kept, made = most_kept(self.ending.grid, inverse), largest_box(inverse[-1])
        return kept * voxel + made * (self._result_voxel() or voxel)

    def monai_inverse_bytes(self) -> int:
        """The bytes of MONAI's ``Invertd``, which holds scores in float64 before and after, and their coordinates."""
        if not self.ending.moves:
            return 0
        read, made = prod(self.ending.grid.size), prod(self.ending.size)
        return self.head.channels * (12 * read + 8 * made) + 24 * made


def _likely_device(settings: Settings, source: Source | None) -> torch.device:
    """Where predictions will be: as settings and input say, else on an accelerator if it has a limit."""
    if settings.sw_device is not None:
        return torch.device(settings.sw_device)
    if source is not None:
        return source.device
    return torch.device("cpu") if settings.device_memory is None else likely_device()


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
