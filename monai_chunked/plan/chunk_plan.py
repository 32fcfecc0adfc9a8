"""What a run will take, before it runs: for people to read, print and draw."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from monai_chunked.plan.parts.forecast import PartForecast, PartsForecast
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH
from monai_chunked.plan.sizes import format_bytes

__all__ = ["ChunkPlan"]


@dataclass(frozen=True)
class ChunkPlan:
    """What a run will take. Sizes are in voxels and bytes; levels are the device, CPU memory and scratch.

    Attributes:
        image_size: spatial size of an image.
        roi_size: spatial size of a window.
        windows: number of windows in all.
        batches: number of batches.
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
        inverse_bytes: of the faces of finished chunks that are kept for those behind them, and of the largest box that
            is made of one on the patient's grid; 0 if nothing is brought there.
        result_size: spatial size of the result in voxels.
        monai_inverse_bytes: of MONAI's ``Invertd`` where it interpolates, about.
        finished_bytes: of a chunk that is finished (its weights, its result) and of those that wait to be written.
        batch_bytes: of a batch of predictions, taken to be of the dtype of the sums, of the windows for it, and for the
            next one too where they are read ahead, and of the importance map.
        device_bytes, cpu_bytes: the most that a run takes there in all, but for the input and what the network itself
            needs: open chunks, the output if it is there, finished chunks, one batch, and rows of the input.
        skipped: how many of the windows have no voxel of the mask. What a ``skip`` will say is not known: all sizes are
            those of a run in which it skips none, which takes more.
        passes: how often the network sees each window, more than once if it is mirrored.
        parts: what each part takes, if several workers share the volume; ``None``: one process does it.
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
    inverse_bytes: int = 0
    result_size: tuple[int, ...] = ()
    monai_inverse_bytes: int = 0
    batch_bytes: int = 0
    device_bytes: int = 0
    cpu_bytes: int = 0
    skipped: int = 0
    passes: int = 1
    parts: PartsForecast | None = None

    def __str__(self) -> str:
        def size(voxels: Sequence[int]) -> str:
            return " x ".join(map(str, voxels))

        def held(device: int, cpu: int, scratch: int = 0) -> str:
            levels = {"the device": device, "CPU": cpu, "scratch": scratch}
            return ", ".join(f"{format_bytes(peak)} on {level}" for level, peak in levels.items() if peak) or "nothing"

        output = "depends on postprocessing" if self.output_bytes is None else format_bytes(self.output_bytes)
        mirrored = f", mirrored in {self.passes} ways" if self.passes > 1 else ""
        limits = [("device_memory", self.device_limit), ("cpu_memory", self.cpu_limit)]
        rows = [
            ("image", f"{size(self.image_size)} voxels"),
            ("windows", f"{self.windows:,} of {size(self.roi_size)} voxels in {self.batches:,} batches{mirrored}"),
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
        if self.skipped:
            rows.insert(2, ("skipped", f"{self.skipped:,} of the windows, which have no voxel of the mask"))
        if self.inverse_bytes:
            held_back = f"{format_bytes(self.inverse_bytes)} of faces between chunks and a box at hand"
            rows.insert(-2, ("to patient's grid", f"{size(self.result_size)} voxels; {held_back}"))
            rows.append(("MONAI's inverse", f"about {format_bytes(self.monai_inverse_bytes)}"))
        if self.input_bytes:
            place = "in memory" if self.input_in_memory else "on scratch"
            rows.append(("input rows kept", f"{format_bytes(self.input_bytes)} {place}, each voxel read once"))
        if self.advice:
            rows.append(("to save memory", self.advice))
        if self.parts is not None:
            rows += _rows(self.parts)
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
        axes.set_title(
            f"{' x '.join(map(str, self.image_size))} voxels; MONAI's scores take {format_bytes(self.monai_bytes)}"
        )
        axes.set_xlim(0, self.windows)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside right upper")
        figure.savefig(path, dpi=120)


SHOWN = 8
"""Parts that are shown; of more of them only the first and the last few are, and what any of them takes at most."""

COLUMNS = "{:>10} {:>10} {:>10} {:>10} {:>10} | {:>10} {:>10} {:>10}"


def _rows(parts: PartsForecast) -> list[tuple[str, str]]:
    """What is said of parts: how well workers are used, and a line for each part."""
    ways = [("handed on", parts.handing_on), ("independent", parts.independent)]
    used = ", ".join(f"{parts.efficiency(each):.2f} {name}" for name, each in ways)
    summary = (f"{parts.workers} workers", f"{len(parts.handing_on)} parts; efficiency {used}")
    handed = ("windows", "batches", "open", "kept", "sent")
    header = ("  handed on | alone", COLUMNS.format(*handed, "windows", "twice", "open"))
    each = [(_numbers(one), _numbers(alone)) for one, alone in zip(parts.handing_on, parts.independent)]
    lines = [(f"  part {k}", _part(*both)) for k, both in enumerate(each)]
    if len(lines) > SHOWN:
        most = [tuple(map(max, zip(*(numbers[way] for numbers in each)))) for way in range(2)]
        lines = [*lines[: SHOWN // 2], ("  ...", ""), *lines[-2:], ("  any, at most", _part(*most))]
    return [summary, header, *lines]


def _numbers(part: PartForecast) -> tuple[int, ...]:
    return part.windows, part.batches, part.open_bytes, part.kept_bytes, part.sent_bytes, part.twice


def _part(one: tuple[int, ...], alone: tuple[int, ...]) -> str:
    """A part where chunks are handed on, and the same part where it is independent."""
    windows, batches, *sizes, _ = one
    handed = [f"{windows:,}", f"{batches:,}", *map(format_bytes, sizes)]
    return COLUMNS.format(*handed, f"{alone[0]:,}", f"{alone[5]:,}", format_bytes(alone[2]))
