"""
One case of `pipeline` in a process of its own, through an evaluator: prints one line of JSON, like `peers`.

    python -m benchmarks.evaluation '{"peer": "chunked", "image_size": [256, 256, 200], "classes": 14, ...}' \
        --image image.nii --folder results

Stages are told apart by the evaluator's own events: preprocessing ends where its iteration begins, which is where the
clock and the peak of memory start. What preprocessing has freed is given back to the operating system before.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import time
import warnings
from functools import wraps
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from ignite.engine import Events
from monai.transforms import SaveImage

from benchmarks.bundles import bundle
from benchmarks.harness import Job
from benchmarks.peers import busy_seconds, different, exit_when_out_of_memory

__all__: list[str] = []


class Stages:
    """What the stages of one evaluation take, measured from outside."""

    def __init__(self, evaluator: Any, network: torch.nn.Module) -> None:
        self.network_seconds = self.saving_seconds = 0.0
        self.calls = 0
        self.started = self.preprocessed = self.begun = self.ended = 0.0
        self.started_bytes = self.preprocessing_bytes = self.begun_bytes = self.peak_bytes = 0
        evaluator.add_event_handler(Events.GET_BATCH_STARTED, self.start)
        evaluator.add_event_handler(Events.ITERATION_STARTED, self.begin)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.end)
        network.register_forward_pre_hook(self._enter)
        network.register_forward_hook(self._leave)
        self._time_saving()

    def start(self, _: Any) -> None:
        if self.started:  # it is asked for a second image, too
            return
        give_back()
        reset_peak()
        self.started_bytes, self.started = memory("VmRSS"), time.perf_counter()

    def begin(self, _: Any) -> None:
        self.preprocessed = time.perf_counter()
        self.preprocessing_bytes = memory("VmHWM") - self.started_bytes
        give_back()
        reset_peak()
        self.busy, self.own = busy_seconds(), time.process_time()
        self.begun_bytes, self.begun = memory("VmRSS"), time.perf_counter()

    def end(self, _: Any) -> None:
        self.ended = time.perf_counter()
        self.peak_bytes = memory("VmHWM") - self.begun_bytes
        busy, self.own = busy_seconds(), time.process_time() - self.own
        self.busy = None if self.busy is None or busy is None else busy - self.busy

    def _enter(self, *_: Any) -> None:
        self.calls += 1
        self._entered = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        self.network_seconds += time.perf_counter() - self._entered

    def _time_saving(self) -> None:
        """Of MONAI's `SaveImage`, whoever calls it."""
        save = SaveImage.__call__

        @wraps(save)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return save(*args, **kwargs)
            finally:
                self.saving_seconds += time.perf_counter() - start

        SaveImage.__call__ = timed  # type: ignore[method-assign]  # MONAI's saving, timed in place

    def report(self) -> dict[str, Any]:
        seconds = self.ended - self.begun
        behind = seconds - self.network_seconds
        found = {
            "preprocessing_seconds": self.preprocessed - self.started,
            "network_seconds": self.network_seconds,
            "behind_seconds": behind,
            "saving_seconds": self.saving_seconds,
            "stitching_seconds": behind - self.saving_seconds,
            "seconds": self.preprocessed - self.started + seconds,
            "memory_bytes": self.peak_bytes,
            "preprocessing_bytes": self.preprocessing_bytes,
            "calls": self.calls,
        }
        if self.busy is not None:
            found["others"] = max(self.busy - self.own, 0) / seconds / len(os.sched_getaffinity(0))
        return found


def give_back() -> None:
    """Give memory that is free to the operating system, so that it counts for nobody."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory(name: str) -> int:
    """What this process holds (`VmRSS`), or the most since the peak was reset (`VmHWM`), in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def run(job: Job, image: Path, folder: Path, extension: str) -> dict[str, Any]:
    """Evaluate, and say what it took."""
    parser = bundle(job, image, folder, extension)
    evaluator, network = parser.get_parsed_content("evaluator"), parser.get_parsed_content("network")
    with torch.no_grad():
        network.eval()(torch.zeros(1, 1, 16, 16, 16))  # start threads
    stages = Stages(evaluator, network)
    evaluator.run()
    return stages.report()


def saved(folder: Path) -> Any:
    """The one NIfTI file in a folder."""
    (path,) = folder.rglob("*.nii*")
    return nibabel.load(path)


def compared(folder: Path, reference: Path) -> dict[str, Any]:
    """The fraction of voxels that are not the same in the two files, and whether the affine is."""
    ours, theirs = saved(folder), saved(reference)
    voxels, expected = (np.asanyarray(file.dataobj) for file in (ours, theirs))
    return {
        "different": different(voxels, expected),
        "same_affine": bool(np.array_equal(ours.affine, theirs.affine)),
        "labels": int(np.unique(voxels).size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=json.loads, help="arguments of benchmarks.harness.Job, as JSON")
    parser.add_argument("--image", type=Path, required=True, help="what is read")
    parser.add_argument("--folder", type=Path, required=True, help="where the labels are saved")
    parser.add_argument("--ext", default=".nii.gz", help="of the file of labels (default: .nii.gz, as SaveImaged)")
    parser.add_argument("--reference", type=Path, help="compare the file with that in this folder")
    arguments = parser.parse_args()
    job = Job(**{**arguments.job, "image_size": tuple(arguments.job["image_size"])})
    with exit_when_out_of_memory():
        report = run(job, arguments.image, arguments.folder, arguments.ext)
    if arguments.reference:
        report |= compared(arguments.folder, arguments.reference)
    print(json.dumps(report))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
