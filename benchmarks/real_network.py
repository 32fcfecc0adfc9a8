"""Question 4: what does stitching add to a real network?"""

from __future__ import annotations

from benchmarks.command import main
from benchmarks.harness import Check, Job, Question, Row, ratio
from benchmarks.report import MEMORY, RESULT, TIMES, bars, columns

SIZE, CLASSES, OVERLAP = (192, 192, 192), 2, 0.5
NETWORKS = {"unet": "UNet of the spleen bundle", "segresnet8": "SegResNet, 8 filters"}
TITLE = "4. A real network"


def rows(full: bool) -> list[Row]:
    found = []
    for network, group in NETWORKS.items():
        for name, peer, rounds in (("MONAI, argmax", "monai", 1), ("monai_chunked", "chunked", None)):
            job = Job(peer, SIZE, CLASSES, network, overlap=OVERLAP)
            found.append(Row(name, job, group, None if full else rounds))
    return found


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown = [("network", lambda row, _: row.group), *TIMES, ("wall / network", lambda row, _: _over_network(row))]
    shown += [*MEMORY, *RESULT]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def checks(rows: list[Row]) -> list[Check]:
    ours = [row for row in rows if row.job.peer == "chunked"]
    return [Check(f"{row.group}: wall / time in the network", _over_network(row), 1.05) for row in ours]


def _over_network(row: Row) -> float | None:
    return ratio(row.seconds, row.network)


QUESTION = Question(
    name="real_network",
    title=TITLE,
    about=f"Untrained networks with {CLASSES} classes on {SIZE[0]}³ voxels, windows of 96³, overlap {OVERLAP}, "
    f"gaussian weights, ending in a label map.",
    rows=rows,
    table=table,
    checks=checks,
    draw=lambda path, rows: bars(path, f"{TITLE}: {SIZE[0]}³, overlap {OVERLAP}, to a label map", rows),
)

if __name__ == "__main__":
    main(QUESTION)
