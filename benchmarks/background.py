"""Question: what is saved where windows are skipped, in a real network?"""

from __future__ import annotations

from benchmarks.command import main
from benchmarks.harness import Check, Job, Question, Row, ratio
from benchmarks.report import MEMORY, RESULT, TIMES, bars, columns

ROI, OVERLAP, CLASSES, NETWORK = 96, 0.5, 2, "unet"
POSITIONS = (5, 3, 3)
"""Windows along each dimension; those at the first positions along the first one are skipped."""

SIZE = tuple(ROI + (n - 1) * ROI // 2 for n in POSITIONS)
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)
MOST = 0.45
"""Of MONAI's wall time, where 60 % of the windows are skipped."""

TITLE = "Skipped windows"


def rows(full: bool) -> list[Row]:
    found = []
    for share in SHARES:
        skipped = round(share * POSITIONS[0])
        air = ROI + (skipped - 1) * ROI // 2 if skipped else 0
        for name, peer, rounds in (("MONAI, argmax", "monai", 1), ("monai_chunked", "chunked", None)):
            options = {"skip": 0} if peer == "chunked" else {}
            job = Job(peer, (SIZE[0], SIZE[1], SIZE[2]), CLASSES, NETWORK, ROI, OVERLAP, options=options, air=air)
            found.append(Row(name, job, f"{100 * share:.0f} % skipped", None if full else rounds))
    return found


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown = [("windows", lambda row, _: row.group), *TIMES]
    shown += [("wall / MONAI", lambda row, first: ratio(row.seconds, first.seconds)), *MEMORY, *RESULT]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def checks(rows: list[Row]) -> list[Check]:
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.group, row)
    ours = next(row for row in rows if row.job.peer == "chunked" and row.group == "60 % skipped")
    return [Check(f"{ours.group}: wall / MONAI", ratio(ours.seconds, first[ours.group].seconds), MOST)]


QUESTION = Question(
    name="background",
    title=TITLE,
    about=f"The untrained UNet of the spleen bundle with {CLASSES} classes on {' x '.join(map(str, SIZE))} voxels, "
    f"windows of {ROI}³, overlap {OVERLAP}, gaussian weights, ending in a label map. Part of the volume is zero; "
    f"windows without a voxel above it are skipped, and zeros stand for their scores. MONAI predicts them all, and its "
    f"network returns zeros for those windows, so that the results can be compared.",
    rows=rows,
    table=table,
    checks=checks,
    draw=lambda path, rows: bars(path, f"{TITLE}: {' x '.join(map(str, SIZE))}, to a label map", rows),
)

if __name__ == "__main__":
    main(QUESTION)
