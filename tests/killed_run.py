"""
Runs that are killed, and programs, each in a process of its own.

Reads one request in JSON a line. A ``program`` is run as by ``python -W ignore -c``, with ``arguments`` and with a
folder for ``temporary`` files, and what it prints goes to the files ``out`` and ``errors``. Everything else asks for a
run: ``output`` (format), ``folder``, ``kill_at``: how many windows the network has seen when the run is killed, and so
many ``seconds`` later; null: it is not. Moments are counted in windows, as seconds mean nothing on a busy machine. Each
run is a fork of this process, which has imported everything and done nothing, so that a run starts at once. Answers one
line: the exit status. The corners of the windows that the network sees go to a file ``seen`` there, or to the one that
the request names. It may name a file ``result`` for the voxels too, and a file ``disk`` that is copied to ``copy``
while the run stands still, before it is killed. With ``signal`` it gets that signal while its network waits for it in
batch ``WAITS_AT``, and what it says goes to a file ``errors``; ``resumable`` may be false, and ``overwrite`` true.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import collate_meta_tensor_fn

from monai_chunked import ChunkedSlidingWindowInferer, NiftiOutput, NumpyOutput, Output, ZarrOutput

ROI, OVERLAP, SIZE = (12, 12, 12), 0.5, (30, 24, 26)
WINDOWS = 96
WAITS_AT = 31

OUTPUTS: dict[str, Callable[[Any], Output]] = {
    "npy": NumpyOutput,
    "nii": NiftiOutput,
    "nii.gz": lambda folder: NiftiOutput(folder, output_ext=".nii.gz"),
    "zarr": lambda folder: ZarrOutput(folder, storage_chunk_size=8, levels=2),
}


class Boom(Exception):
    pass


class Network(torch.nn.Module):
    """Writes down which windows it sees, and may fail at a batch or do something there."""

    def __init__(
        self,
        seen: Path | None = None,
        pause: float = 0.0,
        at: int | None = None,
        act: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -0.5, 0.25]).view(1, 3, 1, 1, 1))
        self.seen = seen
        self.pause = pause
        self.at = at
        self.act = act
        self.batches = 0

    def forward(self, windows: torch.Tensor, coordinates: Any) -> torch.Tensor:
        self.batches += 1
        if self.batches == self.at:
            if self.act is None:
                raise Boom
            self.act()
        if self.seen is not None:
            with self.seen.open("a") as file:
                for window in coordinates:
                    file.write(json.dumps([window[0].start, *(s.start for s in window[2:])]) + "\n")
        time.sleep(self.pause)
        return windows.sigmoid() * self.weight


def image() -> MetaTensor:
    generator = torch.Generator().manual_seed(5)
    voxels = torch.rand((2, 1, *SIZE), generator=generator)
    names = ("/data/first.nii.gz", "/data/second.nii.gz")
    return collate_meta_tensor_fn([MetaTensor(v, meta={"filename_or_obj": n}) for v, n in zip(voxels, names)])


def inferer(output: Output | str, **settings: Any) -> ChunkedSlidingWindowInferer:
    # what the network does for tests is no part of what it computes
    settings = {"output": output, "with_coord": True, "network_id": "sigmoid", **settings}
    return ChunkedSlidingWindowInferer(ROI, 2, OVERLAP, "gaussian", **settings)


def seen_by(request: dict[str, Any]) -> Path:
    return Path(request.get("seen") or Path(request["folder"], "seen"))


def wait_for_the_signal() -> None:
    while True:
        time.sleep(0.01)


def wait_for_windows(seen: Path, least: int, child: int) -> None:
    """Until the network has seen so many, or the run is over."""
    while seen.read_text().count("\n") < least:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def run(request: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    output = "disk" if request["output"] == "disk" else OUTPUTS[request["output"]](request["folder"])
    seen = seen_by(request)
    waits = {"at": WAITS_AT, "act": wait_for_the_signal} if request.get("signal") else {}
    network = Network(seen, pause=0.003, **waits)
    overwrite = request.get("overwrite", False)
    with torch.no_grad():
        if request.get("resumable", True):
            result: Any = inferer(output, overwrite=overwrite)(image(), network)
        else:
            warnings.filterwarnings("ignore", "this run cannot be resumed")
            unknown = inferer(output, overwrite=overwrite, network_id=None)
            result = unknown(image(), lambda *windows: network(*windows))
    if request.get("result"):
        images = result if isinstance(result, list) else [result]
        np.save(request["result"], np.stack([np.asarray(each[:]) for each in images]).reshape(2, 3, *SIZE))


def run_program(request: dict[str, Any]) -> int:
    """Start it, in a process that ends as an interpreter ends."""
    if child := os.fork():
        return child
    for name, number in (("out", 1), ("errors", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warnings.simplefilter("ignore")
    sys.argv = ["-c", *request["arguments"]]
    tempfile.tempdir = request["temporary"]
    exec(request["program"], {"__name__": "__main__"})
    sys.exit()


def answer(child: int) -> None:
    """Its exit status, as soon as it is over."""
    _, status = os.waitpid(child, 0)
    print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


def serve() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told what it started to ignore it
    for line in sys.stdin:
        request = json.loads(line)
        if "program" in request:
            answer(run_program(request))
            continue
        seen = seen_by(request)
        seen.write_text("")
        child = os.fork()
        if not child:
            try:
                if request.get("errors"):
                    os.dup2(os.open(request["errors"], os.O_WRONLY | os.O_CREAT), 2)
                run(request)
                os._exit(0)
            except SystemExit as error:
                os._exit(error.code)
            except BaseException as error:
                print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr, flush=True)
                os._exit(1)
        if request.get("signal"):
            wait_for_windows(seen, 2 * (WAITS_AT - 1), child)
            os.kill(child, request["signal"])
        if request["kill_at"] is not None:
            wait_for_windows(seen, request["kill_at"], child)
            time.sleep(request["seconds"])
            if request.get("disk"):
                os.kill(child, signal.SIGSTOP)
                os.waitid(os.P_PID, child, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                shutil.copyfile(request["disk"], request["copy"])
            os.kill(child, signal.SIGKILL)
        answer(child)


if __name__ == "__main__":
    serve()
