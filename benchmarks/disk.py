"""
One case of `out_of_core` in a process of its own: prints one line of JSON, like `peers`.

    python -m benchmarks.disk '{"peer": "writer", "image_size": [128, 128, 128], "classes": 14, "options": {...}}'

What is written is removed again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr  # noqa: F401  what it takes is not what a run takes
from monai.inferers import SlidingWindowInferer

from benchmarks.harness import Job
from benchmarks.peers import Pointwise, TimedNetwork, different, peak_memory
from monai_chunked import ChunkedSlidingWindowInferer, NiftiOutput, NumpyOutput, Output, Result, ZarrOutput
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Volume, lay_out
from monai_chunked.plan.window_grid import window_grid
from monai_chunked.recovery.journal_record import JournalRecord

OUTPUTS: dict[str, Callable[[str], Output]] = {".npy": NumpyOutput, ".nii": NiftiOutput, "Zarr": ZarrOutput}
PLAIN_BYTES = 2**23
"""How much a plain write writes at a time."""

BLOB = 8
"""Labels are the same over so many voxels in each dimension."""


def run(job: Job, folder: str) -> dict[str, Any]:
    """All scores through a whole inferer, to a file; some channels are compared with MONAI's."""
    torch.manual_seed(0)
    network = TimedNetwork(Pointwise(job.classes).eval(), torch.device("cpu"), amp=False)
    volume = torch.rand(1, 1, *job.image_size)
    network(volume[..., :16, :16, :16])  # start threads
    network.reset()
    options = dict(job.options)
    output = OUTPUTS[options.pop("format")](folder)
    inferer = ChunkedSlidingWindowInferer(
        job.roi_size, 1, job.overlap, "gaussian", output=output, network_id="pointwise", **options
    )
    memory, start = peak_memory(), time.perf_counter()
    result = inferer(volume, network)
    seconds = time.perf_counter() - start
    report = {"seconds": seconds, "network_seconds": network.seconds, "memory_bytes": peak_memory() - memory}
    return report | {"stitching_seconds": seconds - network.seconds, "different": _different(job, volume, result)}


def _different(job: Job, volume: torch.Tensor, result: Any) -> float:
    """The first, a middle and the last channel: no channel of the network depends on others."""
    channels = sorted({0, job.classes // 2, job.classes - 1})
    network = Pointwise(job.classes)
    network.slope, network.offset = network.slope[channels], network.offset[channels]
    scores = SlidingWindowInferer(job.roi_size, 1, job.overlap, "gaussian")(volume, network)
    assert isinstance(scores, torch.Tensor)
    found = result[0] if isinstance(result, torch.Tensor) else result
    return max(different(np.asarray(found[c]), scores[0, k].numpy()) for k, c in enumerate(channels))


def writer(job: Job, folder: str) -> dict[str, Any]:
    """Chunks of a plan through the writer of an output, which makes them safe on disk as in a run."""
    output = OUTPUTS[job.options["format"]](folder)
    windows = window_grid(job.image_size, (job.roi_size,) * 3, (job.overlap,) * 3)
    heads = Heads.of([(job.classes, *(job.roi_size,) * 3)])
    cuts = lay_out(Volume(windows, job.image_size, heads, 4)).grids[0].cuts
    intervals = [list(itertools.pairwise(each)) for each in cuts]
    data = _data(job, [max(stop - start for start, stop in each) for each in intervals])
    result = Result("prediction", (1, len(data), *job.image_size), data.dtype, cuts, ({},), resumable=True)
    os.sync()
    memory, start = peak_memory(), time.perf_counter()
    record = JournalRecord(Path(folder) / "writer.journal", 1, {}, overwrite=True)
    record.begin(heads, [cuts])
    target = record.writer(0, output, result)
    making = 0.0
    for corners in itertools.product(*intervals):
        box = tuple(slice(*each) for each in corners)
        before = time.perf_counter()
        chunk = data[(slice(None), *(slice(side.stop - side.start) for side in box))].contiguous()
        making += time.perf_counter() - before
        target.write(0, box, chunk)
    target.finish()
    record.finish()
    os.sync()
    return {"seconds": time.perf_counter() - start - making, "memory_bytes": peak_memory() - memory}


def plain(job: Job, folder: str) -> dict[str, Any]:
    """The same bytes, front to back."""
    size = job.score_bytes if not job.labels else job.score_bytes // (4 * job.classes)
    data = _data(job, (2 * BLOB,) * 3).numpy().tobytes()
    data = (data * (1 + PLAIN_BYTES // len(data)))[:PLAIN_BYTES]
    os.sync()
    start = time.perf_counter()
    with (Path(folder) / "plain").open("wb", buffering=0) as file:
        while (left := size - file.tell()) > 0:
            file.write(data[:left])
        os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - start}


def _data(job: Job, size: Any) -> torch.Tensor:
    """A chunk: scores are noise, the worst for compression; labels come in blobs."""
    generator = torch.Generator().manual_seed(0)
    if not job.labels:
        return torch.rand(job.classes, *size, generator=generator)
    blobs = torch.randint(job.classes, [1, *(-(-n // BLOB) for n in size)], generator=generator, dtype=torch.uint8)
    for axis in (1, 2, 3):
        blobs = blobs.repeat_interleave(BLOB, axis)
    return blobs[(slice(None), *map(slice, size))].contiguous()


CASES: dict[str, Callable[[Job, str], dict[str, Any]]] = {"chunked": run, "writer": writer, "plain": plain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=json.loads, help="arguments of benchmarks.harness.Job, as JSON")
    arguments = parser.parse_args()
    job = Job(**{**arguments.job, "image_size": tuple(arguments.job["image_size"])})
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, torch.no_grad():
        print(json.dumps(CASES[job.peer](job, folder)))


if __name__ == "__main__":
    main()
