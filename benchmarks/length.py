"""Question 2: does memory grow with the length of the volume? Only the label map should."""

from __future__ import annotations

from pathlib import Path

from benchmarks.command import main
from benchmarks.harness import GIB, Check, Job, Question, Row, unless_too_large
from benchmarks.report import MEMORY, OTHERS, OURS, RESULT, TIMES, columns, lines

CLASSES, SECTION = 105, 256
LENGTHS = (256, 512, 1024)
FIRST, LAST = "N x 256 x 256", "256 x 256 x N"
SCAN = {FIRST: {}, LAST: {"buffer_steps": 1, "buffer_dim": 2}}
TITLE = "2. Length"


def rows(full: bool) -> list[Row]:
    found = []
    for shape, scan in SCAN.items():
        for length in LENGTHS:
            size = (length, SECTION, SECTION) if shape == FIRST else (SECTION, SECTION, length)
            group = f"{shape}, N = {length}"
            monai = unless_too_large(Row("MONAI, argmax", Job("monai", size, CLASSES, options=dict(scan)), group, 1))
            if length > LENGTHS[0] and not full:
                monai.skip = monai.skip or "only with --full"
            found += [monai, Row("monai_chunked", Job("chunked", size, CLASSES, options=dict(scan)), group, 1)]
    return found


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown = [("volume", lambda row, _: row.group), ("labels GiB", lambda row, _: _labels(row) / GIB)]
    shown += [*MEMORY, *TIMES, *RESULT]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def checks(rows: list[Row]) -> list[Check]:
    found = []
    for shape in SCAN:
        ours = [row for row in _of(rows, shape, "chunked") if row.memory]
        growth = None
        if len(ours) == len(LENGTHS):
            grown = (ours[-1].memory or 0) - (ours[0].memory or 0) - (_labels(ours[-1]) - _labels(ours[0]))
            growth = 100 * grown / (ours[0].memory or 1)
        name = f"{shape}: growth of memory from N = {LENGTHS[0]} to {LENGTHS[-1]} beyond the labels"
        found.append(Check(name, growth, 5, " %"))
    return found


def draw(path: Path, rows: list[Row]) -> None:
    series = [
        (f"monai_chunked, {FIRST}", OURS, _points(rows, FIRST, "chunked")),
        (f"monai_chunked, {LAST}, buffer_steps=1, buffer_dim=2", "#7cc0a8", _points(rows, LAST, "chunked")),
        (f"MONAI and argmax, {FIRST}", OTHERS, _points(rows, FIRST, "monai")),
        (f"MONAI and argmax, {LAST}, buffer_steps=1, buffer_dim=2", "#a0522d", _points(rows, LAST, "monai")),
    ]
    title = f"{TITLE}: memory for {CLASSES} classes, to a label map"
    lines(path, title, "length N of the volume, voxels", "memory over the start, GiB", series)


def _of(rows: list[Row], shape: str, peer: str) -> list[Row]:
    return [row for row in rows if row.group.startswith(f"{shape},") and row.job.peer == peer]


def _points(rows: list[Row], shape: str, peer: str) -> list[tuple[float, float]]:
    return [(max(r.job.image_size), r.memory / GIB) for r in _of(rows, shape, peer) if r.memory is not None]


def _labels(row: Row) -> float:
    return row.job.score_bytes / row.job.classes / 4


QUESTION = Question(
    name="length",
    title=TITLE,
    about=f"A 1x1x1 network with {CLASSES} classes on N x {SECTION} x {SECTION} voxels, and on "
    f"{SECTION} x {SECTION} x N scanned along the last dimension (buffer_steps=1, buffer_dim=2); windows of 96³, "
    f"overlap 0.25, gaussian weights, ending in a label map. Memory is the peak over the start.",
    rows=rows,
    table=table,
    checks=checks,
    draw=draw,
)

if __name__ == "__main__":
    main(QUESTION)
