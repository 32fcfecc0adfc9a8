"""Table and chart of `pipeline`: what each stage takes, from the file of the patient to the file of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import Row, ratio
from benchmarks.report import OTHERS, OURS, columns, gib

__all__ = ["draw", "is_same", "table"]

STAGES = {
    "preprocessing_seconds": ("#dfe3e6", "#dfe3e6", "preprocessing"),
    "network_seconds": ("#b9bec4", "#b9bec4", "network"),
    "stitching_seconds": (OURS, OTHERS, "blending to labels"),
    "saving_seconds": ("#174f76", "#8f5218", "saving"),
}


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown: list[tuple[str, Any]] = [("case", lambda row, _: row.group)]
    for header, key in (
        ("preprocessing s", "preprocessing_seconds"),
        ("network s", "network_seconds"),
        ("blending to labels s", "stitching_seconds"),
        ("saving s", "saving_seconds"),
        ("behind the network s", "behind_seconds"),
        ("total s", "seconds"),
    ):
        shown.append((header, lambda row, _, key=key: row.median(key)))
    shown += [
        ("memory GiB", lambda row, _: gib(row.memory)),
        ("of preprocessing GiB", lambda row, _: gib(row.median("preprocessing_bytes"))),
        ("behind ratio", lambda row, first: ratio(row.median("behind_seconds"), first.median("behind_seconds"))),
        ("memory ratio", lambda row, first: ratio(row.memory, first.memory)),
        ("borders %", lambda row, _: row.median("borders") and 100 * row.median("borders")),
        ("file", _same),
    ]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def _same(row: Row, _: Row) -> str:
    if row.skip:
        return "extrapolated" if row.runs else "not run"
    if row.failure or not row.runs:
        return row.failure
    if row.job.peer == "monai":
        return "reference"
    if "different" not in row.runs[0]:  # MONAI has not run: later rounds are compared with the first
        return "not compared" if len(row.runs) == 1 else "same in all rounds" if is_same(row) else "differs"
    return "same" if is_same(row) else f"{100 * max(run['different'] for run in row.runs):.2g} % differ"


def is_same(row: Row) -> bool:
    """Whether every file was that of the first row of the group: voxels and affine."""
    return all(run.get("different", 0) == 0 and run.get("same_affine", True) for run in row.runs)


def draw(path: Path, title: str, rows: list[Row], headings: dict[str, str]) -> None:
    """Time by stage and memory, a line of two panels for each case, for they differ by orders of magnitude."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cases = [case for case in headings if any(row.group == case and row.runs for row in rows)]
    figure = Figure(figsize=(11, 1.1 + 1.15 * len(cases)), layout="constrained")
    for case, (times, sizes) in zip(cases, figure.subplots(len(cases), 2, squeeze=False)):
        shown = [row for row in rows if row.group == case and row.runs]
        for place, row in enumerate(shown):
            ours, left = row.job.peer == "chunked", 0.0
            for key, (color, other, _) in STAGES.items():
                width = row.median(key) or 0
                times.barh(place, width, left=left, color=color if ours else other)
                left += width
            behind, size = row.median("behind_seconds") or 0, gib(row.memory) or 0
            sizes.barh(place, size, color=OURS if ours else OTHERS)
            for axis, at, text in ((times, left, f"{left:.3g}, behind {behind:.3g}"), (sizes, size, f"{size:.3g}")):
                axis.annotate(text, (at, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        times.set_yticks(range(len(shown)), [row.name.split(", cpu")[0] for row in shown])
        sizes.set_yticks([])
        times.set_title(headings[case], loc="left", fontsize=9.5, weight="bold")
        for axis in (times, sizes):
            axis.invert_yaxis()
            axis.margins(x=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    times.set_xlabel("seconds; behind: without preprocessing and network")
    sizes.set_xlabel("memory over the start, GiB")
    handles = [
        Patch(color=color, label=f"{name}{who}")
        for ours, theirs, name in STAGES.values()
        for color, who in ([(ours, "")] if ours == theirs else [(ours, ", one word changed"), (theirs, ", MONAI")])
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.savefig(path, dpi=110)
