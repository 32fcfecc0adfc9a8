"""Question 5: what if all scores are wanted, in memory or on disk?"""

from __future__ import annotations

from benchmarks.command import main
from benchmarks.harness import Check, Job, Question, Row, ratio
from benchmarks.report import MEMORY, RATIOS, RESULT, TIMES, bars, columns

SIZE, CLASSES = (256, 256, 256), 14
OVERLAPS = (0.25, 0.5)
TITLE = "5. Full scores"
PEERS = {
    "MONAI": ("monai", {}),
    "monai_chunked, in memory": ("chunked", {"output": "cpu"}),
    "monai_chunked, on disk": ("chunked", {"output": "disk"}),
}


def rows(full: bool) -> list[Row]:
    return [
        Row(name, Job(peer, SIZE, CLASSES, overlap=overlap, labels=False, options=options), f"overlap {overlap}")
        for overlap in OVERLAPS
        for name, (peer, options) in PEERS.items()
    ]


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown = [("overlap", lambda row, _: f"{row.job.overlap:g}"), *TIMES, *MEMORY, *RATIOS, *RESULT]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def checks(rows: list[Row]) -> list[Check]:
    found = []
    for overlap in OVERLAPS:
        monai, memory, disk = [row for row in rows if row.job.overlap == overlap]
        found += [
            Check(f"overlap {overlap}: wall in memory / MONAI", ratio(memory.seconds, monai.seconds), 1.0),
            Check(f"overlap {overlap}: wall on disk / MONAI", ratio(disk.seconds, monai.seconds), 1.5),
        ]
    return found


QUESTION = Question(
    name="full_scores",
    title=TITLE,
    about=f"A 1x1x1 network with {CLASSES} classes on {SIZE[0]}³ voxels, windows of 96³, gaussian weights, without "
    f"postprocessing: all scores as float32. On disk means written to a .npy file in the temporary folder, not "
    f"flushed to the device.",
    rows=rows,
    table=table,
    checks=checks,
    draw=lambda path, rows: bars(path, f"{TITLE}: {CLASSES} classes, {SIZE[0]}³", rows),
)

if __name__ == "__main__":
    main(QUESTION)
