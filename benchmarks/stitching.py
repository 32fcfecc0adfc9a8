"""Question 1: what does stitching cost? The network is one fused 1x1x1 operation, so nearly all time is stitching."""

from __future__ import annotations

from benchmarks.command import main
from benchmarks.harness import GIB, Check, Job, Question, Row, ratio
from benchmarks.report import MEMORY, RATIOS, RESULT, TIMES, bars, columns

SIZE, CLASSES = (256, 256, 256), 50
OVERLAPS = (0.25, 0.5)
ZARR_CLASSES = 5
TITLE = "1. Stitching"


def rows(full: bool) -> list[Row]:
    found = []
    for overlap in OVERLAPS:

        def row(name: str, peer: str, rounds: int | None = None, overlap: float = overlap, **options: object) -> Row:
            job = Job(peer, SIZE, CLASSES, overlap=overlap, options=options)
            return Row(name, job, f"overlap {overlap}", None if full else rounds)

        zarr = Job("zarr", SIZE, ZARR_CLASSES, overlap=overlap)
        found += [
            row("MONAI, argmax", "monai"),
            row("MONAI, buffer_steps=1, argmax", "monai", 1, buffer_steps=1, buffer_dim=0),
            row("monai_chunked", "chunked"),
            row("monai_chunked, 256 MiB", "chunked", cpu_memory="256MiB"),
            row("Patchly, chunks of 128³", "patchly", 1, chunk_size=(128, 128, 128)),
            Row(f"MONAI, ZarrAvgMerger, {ZARR_CLASSES} classes", zarr, f"overlap {overlap}", None if full else 1),
        ]
    return found


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown = [("overlap", lambda row, _: f"{row.job.overlap:g}"), *TIMES, *MEMORY, *RATIOS, *RESULT]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def checks(rows: list[Row]) -> list[Check]:
    found = []
    for overlap in OVERLAPS:
        monai, _, ours, limited, patchly, _ = [row for row in rows if row.job.overlap == overlap]
        found += [
            Check(f"overlap {overlap}: wall / MONAI", ratio(ours.seconds, monai.seconds), 0.75),
            Check(f"overlap {overlap}: stitching / MONAI", ratio(ours.stitching, monai.stitching), 0.6),
            Check(f"overlap {overlap}: stitching / Patchly", ratio(ours.stitching, patchly.stitching), 0.12),
            Check(f"overlap {overlap}: memory / MONAI", ratio(ours.memory, monai.memory), 0.4),
            Check(f"overlap {overlap}: memory / Patchly", ratio(ours.memory, patchly.memory), 0.07),
            Check(f"overlap {overlap}: memory with 256 MiB", ratio(limited.memory, GIB), 0.75, " GiB"),
            Check(f"overlap {overlap}: wall with 256 MiB / no limit", ratio(limited.seconds, ours.seconds), 1.5),
        ]
    return found


QUESTION = Question(
    name="stitching",
    title=TITLE,
    about=f"A 1x1x1 network with {CLASSES} classes on {SIZE[0]}³ voxels, windows of 96³, gaussian weights, ending in a "
    f"label map. Stitching is wall time less time in the network; memory is the peak over the start; ratios are to "
    f"MONAI. ZarrAvgMerger gets {ZARR_CLASSES} classes because it is slow, and it has no gaussian weights.",
    rows=rows,
    table=table,
    checks=checks,
    draw=lambda path, rows: bars(path, f"{TITLE}: 50 classes, 256³, a 1x1x1 network, to a label map", rows),
)

if __name__ == "__main__":
    main(QUESTION)
