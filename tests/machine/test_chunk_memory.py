"""The memory of open chunks: nobody writes into what another holds, and it takes no more than it may."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked.machine.pages import Pages

pytestmark = pytest.mark.skipif(not Pages.supported(), reason="this system takes back whole maps only")

LARGEST = 40_000
STEPS = st.lists(
    st.tuples(st.sampled_from(["allocate", "release", "recycle", "finish"]), st.integers(0, 100)),
    min_size=20,
    max_size=80,
)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 3 * LARGEST), STEPS)
def test_chunks_keep_what_is_in_them_and_no_more_is_kept_than_there_is_room(
    most: int, steps: list[tuple[str, int]]
) -> None:
    memory = Pages(torch.float32, most, LARGEST)
    open_chunks: list[tuple[torch.Tensor, int]] = []
    released: list[tuple[torch.Tensor, int]] = []
    for number, (step, choice) in enumerate(steps):
        if step == "allocate":
            elements = 1 + choice * (LARGEST // 4 - 1) // 100
            chunk = memory.allocate(elements)
            assert chunk.shape == (elements,)
            open_chunks.append((chunk.fill_(number), number))
        elif step == "release" and open_chunks:
            released.append(open_chunks.pop(choice % len(open_chunks)))
            memory.release(released[-1][0])
        elif step == "recycle" and released:
            memory.recycle(released.pop(choice % len(released))[0])
        elif step == "finish" and open_chunks:
            chunk, _ = open_chunks.pop(choice % len(open_chunks))
            memory.release(chunk)
            memory.recycle(chunk)
        assert all(bool((chunk == written).all()) for chunk, written in open_chunks + released)
        assert memory.used == sum(chunk.nbytes for chunk, _ in open_chunks)
        assert memory.kept <= max(most - memory.used, 0)


def test_memory_that_is_kept_is_used_again() -> None:
    memory = Pages(torch.float32, LARGEST, LARGEST)
    addresses = set()
    for elements in (10_000, 2_000, 5_000, 10_000):
        chunk = memory.allocate(elements)
        addresses.add(chunk.data_ptr())
        memory.release(chunk)
        memory.recycle(chunk)
    assert len(addresses) == 1


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_chunks_of_many_sizes_take_no_more_memory_than_they_may() -> None:
    code = """
import random
from collections.abc import Callable
from typing import Any
from pathlib import Path
import torch
from monai_chunked.machine.pages import Pages

def peak():  # not ru_maxrss, which begins with what the parent held
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

most, largest = 2**28, 2**24
memory, chunks = Pages(torch.float32, most, largest), []
choose = random.Random(0)
torch.ones(2**20).sum()
start = peak()
for _ in range(3000):
    elements = choose.randint(1, largest // 4)
    while chunks and memory.used + 4 * elements > most:
        chunk = chunks.pop(choose.randrange(len(chunks)))
        memory.release(chunk)
        memory.recycle(chunk)
    chunks.append(memory.allocate(elements).fill_(1))
print((peak() - start) / most)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 < float(process.stdout) < 1.05


@pytest.mark.skipif(sys.platform != "linux", reason="the addresses in use are read from /proc")
def test_a_run_fits_where_addresses_are_limited(python: Callable[..., Any]) -> None:
    code = """
import resource
import torch
from pathlib import Path
from monai.inferers import SlidingWindowInferer
from monai_chunked import ChunkedSlidingWindowInferer

torch.set_num_threads(1)
settings = {"roi_size": 16, "overlap": 0.25, "mode": "gaussian"}
image, network = torch.rand(1, 1, 96, 96, 96), torch.nn.Conv3d(1, 16, 1)
with torch.no_grad():
    reference = SlidingWindowInferer(**settings)(image, network).argmax(1, keepdim=True)
    # one chunk is of 90 x 90 x 90 voxels and seven are thin; 8 times the largest is 356 MiB of addresses
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 150 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    labels = ChunkedSlidingWindowInferer(**settings, chunk_size=90, postprocessing="argmax")(image, network)
    assert torch.equal(labels, reference)
"""
    process = python(code)
    assert process.returncode == 0, process.stderr
