"""Tables and charts of what was measured, and the machine on which it was. PyTorch is not imported here either."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness import GIB, Check, Question, Row, ratio

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("monai-chunked", "monai", "torch", "numpy", "patchly", "zarr")

OURS, OTHERS, NETWORK = "#2a7fb8", "#e0893a", "#b9bec4"


def write(question: Question, rows: list[Row], rounds: int, seconds: float, command: str = "") -> str:
    """Write the table, the numbers and the chart; returns the table."""
    RESULTS.mkdir(exist_ok=True)
    command = command or f"python -m benchmarks.{question.name} --rounds {rounds}"
    text = f"""## {question.title}

{question.about}

{markdown(*question.table(rows))}

{_rounds(rows, rounds)}

{checks_table(question.checks(rows))}

{_machine_text(rows)}
`{command}`: {seconds / 60:.1f} minutes.
"""
    (RESULTS / f"{question.name}.md").write_text(text)
    data = {
        "question": question.name,
        "command": command,
        "seconds": seconds,
        "machine": machine(),
        "rows": [dataclasses.asdict(row) for row in rows],
        "checks": [dataclasses.asdict(check) | {"holds": check.holds} for check in question.checks(rows)],
    }
    (RESULTS / f"{question.name}.json").write_text(json.dumps(data, indent=1) + "\n")
    question.draw(RESULTS / f"{question.name}.png", rows)
    return text


def machine() -> dict[str, str]:
    """What the numbers depend on; no names of hosts or users."""
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        **packages,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _machine_text(rows: Sequence[Row]) -> str:
    known = machine()
    devices = sorted({run["device_name"] for row in rows for run in row.runs if "device_name" in run})
    hardware = ", ".join([*devices, known["processor"], f"{known['cores']} cores", known["memory"]])
    software = ", ".join(f"{name} {known[name]}" for name in known if name not in ("processor", "cores", "memory"))
    return f"{hardware}; {software}."


def _rounds(rows: Sequence[Row], rounds: int) -> str:
    """What was run how often, and what was not."""
    by_number: dict[int, list[str]] = {}
    for row in rows:
        if not row.skip and not row.failure:
            by_number.setdefault(len(row.runs), []).append(f"{row.group} {row.name}".strip())
    most = max(by_number, default=0)
    said = [f"Medians of {most} rounds, every peer in turn." if most > 1 else "One round."]
    if others := [run["others"] for row in rows for run in row.runs if "others" in run]:
        said.append(f"Other processes took {100 * max(others):.0f} % of the processor at most.")
    said += [
        f"{'Once' if n == 1 else f'{n} rounds'}: {'; '.join(by_number[n])}." for n in sorted(by_number) if n != most
    ]
    for reason in dict.fromkeys(row.skip for row in rows if row.skip):
        skipped = [f"{row.group} {row.name}".strip() for row in rows if row.skip == reason]
        said.append(f"Not run, {reason}: {'; '.join(skipped)}.")
    return " ".join(said)


def columns(rows: Sequence[Row], shown: Sequence[tuple[str, Callable[[Row, Row], Any]]]) -> list[list[str]]:
    """Lines of a table: the name, then a value for each ``(header, function of a row and the first of its group)``."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.group, row)
    return [[row.name, *(_cell(value(row, first[row.group])) for _, value in shown)] for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.2f}"


def same(row: Row, _: Row) -> str:
    """Whether the result is that of the first row of the group that ran, voxel by voxel."""
    if not row.runs:
        return "not run" if row.skip else row.failure
    found = row.median("different")
    if found is None:
        return "reference"
    return "same" if found == 0 else f"{100 * found:.2g} % differ"


def gib(size: float | None) -> float | None:
    return None if size is None else size / GIB


