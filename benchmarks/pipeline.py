"""
Question 8: what does a whole bundle take, from the patient's file to the labels on the patient's grid?

    python -m benchmarks.pipeline                               # all cases; needs 20 GiB of memory for MONAI
    python -m benchmarks.pipeline --case organs --case demo --repeats 1
    python -m benchmarks.pipeline --case organs --scratch       # a trial; no results are kept
    python -m benchmarks.pipeline --case whole_body --verify    # 105 classes beside MONAI's labels, one class at a time

Every run is one evaluator in a process of its own, and every file is compared with MONAI's, voxels and affine; the
exit code is 1 if one differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.harness import DISTURBED, GIB, ROOT, Check, Job, Question, Row, ratio, run_process
from benchmarks.stages import draw, is_same, table

TITLE = "8. A whole bundle"
ORGANS, WHOLE_BODY = 14, 105

CASES = {
    "organs": Job("", (256, 256, 200), ORGANS, "organs", overlap=0.5, options={"sw_batch_size": 4}),
    "noise": Job("", (256, 256, 200), ORGANS, "noise", overlap=0.5, options={"sw_batch_size": 4}),
    "large": Job("", (512, 512, 300), ORGANS, "organs", overlap=0.5, options={"sw_batch_size": 4}),
    "whole_body": Job("", (512, 512, 397), WHOLE_BODY, "organs", overlap=0.5, options={"sw_batch_size": 1}),
    "demo": Job("", (197, 233, 189), 4, "demo", options={"sw_batch_size": 1}),
}
NETWORK_GRIDS = {
    "organs": (137, 137, 150),
    "noise": (137, 137, 150),
    "large": (274, 274, 225),
    "whole_body": (274, 274, 298),
    "demo": (132, 156, 126),
}
LIMIT = "1GiB"
MOST = {"organs": (0.25, 0.2), "noise": (0.25, 1), "large": (0.1, 0.15), "demo": (0.5, 0.3)}
"""Of MONAI's memory, and of its time behind the network."""

MOST_GIB = 2.5
"""Of a whole body."""

EXTRAPOLATED = "MONAI, extrapolated"


def rows(cases: list[str]) -> list[Row]:
    """MONAI and ours for each case; MONAI's whole body is worked out from what `large` takes."""
    found = []
    for case in cases:
        if case != "whole_body":
            found += [_row("MONAI", case, "monai"), _row("one word changed", case, "chunked")]
            continue
        if "large" not in cases:
            found.append(dataclasses.replace(_row("MONAI", "large", "monai"), rounds=1))
        worked_out = _row(EXTRAPOLATED, case, "monai")
        worked_out.skip = "it does not fit in memory"
        found += [worked_out, _row(f'one word changed, cpu_memory="{LIMIT}"', case, "chunked", cpu_memory=LIMIT)]
    return found


def _row(name: str, case: str, peer: str, **options: str) -> Row:
    job = CASES[case]
    return Row(name, dataclasses.replace(job, peer=peer, options=job.options | options), case)


def formula_bytes(case: str) -> int:
    """What MONAI holds at its peak: scores, and what the inverse makes of them in float64."""
    patient, network = CASES[case].image_size, NETWORK_GRIDS[case]
    n_in, n_out = network[0] * network[1] * network[2], patient[0] * patient[1] * patient[2]
    return CASES[case].classes * (12 * n_in + 8 * n_out) + 24 * n_out


def extrapolate(rows: list[Row]) -> None:
    """Fill in MONAI's whole body: memory by the formula, time behind the network in proportion to it.

    Preprocessing, the network and saving do not depend on it, and are those of the run in chunks.
    """
    known = {(row.group, row.job.peer): row for row in rows}
    target, source = known.get(("whole_body", "monai")), known.get(("large", "monai"))
    ours = known.get(("whole_body", "chunked"))
    if target is None or source is None or ours is None or source.failure or not source.runs or not ours.runs:
        return
    factor = formula_bytes("whole_body") / formula_bytes("large")
    stitching = factor * (source.median("stitching_seconds") or 0)
    preprocessing, network, saving = (
        ours.median(f"{stage}_seconds") or 0 for stage in ("preprocessing", "network", "saving")
    )
    target.runs = [
        {
            "preprocessing_seconds": preprocessing,
            "network_seconds": network,
            "stitching_seconds": stitching,
            "saving_seconds": saving,
            "behind_seconds": stitching + saving,
            "seconds": preprocessing + network + stitching + saving,
            "memory_bytes": formula_bytes("whole_body"),
            "extrapolated": True,
        }
    ]


def checks(rows: list[Row]) -> list[Check]:
    known = {(row.group, row.job.peer): row for row in rows}
    found = []
    for case in CASES:
        ours, monai = known.get((case, "chunked")), known.get((case, "monai"))
        if ours is None or monai is None:
            continue
        if case == "whole_body":
            found.append(Check(f"{case}: memory", ratio(ours.memory, GIB), MOST_GIB, " GiB"))
            continue
        behind = ratio(ours.median("behind_seconds"), monai.median("behind_seconds"))
        found.append(Check(f"{case}: memory / MONAI", ratio(ours.memory, monai.memory), MOST[case][0]))
        found.append(Check(f"{case}: time behind the network / MONAI", behind, MOST[case][1]))
    return found


def _sizes(case: str) -> str:
    return " to ".join(" x ".join(map(str, size)) for size in (NETWORK_GRIDS[case], CASES[case].image_size))


