"""
Runs every peer in a process of its own, in turn, for several rounds, and takes medians.

Nothing here imports PyTorch: a process starts with at least the peak memory of the one that started it, so that one
must be slim.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "GIB",
    "ROOT",
    "Check",
    "Job",
    "Question",
    "Row",
    "measure",
    "ratio",
    "run_process",
    "unless_too_large",
]

GIB = 2**30
ROOT = Path(__file__).resolve().parents[1]
OUT_OF_MEMORY = 3
"""Exit code of a peer that ran out of memory; the operating system's own way is signal 9."""

DISTURBED = 0.05
"""Part of the processor that other processes may take before a time is doubtful."""


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        peer: one of ``benchmarks.peers.PEERS``.
        image_size: of the volume in voxels.
        classes: channels of the scores.
        network: one of ``benchmarks.peers.NETWORKS``.
        roi_size: of a window in voxels, the same in every dimension.
        overlap: of neighbouring windows.
        labels: end in a label map; otherwise in the scores.
        network_device, device: where the network runs, and where MONAI's ``device`` is.
        amp: run the network under automatic mixed precision.
        options: further arguments of the inferer.
        air: how many voxels of the volume are zero along the first dimension, from its start. The scores of MONAI's
            network are zero for windows in which all is.
    """

    peer: str
    image_size: tuple[int, int, int]
    classes: int
    network: str = "pointwise"
    roi_size: int = 96
    overlap: float = 0.25
    labels: bool = True
    network_device: str = "cpu"
    device: str = "cpu"
    amp: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    air: int = 0

    @property
    def score_bytes(self) -> int:
        x, y, z = self.image_size
        return 4 * self.classes * x * y * z


@dataclass
class Row:
    """One line of the table: a job and what its runs measured, as medians once all rounds are done.

    Attributes:
        name: in the table.
        job: what runs.
        group: rows of a group are compared with each other; shown as a heading of the chart.
        rounds: how often it runs at most; ``None`` for as often as asked.
        skip: why it does not run at all.
        runs: what each process reported.
        failure: why there is no number.
    """

    name: str
    job: Job
    group: str = ""
    rounds: int | None = None
    skip: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""

    def median(self, key: str) -> float | None:
        """Of all rounds; ``None`` if there is no such number."""
        values = [run[key] for run in self.runs if run.get(key) is not None]
        return None if self.failure or not values else statistics.median(values)

    @property
    def seconds(self) -> float | None:
        return self.median("seconds")

    @property
    def network(self) -> float | None:
        """Seconds inside the network."""
        return self.median("network_seconds")

    @property
    def stitching(self) -> float | None:
        """Seconds outside the network."""
        return self.median("stitching_seconds")

    @property
    def memory(self) -> float | None:
        """Peak bytes over the start."""
        return self.median("memory_bytes")


@dataclass(frozen=True)
class Check:
    """A number to reach: ``value`` is to be at most ``most``."""

    name: str
    value: float | None
    most: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.value is not None and self.value <= self.most

    def named(self, question: str) -> Check:
        """The same, for a table of several questions."""
        return dataclasses.replace(self, name=f"{question}: {self.name}")


@dataclass(frozen=True)
class Question:
    """What one script asks.

    Attributes:
        name: of the files in ``results``.
        title: of the table and the chart.
        about: what runs, in a sentence or two.
        rows: makes the rows, in the order in which they run; the first of a group is the reference for its results.
        table: header and lines of the table, from finished rows.
        checks: the numbers to reach.
        draw: draws the chart into a file.
    """

    name: str
    title: str
    about: str
    rows: Callable[[bool], list[Row]]
    table: Callable[[list[Row]], tuple[list[str], list[list[str]]]]
    checks: Callable[[list[Row]], list[Check]]
    draw: Callable[[Path, list[Row]], None]


def ratio(value: float | None, reference: float | None) -> float | None:
    """Of two numbers, if there are both."""
    return None if value is None or not reference else value / reference


def unless_too_large(row: Row) -> Row:
    """A row of MONAI runs where its scores fit in memory, with a little to spare for everything else."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 1.1 * row.job.score_bytes + GIB > available:
        row.skip = f"scores of {row.job.score_bytes / GIB:.0f} GiB do not fit in {available / GIB:.0f} GiB of memory"
    return row


def measure(rows: Sequence[Row], rounds: int, log: Callable[[str], None] = print) -> None:
    """Run every row in turn, then the next round, and compare every result with that of the first row of its group.

    A row that fails by lack of memory is not run again; any other failure is an error.
    """
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        references: dict[str, Path] = {}
        for number in range(rounds):
            for row in rows:
                if row.failure or row.skip or number >= (rounds if row.rounds is None else row.rounds):
                    continue
                start = time.perf_counter()
                known = references.get(row.group)
                result = Path(folder) / f"{len(references)}.npy"
                comparison = ["--reference", str(known)] if known else ["--save", str(result)]
                run_process("benchmarks.peers", row, *comparison)
                if known is None and not row.failure:
                    references[row.group] = result
                outcome = row.failure or f"{row.runs[-1]['seconds']:.1f} s"
                if not row.failure and row.runs[-1].get("others", 0) > DISTURBED:
                    outcome += f", while other processes took {100 * row.runs[-1]['others']:.0f} % of the processor"
                spent = time.perf_counter() - start
                log(f"- round {number + 1}: {row.group}: {row.name}: {outcome} ({spent:.0f} s with start and check)")


def run_process(module: str, row: Row, *arguments: str) -> None:
    """Run the job of a row by a module, in a process of its own, and add what it reports."""
    command = [sys.executable, "-m", module, json.dumps(dataclasses.asdict(row.job)), *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode in (-9, OUT_OF_MEMORY):
        row.failure = "out of memory"
    elif process.returncode:
        raise RuntimeError(f"{row.name} failed: {' '.join(command)}\n{process.stderr}")
    else:
        row.runs.append(json.loads(process.stdout.splitlines()[-1]))