TIMES: list[tuple[str, Callable[[Row, Row], Any]]] = [
    ("wall s", lambda row, _: row.seconds),
    ("network s", lambda row, _: row.network),
    ("stitching s", lambda row, _: row.stitching),
]
MEMORY: list[tuple[str, Callable[[Row, Row], Any]]] = [("memory GiB", lambda row, _: gib(row.memory))]
RATIOS: list[tuple[str, Callable[[Row, Row], Any]]] = [
    ("wall ratio", lambda row, first: ratio(row.seconds, first.seconds)),
    ("stitching ratio", lambda row, first: ratio(row.stitching, first.stitching)),
    ("memory ratio", lambda row, first: ratio(row.memory, first.memory)),
]
RESULT: list[tuple[str, Callable[[Row, Row], Any]]] = [("result", same)]


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """
    >>> print(markdown(["a", "b"], [["x", "1"]]))
    | a | b |
    | --- | ---: |
    | x | 1 |
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *body])


def checks_table(checks: Sequence[Check]) -> str:
    body = [
        [c.name, f"<= {c.most:g}{c.unit}", "-" if c.value is None else f"{c.value:.2f}{c.unit}", _verdict(c)]
        for c in checks
    ]
    return markdown(["to reach", "at most", "measured", ""], body)


def _verdict(check: Check) -> str:
    return "not measured" if check.value is None else "yes" if check.holds else "no"


def bars(path: Path, title: str, rows: Sequence[Row], device_memory: bool = False) -> None:
    """Wall time (in the network and outside) and memory of every row, as bars under the heading of their group."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [row for row in rows if not row.skip]
    places, ticks, headings = [], [], []
    at, group = 0.0, None
    for row in shown:
        if row.group != group:
            at += 1.0 if row.group else 0.0
            headings.append((at - 0.85, row.group))
            group = row.group
        places.append(at)
        ticks.append(row.name)
        at += 1
    panels: list[tuple[str, Callable[[Row], float | None]]] = [("memory over the start, GiB", lambda r: gib(r.memory))]
    if device_memory:
        panels.insert(0, ("memory of the device, GiB", lambda r: gib(r.median("device_bytes"))))
    figure = Figure(figsize=(5.4 + 3.2 * (1 + len(panels)), 1.5 + 0.36 * at), layout="constrained")
    axes = figure.subplots(1, 1 + len(panels), sharey=True)
    colors = [OURS if row.job.peer == "chunked" else OTHERS for row in shown]

    network = [row.network or 0 for row in shown]
    axes[0].barh(places, network, color=NETWORK)
    axes[0].barh(places, [row.stitching or 0 for row in shown], left=network, color=colors)
    _finish(axes[0], "wall time, s", places, shown, lambda row: row.seconds)
    legend = [(NETWORK, "in the network"), (OURS, "monai_chunked"), (OTHERS, "others")]
    figure.legend(
        handles=[Patch(color=c, label=name) for c, name in legend], loc="outside lower right", ncols=3, frameon=False
    )
    for axis, (label, value) in zip(axes[1:], panels):
        axis.barh(places, [value(row) or 0 for row in shown], color=colors)
        _finish(axis, label, places, shown, value)
    axes[0].set_yticks(places, ticks)
    axes[0].set_ylim(max(places) + 0.6, min(place for place, _ in headings) - 0.4)
    for place, heading in headings:
        axes[0].annotate(heading, (0, place), xycoords=("axes fraction", "data"), weight="bold", va="center")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.savefig(path, dpi=110)


def _finish(axis: Any, label: str, places: Sequence[float], rows: Sequence[Row], value: Callable[[Row], Any]) -> None:
    for place, row in zip(places, rows):
        number = value(row)
        text = row.failure if number is None else f"{number:.3g}" if number < 100 else f"{number:.0f}"
        axis.annotate(text, (number or 0, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axis.set_xlabel(label)
    axis.margins(x=0.16)
    axis.spines[["top", "right"]].set_visible(False)


def lines(
    path: Path, title: str, x: str, y: str, series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]
) -> None:
    """Curves; each ``(name, color, points)``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axis = figure.subplots()
    for name, color, points in series:
        if points:
            axis.plot(*zip(*points), "o-" if len(points) > 1 else "o", color=color, label=name)
            for px, py in points:
                axis.annotate(f"{py:.3g}", (px, py), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
    axis.set_xticks(sorted({px for _, _, points in series for px, _ in points}))
    axis.set_ylim(0, 1.12 * max(py for _, _, points in series for _, py in points))
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.savefig(path, dpi=110)
