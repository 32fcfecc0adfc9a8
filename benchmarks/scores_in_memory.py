"""
Scores that stay in memory: does a run ever take more memory than MONAI's? The peak of a process over its start.

    python -m benchmarks.scores_in_memory
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Check
from benchmarks.report import checks_table

CASES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], int]] = {
    "cubes": ((160, 160, 160), (64, 64, 64), 14),
    "slabs": ((160, 160, 160), (160, 160, 16), 14),
    "slabs across": ((160, 160, 160), (16, 160, 160), 14),
    "rods": ((160, 160, 160), (16, 16, 160), 14),
    "one window as large as the image": ((160, 160, 160), (160, 160, 160), 7),
    "two windows": ((160, 160, 160), (160, 160, 128), 7),
    "small windows": ((160, 160, 160), (16, 16, 16), 14),
}
"""Size of the image, of a window, and the number of classes."""

MODES = ("constant", "gaussian")
PEERS = ("monai", "chunked")


def run(peer: str, case: str, mode: str) -> int:
    """The most memory beyond what the process had before, in bytes; to be called in a process of its own."""
    import torch  # not where processes are started
    from monai.inferers import SlidingWindowInferer

    from monai_chunked import ChunkedSlidingWindowInferer

    size, roi_size, classes = CASES[case]
    number = torch.arange(float(classes))[:, None, None, None]

    def network(windows: torch.Tensor) -> torch.Tensor:  # it needs nothing but its prediction
        return torch.addcmul(number, windows, number)

    kind = SlidingWindowInferer if peer == "monai" else ChunkedSlidingWindowInferer
    with torch.no_grad():
        kind(16, overlap=0.25, mode=mode)(torch.rand(1, 1, 40, 40, 40), network)  # what is loaded and started once
        image = torch.rand(1, 1, *size)
        inferer = kind(roi_size, overlap=0.25, mode=mode)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        start = peak()
        inferer(image, network)
        return peak() - start


def peak() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many rounds (default: 3)")
    parser.add_argument("--run", nargs=3, metavar=("PEER", "CASE", "MODE"), help="one number, as JSON")
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(*arguments.run)))
        return
    print("Overlap 0.25, a network that needs nothing but its prediction, scores in memory\n")
    print("| windows | weights | image | window | classes | MONAI MiB | monai_chunked MiB | ratio |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    checks = []
    for case, (size, roi_size, classes) in CASES.items():
        for mode in MODES:
            monai, ours = (statistics.median(_measured(peer, case, mode, arguments.rounds)) for peer in PEERS)
            shown = [" x ".join(map(str, each)) for each in (size, roi_size)]
            numbers = f"{classes} | {monai / 2**20:.1f} | {ours / 2**20:.1f} | {ours / monai:.3f}"
            print(f"| {case} | {mode} | {' | '.join(shown)} | {numbers} |", flush=True)
            checks.append(Check(f"{case}, {mode}: memory / MONAI's", ours / monai, 1.0))
    print("\n" + checks_table(checks))


def _measured(peer: str, case: str, mode: str, rounds: int) -> list[int]:
    command = [sys.executable, "-m", "benchmarks.scores_in_memory", "--run", peer, case, mode]
    runs = (subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True) for _ in range(rounds))
    return [json.loads(each.stdout.splitlines()[-1]) for each in runs]


if __name__ == "__main__":
    main()
