"""
One peer in a process of its own: prints one line of JSON.

    python -m benchmarks.peers '{"peer": "chunked", "image_size": [128, 128, 128], "classes": 50}'

The clock runs from the volume in memory to the label map in memory. Time inside the network is taken around each call.
Memory is the peak over what the process had held when the clock started.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import PatchInferer, SlidingWindowInferer, SlidingWindowSplitter, ZarrAvgMerger
from monai.networks.nets import SegResNet, UNet
from monai.utils import optional_import

from benchmarks.harness import OUT_OF_MEMORY, Job
from monai_chunked import ChunkedSlidingWindowInferer

patchly_package, _ = optional_import("patchly")

COMPARED_AT_ONCE = 2**24
"""How many numbers of a result are compared at a time."""


class TimedNetwork:
    """A network, how often it was called, and the time spent inside.

    On a CUDA device the time is that between two events, so that nobody has to wait for the device.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device, amp: bool) -> None:
        self.network = network
        self.device = device
        self.amp = amp
        self.reset()

    def reset(self) -> None:
        self.calls = 0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.device.type == "cuda":
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            with torch.autocast("cuda", enabled=self.amp):
                prediction = self.network(windows)
            after.record()
            self._events.append((before, after))
            return prediction
        start = time.perf_counter()
        prediction = self.network(windows)
        self._seconds += time.perf_counter() - start
        return prediction

    @property
    def seconds(self) -> float:
        return self._seconds + sum(before.elapsed_time(after) for before, after in self._events) / 1000


class Pointwise(torch.nn.Module):
    """One fused 1x1x1 operation, so that nearly all time is stitching.

    The label is the intensity, in as many steps as there are classes: ``argmax_c (2 c t - c²)`` is the ``c`` next to
    ``t``. Intensities are dimmed towards one corner of the window, so that windows disagree where they overlap and
    labels depend on how they are blended.
    """

    slope: torch.Tensor
    offset: torch.Tensor
    dimming: torch.Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        step = torch.arange(classes)[:, None, None, None] / (classes - 1)
        self.register_buffer("slope", 2 * step)
        self.register_buffer("offset", -step * step)
        self.register_buffer("dimming", torch.ones(()))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        if self.dimming.shape != windows.shape[2:]:
            x, y, z = (torch.linspace(0.7, 1, size, device=windows.device) for size in windows.shape[2:])
            self.dimming = x[:, None, None] * y[:, None] * z
        return torch.addcmul(self.offset, windows * self.dimming, self.slope)