def question(cases: list[str]) -> Question:
    """What is asked of these cases."""
    headings = {case: f"{case}: {job.classes} classes, {_sizes(case)}" for case, job in CASES.items()}
    return Question(
        name="pipeline",
        title=TITLE,
        about="A bundle as the model zoo has them, from the file of the patient to the file of labels: orientation, "
        "spacing, intensities; windows of 96³, gaussian weights; softmax, inverse of the scores to the patient's grid, "
        "argmax, SaveImaged. Once with MONAI's SupervisedEvaluator, once with one word changed to ChunkedEvaluator. "
        "The networks are cheap stand-ins for trained ones. "
        + " ".join(
            f"{headings[case]}, overlap {CASES[case].overlap:g}, sw_batch_size {CASES[case].options['sw_batch_size']}."
            for case in cases
        )
        + " Clock and memory start when preprocessing is done, whose own memory is told apart; behind the network is "
        "the time from there to the file being saved, less time in the network. Borders are the network's own: the "
        "part of cells of 2³ voxels that hold more than one label. "
        + (
            f"{EXTRAPOLATED}: time from blending to labels is that of 14 classes (large) in proportion to the memory "
            "of both, C (12 n_in + 8 n_out) + 24 n_out bytes; the other stages are ours."
            if "whole_body" in cases
            else ""
        ),
        rows=lambda _: rows(cases),
        table=table,
        checks=checks,
        draw=lambda path, rows: draw(path, TITLE, rows, headings),
    )


def measure(rows: list[Row], rounds: int, extension: str, verify: bool = False) -> None:
    """Every row in turn, then the next round; images are made once."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        folder = Path(name)
        jobs = {row.group: row.job for row in rows}
        borders = {case: _prepare(job, folder / f"{case}.nii") for case, job in jobs.items()}
        if verify:
            _verify([row for row in rows if row.name == EXTRAPOLATED], folder, extension)
        for number in range(rounds):
            for row in rows:
                if row.skip or row.failure or number >= (row.rounds or rounds):
                    continue
                reference, output = folder / f"{row.group}_reference", folder / "output"
                arguments = ["--image", str(folder / f"{row.group}.nii"), "--ext", extension]
                if reference.exists():
                    arguments += ["--folder", str(output), "--reference", str(reference)]
                else:
                    arguments += ["--folder", str(reference)]
                run_process("benchmarks.evaluation", row, *arguments)
                shutil.rmtree(output, ignore_errors=True)
                if row.runs:
                    row.runs[-1]["borders"] = borders[row.group]
                print(f"- round {number + 1}: {row.group}: {row.name}: {_outcome(row)}", flush=True)
    extrapolate(rows)


def _prepare(job: Job, path: Path) -> float:
    """Write the image, in a process of its own; returns the share of borders."""
    command = [sys.executable, "-m", "benchmarks.bundles", json.dumps(dataclasses.asdict(job)), str(path)]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    borders = float(json.loads(process.stdout.splitlines()[-1])["borders"])
    print(f"- {path.stem}: borders in {100 * borders:.1f} % of the cells on the network's grid", flush=True)
    return borders


def _verify(rows: list[Row], folder: Path, extension: str) -> None:
    """Make the references that MONAI's own inverse needs too much memory for."""
    for row in rows:
        made = dataclasses.replace(row, runs=[])
        arguments = ["--image", str(folder / f"{row.group}.nii"), "--ext", extension]
        arguments += ["--folder", str(folder / f"{row.group}_reference")]
        run_process("benchmarks.class_by_class", made, *arguments)
        print(f"- {row.group}: MONAI's labels, one class at a time: {made.failure or 'made'}", flush=True)


def _outcome(row: Row) -> str:
    if row.failure:
        return row.failure
    run = row.runs[-1]
    text = f"{run['seconds']:.1f} s, {run['behind_seconds']:.1f} s behind the network"
    text += f", {run['memory_bytes'] / GIB:.2f} GiB"
    if run.get("others", 0) > DISTURBED:
        text += f", while other processes took {100 * run['others']:.0f} % of the processor"
    if not is_same(row):
        text += ", ANOTHER FILE"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many rounds (default: 3)")
    parser.add_argument("--ext", default=".nii.gz", help="of the files of labels (default: .nii.gz, SaveImaged's own)")
    help_text = "make MONAI's labels of a whole body, too: 10 minutes and 14 GiB"
    parser.add_argument("--verify", action="store_true", help=help_text)
    parser.add_argument("--scratch", action="store_true", help="a trial: keep no results")
    arguments = parser.parse_args()
    asked = question(list(dict.fromkeys(arguments.case or CASES)))
    print(f"{TITLE}: {asked.about}", flush=True)
    start = time.perf_counter()
    found = asked.rows(True)
    measure(found, arguments.repeats, arguments.ext, arguments.verify)
    if arguments.scratch:
        print("\n" + report.markdown(*table(found)) + "\n\n" + report.checks_table(checks(found)))
    else:
        print("\n" + report.write(asked, found, arguments.repeats, time.perf_counter() - start, _command(arguments)))
    differing = [f"{row.group}: {row.name}" for row in found if not is_same(row)]
    if differing:
        print(f"Files differ from the reference: {', '.join(differing)}", file=sys.stderr)
    return int(bool(differing))


def _command(arguments: argparse.Namespace) -> str:
    cases = "".join(f" --case {case}" for case in arguments.case or ())
    extension = "" if arguments.ext == ".nii.gz" else f" --ext {arguments.ext}"
    verify = " --verify" if arguments.verify else ""
    return f"python -m benchmarks.pipeline{cases} --repeats {arguments.repeats}{extension}{verify}"


if __name__ == "__main__":
    sys.exit(main())
