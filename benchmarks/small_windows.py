"""
What does a small window cost? Microseconds of this process for each window of 8³ voxels, beside MONAI's.

    python -m benchmarks.small_windows --windows-along 31   # 29,791 windows (default)
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from monai.inferers import SlidingWindowInferer

from benchmarks.harness import Check
from benchmarks.report import checks_table
from monai_chunked import ChunkedSlidingWindowInferer

ROI, OVERLAP, STEP = 8, 0.25, 6
MOST = 1.5
"""Ours over MONAI's, 45 us over 31."""

PEERS = {"MONAI": SlidingWindowInferer, "monai_chunked": ChunkedSlidingWindowInferer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many rounds (default: 3)")
    parser.add_argument("--windows-along", type=int, default=31, help="windows in each dimension (default: 31)")
    arguments = parser.parse_args()
    windows = arguments.windows_along**3
    image = torch.rand(1, 1, *[ROI + (arguments.windows_along - 1) * STEP] * 3)
    spent: dict[str, list[float]] = {name: [] for name in PEERS}
    with torch.no_grad():
        for _ in range(arguments.rounds):
            for name, peer in PEERS.items():
                start = time.process_time()
                peer(ROI, overlap=OVERLAP)(image, torch.nn.Identity())
                spent[name].append(1e6 * (time.process_time() - start) / windows)
    ours, monai = statistics.median(spent["monai_chunked"]), statistics.median(spent["MONAI"])
    print(f"{windows:,} windows of {ROI}³ voxels, overlap {OVERLAP}, a network that does nothing, scores in memory\n")
    print("| | us for each window |\n| --- | ---: |")
    print(f"| MONAI | {monai:.1f} |\n| monai_chunked | {ours:.1f} |\n")
    print(checks_table([Check("monai_chunked / MONAI", ours / monai, MOST)]))


if __name__ == "__main__":
    main()
