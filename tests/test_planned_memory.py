"""A run takes the memory that its plan says, and no more addresses than MONAI where these are limited."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

RUN = """
import sys
import torch
from pathlib import Path
from monai_chunked import ChunkedSlidingWindowInferer

def peak():  # not ru_maxrss, which begins with what the parent held
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

classes = torch.arange(3.0)[:, None, None, None]
def network(x):  # it needs nothing but its prediction
    return torch.addcmul(classes, x, classes)

settings = {"overlap": 0.5, "mode": "gaussian", "postprocessing": "argmax"}
with torch.no_grad():
    # what is loaded and started once
    ChunkedSlidingWindowInferer(32, **settings)(torch.rand(1, 1, 48, 48, 48), network)
    image = torch.rand(1, 1, 288, 336, 528)
    inferer = ChunkedSlidingWindowInferer(96, **settings)
    plan, start = inferer.plan(image, 3), peak()
    inferer(image, network)
    print(plan.windows, plan.cpu_bytes, peak() - start)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_a_run_without_limits_takes_the_memory_that_its_plan_says() -> None:
    process = run(RUN)
    assert process.returncode == 0, process.stderr
    windows, planned, taken = map(int, process.stdout.split())
    assert windows == 300
    assert 0.7 * planned < taken < 1.3 * planned
