"""
Does a run take the memory that its plan says? The peak of a process over its start, beside the plan's sum.

    python -m benchmarks.planned_memory          # some minutes on 2 cores
    python -m benchmarks.planned_memory --full   # 2,000 windows for every number of classes
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Check
from benchmarks.report import checks_table

ROI, OVERLAP = 96, 0.5
SIZES = {100: (288, 240, 288), 480: (1200, 240, 288), 1680: (384, 1200, 500), 2000: (4848, 240, 288)}
"""Spatial size for a number of windows."""

ROWS = {1: (100, 480, 1680, 2000), 3: (100, 480, 1680, 2000), 14: (100, 480), 50: (100,)}
"""Numbers of windows for a number of classes; those that are missing take long."""

MOST = 1.3


def run(classes: int, size: tuple[int, int, int]) -> dict[str, int]:
    """What was planned and what was taken, in bytes; to be called in a process of its own."""
    import torch  # not where processes are started

    from benchmarks.peers import Pointwise
    from monai_chunked import ChunkedSlidingWindowInferer

    def inferer(roi_size: int) -> ChunkedSlidingWindowInferer:
        return ChunkedSlidingWindowInferer(roi_size, overlap=OVERLAP, mode="gaussian", postprocessing="argmax")

    with torch.no_grad():
        network = Pointwise(classes + 1)  # one class has no steps
        network.slope, network.offset = network.slope[:classes], network.offset[:classes]
        inferer(ROI // 2)(torch.rand(1, 1, *[ROI] * 3), network)  # what is loaded and started once
        network.dimming = torch.ones(())
        image = torch.rand(1, 1, *size)
        plan, start = inferer(ROI).plan(image, classes), peak()
        inferer(ROI)(image, network)
        # the network multiplies the window by its dimming, and keeps that
        needs = 2 * 4 * ROI**3
        return {"planned": plan.cpu_bytes + needs, "open": plan.cpu_peak, "taken": peak() - start}


def peak() -> int:
    """The most memory that this process has held so far, in bytes; ``ru_maxrss`` begins with what its parent held."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also what takes long")
    parser.add_argument("--run", type=int, nargs=2, metavar=("CLASSES", "WINDOWS"), help="one row, as JSON")
    arguments = parser.parse_args()
    if arguments.run:
        classes, windows = arguments.run
        print(json.dumps(run(classes, SIZES[windows])))
        return
    print(f"Windows of {ROI}³, overlap {OVERLAP}, gaussian weights, a 1x1x1 network, to a label map, no limits\n")
    print("| classes | windows | voxels | open chunks MiB | planned in all MiB | taken MiB | taken / planned |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    checks = []
    for classes, some in ROWS.items():
        for windows in SIZES if arguments.full else some:
            command = [sys.executable, "-m", "benchmarks.planned_memory", "--run", str(classes), str(windows)]
            output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = json.loads(output.splitlines()[-1])
            ratio = found["taken"] / found["planned"]
            sizes = " | ".join(f"{found[name] / 2**20:.0f}" for name in ("open", "planned", "taken"))
            voxels = " x ".join(map(str, SIZES[windows]))
            print(f"| {classes} | {windows:,} | {voxels} | {sizes} | {ratio:.2f} |", flush=True)
            checks.append(Check(f"{classes} classes, {windows:,} windows: taken / planned", ratio, MOST))
    print("\n" + checks_table(checks))


if __name__ == "__main__":
    main()
