"""
Question 7: what if the result does not fit in memory? Full scores to files, and how fast files are written.

    python -m benchmarks.out_of_core              # some 15 minutes; needs 30 GB in the folder for temporary files
    python -m benchmarks.out_of_core --shrink 4   # a trial, with sizes divided by 4; no results are kept
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.harness import GIB, ROOT, Check, Job, Question, Row, ratio, run_process
from benchmarks.report import MEMORY, TIMES, bars, columns, same

SIZE, CLASSES = (256, 256, 512), 105
FORMATS = (".npy", ".nii", "Zarr")
LIMITS = {"no limit": {}, 'cpu_memory="512MiB"': {"cpu_memory": "512MiB"}}
WRITERS = {
    "scores, 14 x 256³ float32": Job("", (256, 256, 256), 14, labels=False),
    "labels, 512³ uint8": Job("", (512, 512, 512), 14, labels=True),
}
MOST_GIB = 2
SLOWEST = 1.43
"""Times the duration of a plain write: 0.7 of its throughput."""

TITLE = "7. Out of core"


def rows(shrink: int = 1) -> list[Row]:
    """Whole runs, once each, then writers alone."""

    def sized(peer: str, job: Job, **options: Any) -> Job:
        size = tuple(max(1, n // shrink) for n in job.image_size)
        assert len(size) == 3
        return Job(peer, size, job.classes, labels=job.labels, options=options)

    whole = Job("chunked", SIZE, CLASSES, labels=False)
    found = [
        Row(name, sized("chunked", whole, format=name, **limit), group, rounds=1)
        for group, limit in LIMITS.items()
        for name in FORMATS
    ]
    for group, job in WRITERS.items():
        found.append(Row("plain write", sized("plain", job), group))
        found += [Row(name, sized("writer", job, format=name), group) for name in FORMATS]
    return found


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown = [
        ("case", lambda row, _: row.group),
        *TIMES,
        ("MB/s", lambda row, _: _throughput(row)),
        ("of a plain write", lambda row, first: _of_plain(row, first)),
        *MEMORY,
        ("result", lambda row, first: same(row, first) if row.job.peer == "chunked" else "-"),
    ]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def checks(rows: list[Row]) -> list[Check]:
    found = [
        Check(f"{row.group}: {row.name}: memory", ratio(row.memory, GIB), MOST_GIB, " GiB")
        for row in rows
        if row.job.peer == "chunked" and "cpu_memory" in row.job.options
    ]
    plain = {row.group: row.seconds for row in rows if row.job.peer == "plain"}
    found += [
        Check(f"{row.group}: {row.name}: wall / plain write", ratio(row.seconds, plain[row.group]), SLOWEST)
        for row in rows
        if row.job.peer == "writer"
    ]
    return found


def _throughput(row: Row) -> float | None:
    """In MB of uncompressed voxels a second."""
    size = row.job.score_bytes // (4 * row.job.classes) if row.job.labels else row.job.score_bytes
    return None if row.seconds is None else size / row.seconds / 10**6


def _of_plain(row: Row, first: Row) -> float | None:
    return ratio(first.seconds, row.seconds) if row.job.peer == "writer" else None


def draw(path: Path, rows: list[Row]) -> None:
    whole = [row for row in rows if row.job.peer == "chunked"]
    bars(path, f"{TITLE}: full scores of {CLASSES} classes, {' x '.join(map(str, SIZE))}, to a file", whole)


QUESTION = Question(
    name="out_of_core",
    title=TITLE,
    about=f"Full scores of {CLASSES} classes on {' x '.join(map(str, SIZE))} voxels as float32 "
    f"({4 * CLASSES * SIZE[0] * SIZE[1] * SIZE[2] / 10**9:.1f} GB) in a file, from runs that can be resumed, with a "
    f"1x1x1 network, windows of 96³, overlap 0.25, gaussian weights; three channels of the result are compared with "
    f"MONAI's. Then the writers alone, beside a plain sequential write of as many bytes with fsync to the same disk. "
    f"Scores are noise there, labels come in blobs. MB/s are of uncompressed voxels.",
    rows=lambda _: rows(),
    table=table,
    checks=checks,
    draw=draw,
)


def measure(rows: list[Row], rounds: int) -> None:
    """Every row in turn, then the next round."""
    for number in range(rounds):
        for row in rows:
            if row.failure or number >= (row.rounds or rounds):
                continue
            run_process("benchmarks.disk", row)
            outcome = row.failure or f"{row.runs[-1]['seconds']:.1f} s"
            print(f"- round {number + 1}: {row.group}: {row.name}: {outcome}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION.about)
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many rounds of writers (default: 3)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sizes of volumes, for a trial (default: 1)")
    arguments = parser.parse_args()
    print(f"{TITLE}: {QUESTION.about}", flush=True)
    start = time.perf_counter()
    found = rows(arguments.shrink)
    measure(found, arguments.rounds)
    if arguments.shrink > 1:
        print("\n" + report.markdown(*table(found)) + "\n\n" + report.checks_table(checks(found)))
        return
    print("\n" + report.write(QUESTION, found, arguments.rounds, time.perf_counter() - start), flush=True)
    command = [sys.executable, "-m", "benchmarks.reading"]
    reading = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(reading)
    with (report.RESULTS / f"{QUESTION.name}.md").open("a") as file:
        file.write(f"\n### How often a compressed input is read\n\n{reading}")


if __name__ == "__main__":
    main()
