"""What a run will take, before it runs: for people to read, print and draw."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from monai_chunked.plan.parts.forecast import PartsForecast
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH
from monai_chunked.plan.sizes import format_bytes

__all__ = ["BATCH", "FACES", "FINISHED", "OPEN", "OUTPUT", "ROWS", "ChunkPlan", "Item"]


OPEN, FINISHED, FACES, BATCH = "open chunks", "finished chunks", "to patient's grid", "one batch"


OUTPUT, ROWS = "output", "input rows kept"


class Item(NamedTuple):
    """What a run has at a time, beside the input and what the network itself needs.

    Attributes:
        name: of what it is.
        level: where it is: the device, CPU memory or scratch; ``None``: a file of the result.
        bytes: the most that it takes.
    """

    name: str
    level: int | None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ChunkPlan:
    """What a run will take. Sizes are in voxels and bytes; levels are the device, CPU memory and scratch.

    Attributes:
        image_size: spatial size of an image.
        roi_size: spatial size of a window.
        windows: number of windows in all.
        skipped: how many of the windows have no voxel of the mask. What a ``skip`` will say is not known: all sizes are
            those of a run in which it skips none, which takes more.
        batches: number of batches.
        passes: how often the network sees each window, more than once if it is mirrored.
        chunks: number of chunks in all.
        chunk_size: spatial size of the largest chunk; those that the plan cuts by itself are of several sizes.
        scan_order: the dimensions, from the one along which windows advance last to the one along which they do first.
        result_size: spatial size of the result in voxels.
        items: the bill, from which all sums follow. Scores that stay in memory, with no postprocessing and nothing that
            moves, have their open chunks in the output, so that there is no item for these.
        device_limit, cpu_limit: the limits of open chunks; ``None``: none was set.
        curve: bytes of open chunks on each level while each window is added to each output, for one image:
            ``(steps, 3)``.
        scratch_written, scratch_read: bytes to and from scratch.
        monai_bytes: of the scores and the count map of MONAI's ``SlidingWindowInferer``.
        monai_inverse_bytes: of MONAI's ``Invertd`` where it interpolates, about.
        advice: what another scan order would save, if that is a lot.
        parts: what each part takes, if several workers share the volume; ``None``: one process does it.
    """

    image_size: tuple[int, ...]
    roi_size: tuple[int, ...]
    windows: int
    skipped: int = 0
    batches: int
    passes: int = 1
    chunks: int
    chunk_size: tuple[int, ...]
    scan_order: tuple[int, ...]
    result_size: tuple[int, ...]
    items: tuple[Item, ...]
    device_limit: int | None
    cpu_limit: int | None
    curve: np.ndarray = field(repr=False, compare=False)
    scratch_written: int
    scratch_read: int
    monai_bytes: int
    monai_inverse_bytes: int = 0
    advice: str | None
    parts: PartsForecast | None = None

    @property
    def device_peak(self) -> int:
        """The most that open chunks take on the device under the limits."""
        return int(self.curve[:, DEVICE].max())

    @property
    def cpu_peak(self) -> int:
        """The most that open chunks take in CPU memory under the limits."""
        return int(self.curve[:, CPU].max())

    @property
    def scratch_peak(self) -> int:
        """The most that open chunks take in scratch under the limits."""
        return int(self.curve[:, SCRATCH].max())

    @property
    def device_bytes(self) -> int:
        """The most that a run takes on the device in all, but for the input and what the network itself needs."""
        return sum(item.bytes for item in self.items if item.level == DEVICE)

    @property
    def cpu_bytes(self) -> int:
        """The most that a run takes in CPU memory in all, but for the input and what the network itself needs."""
        return sum(item.bytes for item in self.items if item.level == CPU)

    @property
    def output_bytes(self) -> int | None:
        """Of the finished output; ``None`` if that depends on what the postprocessing returns."""
        return self._bytes_of(OUTPUT) or None

    @property
    def finished_bytes(self) -> int:
        """Of a chunk that is finished (its weights, its result) and of those that wait to be written."""
        return self._bytes_of(FINISHED)

    @property
    def inverse_bytes(self) -> int:
        """Of what brings finished chunks to the patient's grid; 0 if nothing does.

        These are the faces that are kept for the chunks behind them, and the largest box that is made of one.
        """
        return self._bytes_of(FACES)

    @property
    def batch_bytes(self) -> int:
        """Of a batch: predictions of the dtype of the sums, windows (also those read ahead), the importance map."""
        return self._bytes_of(BATCH)

    @property
    def input_bytes(self) -> int:
        """Of the rows of the input that are kept, so that each voxel is read once.

        0 if the input is in memory, or only its shape is known.
        """
        return self._bytes_of(ROWS)

    @property
    def input_in_memory(self) -> bool:
        """Whether the rows of the input that are kept are in memory, not in a file in ``scratch_dir``."""
        return all(item.level != SCRATCH for item in self.items if item.name == ROWS)

    def _bytes_of(self, name: str) -> int:
        return sum(item.bytes for item in self.items if item.name == name)

    def __str__(self) -> str:
        mirrored = f", mirrored in {self.passes} ways" if self.passes > 1 else ""
        limits = {"device_memory": self.device_limit, "cpu_memory": self.cpu_limit}
        size, place = format_bytes, "in memory" if self.input_in_memory else "on scratch"
        rows = {
            "image": f"{_voxels(self.image_size)} voxels",
            "windows": f"{self.windows:,} of {_voxels(self.roi_size)} voxels in {self.batches:,} batches{mirrored}",
            "skipped": self.skipped and f"{self.skipped:,} of the windows, which have no voxel of the mask",
            "scan order": f"dimensions {', '.join(map(str, self.scan_order))}, the last one first",
            "chunks": f"{self.chunks:,} of at most {_voxels(self.chunk_size)} voxels",
            "limits": ", ".join(f"{name}={size(limit)}" for name, limit in limits.items() if limit is not None)
            or "none",
            "open chunks at most": _by_level(self.device_peak, self.cpu_peak, self.scratch_peak),
            "to scratch and back": f"{size(self.scratch_written)}, {size(self.scratch_read)}",
            OUTPUT: "depends on postprocessing" if self.output_bytes is None else size(self.output_bytes),
            FINISHED: f"{size(self.finished_bytes)} until they are written",
            BATCH: f"{size(self.batch_bytes)} of windows, predictions and weights",
            FACES: self.inverse_bytes
            and f"{_voxels(self.result_size)} voxels; {size(self.inverse_bytes)} of faces between chunks and a box at "
            f"hand",
            "memory in all": f"{_by_level(self.device_bytes, self.cpu_bytes)}, beside what the network itself needs",
            "MONAI's scores": size(self.monai_bytes),
            "MONAI's inverse": self.inverse_bytes and f"about {size(self.monai_inverse_bytes)}",
            ROWS: self.input_bytes and f"{size(self.input_bytes)} {place}, each voxel read once",
            "to save memory": self.advice,
        }
        lines = [(name, text) for name, text in rows.items() if text]
        lines += [] if self.parts is None else _lines(self.parts)
        return "\n".join(f"{name:<20} {text}" for name, text in lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw open chunks over the run, each level a colour and each limit a line, into a file such as ``plan.png``.

        Raises:
            ImportError: when matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("drawing a plan needs matplotlib: pip install matplotlib") from None

        most = int(self.curve.sum(axis=1).max())
        unit, unit_name = (2**30, "GiB") if most >= 2**30 else (2**20, "MiB")
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
        axes.set_ylabel(f"open chunks in {unit_name}")
        axes.set_title(f"{_voxels(self.image_size)} voxels; MONAI's scores take {format_bytes(self.monai_bytes)}")
        axes.set_xlim(0, self.windows)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside right upper")
        figure.savefig(path, dpi=120)


def _voxels(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _by_level(device: int, cpu: int, scratch: int = 0) -> str:
    levels = {"the device": device, "CPU": cpu, "scratch": scratch}
    return ", ".join(f"{format_bytes(size)} on {level}" for level, size in levels.items() if size) or "nothing"


SHOWN = 8
"""The most parts that are shown; of more, the first and the last few are, and the most that any of them takes."""


COLUMNS = "{:>10} {:>10} {:>10} {:>10} {:>10} | {:>10} {:>10} {:>10}"


TITLES = ("windows", "batches", "open", "kept", "sent", "windows", "twice", "open")


def _lines(parts: PartsForecast) -> list[tuple[str, str]]:
    """How well workers are used, and a line for each part."""
    ways = {"handed on": parts.handing_on, "independent": parts.independent}
    used = ", ".join(f"{parts.efficiency(way):.2f} {name}" for name, way in ways.items())
    lines = [
        (f"{parts.workers} workers", f"{len(parts.handing_on)} parts; efficiency {used}"),
        ("  handed on | alone", COLUMNS.format(*TITLES)),
    ]
    numbers = [
        (part.windows, part.batches, part.open_bytes, part.kept_bytes, part.sent_bytes)
        + (alone.windows, alone.twice, alone.open_bytes)
        for part, alone in zip(parts.handing_on, parts.independent)
    ]
    shown = [(f"  part {number}", _columns(row)) for number, row in enumerate(numbers)]
    if len(shown) > SHOWN:
        most = list(map(max, zip(*numbers)))
        shown = [*shown[: SHOWN // 2], ("  ...", ""), *shown[-2:], ("  any, at most", _columns(most))]
    return lines + shown


def _columns(numbers: Sequence[int]) -> str:
    """A line of the table: sizes are in bytes, all else is counted."""
    sizes = ("open", "kept", "sent")
    return COLUMNS.format(
        *(format_bytes(number) if title in sizes else f"{number:,}" for title, number in zip(TITLES, numbers))
    )
