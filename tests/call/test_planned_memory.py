"""A run takes the memory that its plan says, and no more addresses than MONAI where these are limited."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.plan.sizes import format_bytes

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


def test_a_run_without_limits_takes_the_memory_that_its_plan_says(python: Callable[..., Any]) -> None:
    process = python(RUN)
    assert process.returncode == 0, process.stderr
    windows, planned, taken = map(int, process.stdout.split())
    assert windows == 300
    assert 0.7 * planned < taken < 1.3 * planned


ADDRESSES = """
import os
import resource
from pathlib import Path
import torch
from monai.inferers import SlidingWindowInferer
from monai_chunked import ChunkedSlidingWindowInferer

torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork
torch.get_num_threads = lambda: 4
settings = {"roi_size": 48, "overlap": 0.5, "mode": "gaussian"}
image = torch.rand(1, 1, 96, 96, 96)
classes = torch.arange(8.0)[:, None, None, None]

def network(x):
    return torch.addcmul(classes, x, classes)

def succeeds(infer, beyond):
    child = os.fork()
    if child == 0:  # nothing has started a thread before
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + beyond
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            with torch.no_grad():
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                infer()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

def monai():
    return SlidingWindowInferer(**settings)(image, network).argmax(1, keepdim=True)

def ours():
    return ChunkedSlidingWindowInferer(**settings, postprocessing="argmax")(image, network)

too_few, enough = 0, 2**30
assert succeeds(monai, enough)
while enough - too_few > 2**22:
    middle = (too_few + enough) // 2
    if succeeds(monai, middle):
        enough = middle
    else:
        too_few = middle
print(enough, sum(succeeds(ours, enough) for _ in range(3)))
"""


def test_where_addresses_are_limited_a_run_takes_no_more_of_them_than_monai(python: Callable[..., Any]) -> None:
    process = python(ADDRESSES)
    assert process.returncode == 0, process.stderr
    limit, succeeded = map(int, process.stdout.split())
    assert limit < 2**29
    assert succeeded == 3


REFUSED = """
import resource
import warnings
from pathlib import Path
import torch
from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.outputs import memory_output as memory

torch.set_num_threads(1)
x = torch.rand(1, 1, 64, 64, 64)
network = torch.nn.Conv3d(1, 2, 1)
inferer = ChunkedSlidingWindowInferer(32, postprocessing=lambda chunk: chunk.repeat(64, 1, 1, 1))
with torch.no_grad():
    expected = inferer(x, network)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    create = memory.MemoryOutput.create
    def limited(self, result):  # from when the output is created until it is
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))
        try:
            return create(self, result)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    memory.MemoryOutput.create = limited
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = inferer(x, network)
assert torch.equal(found, expected)
assert any("refused" in str(warning.message) for warning in caught), caught
"""


def test_an_output_that_is_refused_memory_goes_to_disk(python: Callable[..., Any]) -> None:
    process = python(REFUSED)
    assert process.returncode == 0, process.stderr


def test_the_folder_for_temporary_files_is_not_needed_by_what_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    image, network = torch.rand(1, 1, 16, 16, 16), torch.nn.Conv3d(1, 3, 1)
    labels = ChunkedSlidingWindowInferer(8, postprocessing="argmax")(image, network)
    assert torch.equal(labels, SlidingWindowInferer(8)(image, network).argmax(1, keepdim=True))


@pytest.mark.parametrize(
    ("parameters", "beside"),
    [
        ({"postprocessing": "argmax"}, lambda plan: plan.cpu_peak + plan.output_bytes),
        ({}, lambda plan: plan.output_bytes),  # scores are added up in the output
        ({"output": "disk"}, lambda plan: plan.cpu_peak),
        ({"cpu_memory": "100kB"}, lambda plan: plan.cpu_peak + plan.output_bytes),
    ],
)
def test_memory_in_all_is_the_sum_of_what_the_plan_lists(parameters: Any, beside: Any) -> None:
    plan = ChunkedSlidingWindowInferer(16, overlap=0.5, **parameters).plan((1, 1, 64, 64, 64), 3)
    assert plan.cpu_bytes == beside(plan) + plan.finished_bytes + plan.batch_bytes
    assert plan.batch_bytes == 4 * 16**3 * (1 + 3 + 1)
    assert f"memory in all        {format_bytes(plan.cpu_bytes)} on CPU" in str(plan)


def test_the_device_and_cpu_memory_are_summed_apart() -> None:
    inferer = ChunkedSlidingWindowInferer(16, sw_device="cuda", device="cpu", postprocessing="argmax")
    plan = inferer.plan(torch.rand(1, 1, 64, 64, 64), 3)
    assert plan.cpu_bytes == plan.output_bytes == 64**3
    assert plan.device_bytes == plan.device_peak + plan.finished_bytes + plan.batch_bytes
