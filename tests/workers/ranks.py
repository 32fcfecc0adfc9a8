"""Processes that are started once and called again and again, as ``torchrun`` would start them; a helper of tests."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import monai_chunked  # noqa: F401  what is started is a fork of a process that has imported it

DEADLINE = 60
"""Seconds that a call may take before it counts as one that hangs."""


class Ranks:
    """Processes that know of each other.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.workers.ranks"])
        self.folder = tempfile.TemporaryDirectory()
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, size, str(Path(self.folder.name, "store")), theirs))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, workers: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What a function returns, or raises, in each of the first processes; called with their group and these.

        A process that is gone answers with the number of the signal that has ended it, less than zero.
        """
        self.begin(workers, function, *args)
        return self.answers(workers)

    def begin(self, workers: int, function: Callable[..., Any], *args: Any) -> None:
        for pipe in self.pipes[:workers]:
            pipe.send((workers, function, args))

    def answers(self, workers: int) -> list[Any]:
        end = time.monotonic() + DEADLINE
        found = []
        for pipe, process in zip(self.pipes[:workers], self.processes):
            while not pipe.poll(0.02):
                assert time.monotonic() < end, f"{process} hangs"
            try:
                found.append(pipe.recv())
            except EOFError:
                process.join(10)
                found.append(process.exitcode)
        return found

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(20)
            assert process.exitcode is not None, "a process does not end"
        self.folder.cleanup()


def serve(rank: int, size: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "process_group has")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    groups = {workers: dist.new_group(range(workers)) for workers in range(1, size + 1)}
    while True:
        try:
            workers, function, args = pipe.recv()
        except EOFError:
            os._exit(0)  # others may be gone already
        try:
            with torch.no_grad():
                answer = function(groups[workers], *args)
        except BaseException as error:
            answer = Raised(type(error).__name__, str(error), traceback.format_exc())
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("monai_chunked")]
        if left:
            answer = Raised("AssertionError", f"threads are left behind: {left}", str(answer))
        pipe.send(answer)


class Raised:
    """What a process has raised."""

    def __init__(self, kind: str, text: str, trace: str) -> None:
        self.kind, self.text, self.trace = kind, text, trace

    def __repr__(self) -> str:
        return self.trace
