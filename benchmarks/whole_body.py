"""Question 3: how small does a whole body get? 105 classes, with limits in bytes."""

from __future__ import annotations

from benchmarks.command import main
from benchmarks.harness import GIB, Check, Job, Question, Row, ratio, unless_too_large
from benchmarks.report import MEMORY, RESULT, TIMES, bars, columns

CLASSES = 105
SMALL, LARGE = (512, 512, 256), (512, 512, 512)
LIMITS = (None, "2GiB", "1GiB")
TITLE = "3. Whole body"


def rows(full: bool) -> list[Row]:
    found = []
    for size in (SMALL, LARGE):
        group = " x ".join(map(str, size))
        found.append(unless_too_large(Row("MONAI, argmax", Job("monai", size, CLASSES), group, 1)))
        for limit in LIMITS:
            options = {} if limit is None else {"cpu_memory": limit}
            row = Row(f"monai_chunked, {limit or 'no limit'}", Job("chunked", size, CLASSES, options=options), group, 1)
            if not full and size == LARGE and limit != LIMITS[-1]:
                row.skip = "only with --full"
            found.append(row)
    return found


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown = [("volume", lambda row, _: row.group), ("scores GiB", lambda row, _: row.job.score_bytes / GIB)]
    shown += [*MEMORY, *TIMES, *RESULT]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def checks(rows: list[Row]) -> list[Check]:
    return [Check("512 x 512 x 512 with 1 GiB: memory", ratio(rows[-1].memory, GIB), 2.5, " GiB")]


QUESTION = Question(
    name="whole_body",
    title=TITLE,
    about=f"A 1x1x1 network with {CLASSES} classes, windows of 96³, overlap 0.25, gaussian weights, ending in a label "
    f"map, with and without cpu_memory. The result is compared with MONAI's where MONAI runs, else with the first "
    f"row that does.",
    rows=rows,
    table=table,
    checks=checks,
    draw=lambda path, rows: bars(path, f"{TITLE}: {CLASSES} classes, to a label map", rows),
)

if __name__ == "__main__":
    main(QUESTION)