def unet(classes: int) -> torch.nn.Module:
    """As in MONAI's bundle for the spleen in CT."""
    return UNet(3, 1, classes, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")


def segresnet(filters: int) -> Callable[[int], torch.nn.Module]:
    return lambda classes: SegResNet(3, init_filters=filters, out_channels=classes)


NETWORKS: dict[str, Callable[[int], torch.nn.Module]] = {
    "pointwise": Pointwise,
    "unet": unet,
    "segresnet8": segresnet(8),
    "segresnet32": segresnet(32),
}


def monai(job: Job, volume: torch.Tensor, network: TimedNetwork) -> torch.Tensor:
    inferer = SlidingWindowInferer(
        job.roi_size, 1, job.overlap, "gaussian", sw_device=network.device, device=job.device, **job.options
    )
    scores = inferer(volume, partial(silent, network) if job.air else network)
    assert isinstance(scores, torch.Tensor)
    return torch.argmax(scores, dim=1, keepdim=True).to("cpu", torch.uint8) if job.labels else scores


def silent(network: TimedNetwork, windows: torch.Tensor) -> torch.Tensor:
    """What a network says, and zeros of a window without a voxel that is more."""
    scores = network(windows)
    return scores if windows.gt(0).any() else scores.zero_()


def chunked(job: Job, volume: torch.Tensor, network: TimedNetwork) -> torch.Tensor:
    inferer = ChunkedSlidingWindowInferer(
        job.roi_size,
        1,
        job.overlap,
        "gaussian",
        sw_device=network.device,
        device=job.device,
        postprocessing="argmax" if job.labels else None,
        **job.options,
    )
    result = inferer(volume, network)
    assert isinstance(result, torch.Tensor)
    return result


def patchly(job: Job, volume: torch.Tensor, network: TimedNetwork) -> torch.Tensor:
    """Chunks, gaussian weights and argmax are Patchly's own; the windows are the same as MONAI's."""
    sampler = patchly_package.GridSampler(
        image=volume[0].numpy(),
        spatial_size=job.image_size,
        patch_size=(job.roi_size,) * 3,
        step_size=(int(job.roi_size * (1 - job.overlap)),) * 3,
        spatial_first=False,
        mode=patchly_package.SamplingMode.SAMPLE_EDGE,
        **job.options,
    )
    labels = np.zeros(job.image_size, np.uint8)
    aggregator = patchly_package.Aggregator(
        sampler, output=labels, weights="gaussian", softmax_dim=0, spatial_first=False
    )
    for window, box in sampler:
        aggregator.append(network(torch.from_numpy(window)[None])[0].numpy(), box)
    return torch.from_numpy(aggregator.get_output())[None, None]


def zarr_merger(job: Job, volume: torch.Tensor, network: TimedNetwork) -> torch.Tensor:
    """It has no gaussian weights, and it pads the volume to whole steps. Codec and storage chunks are its defaults."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        stores: dict[str, Any] = {name: f"{folder}/{name}" for name in ("store", "value_store", "count_store")}
        inferer = PatchInferer(SlidingWindowSplitter(job.roi_size, job.overlap), ZarrAvgMerger, **stores)
        scores = inferer(volume, network)
        labels = np.empty((1, 1, *job.image_size), np.uint8)
        step = scores.chunks[2]
        for start in range(0, job.image_size[0], step):
            labels[0, 0, start : start + step] = scores[0, :, start : start + step].argmax(axis=0)
    return torch.from_numpy(labels)


PEERS: dict[str, Callable[[Job, torch.Tensor, TimedNetwork], torch.Tensor]] = {
    "monai": monai,
    "chunked": chunked,
    "patchly": patchly,
    "zarr": zarr_merger,
}


def run(job: Job) -> tuple[dict[str, Any], torch.Tensor]:
    """What was measured, and the result."""
    torch.manual_seed(0)
    device = torch.device(job.network_device)
    network = TimedNetwork(NETWORKS[job.network](job.classes).eval().to(device), device, job.amp)
    volume = torch.rand(1, 1, *job.image_size)
    volume[:, :, : job.air] = 0
    report: dict[str, Any] = {}
    with torch.no_grad():
        if device.type == "cuda":
            report["device_name"] = torch.cuda.get_device_name(device)
            report["device_network_bytes"] = _device_bytes_of_network(job, network)
            torch.cuda.reset_peak_memory_stats(device)
        else:
            network(volume[..., :16, :16, :16])  # start threads
        network.reset()
        memory, busy, own, start = peak_memory(), busy_seconds(), time.process_time(), time.perf_counter()
        result = PEERS[job.peer](job, volume, network)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds, own = time.perf_counter() - start, time.process_time() - own
    if busy is not None:
        report["others"] = max((busy_seconds() or 0) - busy - own, 0) / seconds / len(os.sched_getaffinity(0))
    report |= {
        "seconds": seconds,
        "network_seconds": network.seconds,
        "stitching_seconds": seconds - network.seconds,
        "memory_bytes": peak_memory() - memory,
        "calls": network.calls,
    }
    if device.type == "cuda":
        report["device_bytes"] = torch.cuda.max_memory_allocated(device)
    return report, result


def _device_bytes_of_network(job: Job, network: TimedNetwork) -> int:
    """The most that weights and one window take on the device; it also starts up what PyTorch starts lazily."""
    network(torch.rand(1, 1, *[job.roi_size] * 3, device=network.device))
    torch.cuda.reset_peak_memory_stats(network.device)
    network(torch.rand(1, 1, *[job.roi_size] * 3, device=network.device))
    return torch.cuda.max_memory_allocated(network.device)


def busy_seconds() -> float | None:
    """What all processes together have used of the processor since the machine started, where that can be told."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    except OSError:
        return None
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


@contextmanager
def exit_when_out_of_memory() -> Iterator[None]:
    """Let this process end with the exit code that says so, instead of a traceback."""
    with suppress(OSError):  # if memory runs out, the operating system is to end this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        yield
    except (MemoryError, torch.cuda.OutOfMemoryError):
        sys.exit(OUT_OF_MEMORY)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        sys.exit(OUT_OF_MEMORY)


def different(result: np.ndarray, reference: np.ndarray) -> float:
    """The fraction of numbers that are not the same."""
    if result.shape != reference.shape or result.dtype != reference.dtype:
        raise ValueError(f"{result.shape} {result.dtype} cannot be compared with {reference.shape} {reference.dtype}")
    a, b = result.ravel(), reference.ravel()
    steps = range(0, a.size, COMPARED_AT_ONCE)
    return (
        sum(int(np.count_nonzero(a[k : k + COMPARED_AT_ONCE] != b[k : k + COMPARED_AT_ONCE])) for k in steps) / a.size
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=json.loads, help="arguments of benchmarks.harness.Job, as JSON")
    parser.add_argument("--reference", type=Path, help="compare the result with this file")
    parser.add_argument("--save", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    job = Job(**{**arguments.job, "image_size": tuple(arguments.job["image_size"])})
    with exit_when_out_of_memory():
        report, result = run(job)
    if arguments.save:
        np.save(arguments.save, result.cpu().numpy())
    if arguments.reference:
        report["different"] = different(result.cpu().numpy(), np.load(arguments.reference, mmap_mode="r"))
    print(json.dumps(report))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    main()
