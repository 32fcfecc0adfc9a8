"""Question 6: on a CUDA device. Needs one; nothing is estimated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.command import main
from benchmarks.harness import Check, Job, Question, Row, ratio, unless_too_large
from benchmarks.report import RESULT, TIMES, bars, columns, gib

GB = 10**9
LIMITS = (None, "8GB", "4GB", "2GB", 0)
TITLE = "6. GPU"
WHOLE_BODY, LARGE_WINDOWS = "512 x 512 x 400, windows of 96³, 105 classes", "384³, windows of 128³, 100 classes"


def rows(full: bool) -> list[Row]:
    return [
        *_case(WHOLE_BODY, image_size=(512, 512, 400), classes=105, roi_size=96),
        *_case(LARGE_WINDOWS, image_size=(384, 384, 384), classes=100, roi_size=128),
    ]


def _case(group: str, image_size: tuple[int, int, int], classes: int, roi_size: int) -> list[Row]:
    def row(name: str, peer: str, device: str, **options: object) -> Row:
        job = Job(
            peer,
            image_size,
            classes,
            network="segresnet32",
            roi_size=roi_size,
            network_device="cuda",
            device=device,
            amp=True,
            options=options,
        )
        return Row(name, job, group)

    return [
        row("MONAI", "monai", "cuda"),
        unless_too_large(row('MONAI, device="cpu"', "monai", "cpu")),
        unless_too_large(row('MONAI, device="cpu", buffer_steps=1', "monai", "cpu", buffer_steps=1, buffer_dim=0)),
        *(
            row(
                f"monai_chunked, {'no limit' if limit is None else limit or '0 bytes'}",
                "chunked",
                "cpu",
                device_memory=limit,
            )
            for limit in LIMITS
        ),
    ]


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    shown = [
        ("case", lambda row, _: row.group),
        *TIMES,
        ("device GB", lambda row, _: _in_gb(row.median("device_bytes"))),
        ("of it network GB", lambda row, _: _in_gb(row.median("device_network_bytes"))),
        ("peak RSS over the start GiB", lambda row, _: gib(row.memory)),
        *RESULT,
    ]
    return ["", *(name for name, _ in shown)], columns(rows, shown)


def checks(rows: list[Row]) -> list[Check]:
    found = []
    for group in (WHOLE_BODY, LARGE_WINDOWS):
        on_device, on_cpu, _, ours, _, limited, _, _ = [row for row in rows if row.group == group]
        used, network = limited.median("device_bytes"), limited.median("device_network_bytes")
        over = None if used is None or network is None else used - network
        found += [
            Check(f"{group}: wall / MONAI on the device", ratio(ours.seconds, on_device.seconds), 1.05),
            Check(f'{group}: wall / MONAI device="cpu"', ratio(ours.seconds, on_cpu.seconds), 0.2),
            Check(f"{group}: device memory over the network's with 4GB", _in_gb(over), 4.2, " GB"),
            Check(f"{group}: wall with 4GB / no limit", ratio(limited.seconds, ours.seconds), 1.15),
        ]
    return found


def _in_gb(size: float | None) -> float | None:
    return None if size is None else size / GB


def draw(path: Path, rows: list[Row]) -> None:
    bars(path, f"{TITLE}: SegResNet with 32 filters, AMP, overlap 0.25, to a label map", rows, device_memory=True)


QUESTION = Question(
    name="gpu",
    title=TITLE,
    about="SegResNet with 32 filters under automatic mixed precision, overlap 0.25, gaussian weights, volume in CPU "
    "memory, ending in a label map there. device_memory limits what open chunks of monai_chunked take on the device.",
    rows=rows,
    table=table,
    checks=checks,
    draw=draw,
)

if __name__ == "__main__":
    found = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", found], check=False).returncode:
        sys.exit("benchmarks.gpu needs a CUDA device, and PyTorch finds none; questions 1 to 5 run without one.")
    main(QUESTION)
