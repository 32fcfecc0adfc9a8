"""Processes that are started once and called again and again, as ``torchrun`` would start them; a helper of tests."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import monai_chunked  # noqa: F401  what is started is a fork of a process that has imported it

DEADLINE = 300
"""Seconds that a call may take before it counts as one that hangs, on a machine that does much else."""

Members = int | Sequence[int]
"""Who is called: so many, the first ones, or these, in ascending order."""


class Ranks:
    """Processes that know of each other.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.workers.torchrun.ranks"])
        self.folder = tempfile.TemporaryDirectory()
        self.pipes, self.processes = [], []
        self._groups: set[tuple[int, ...]] = set()
        for rank in range(size):
            ours, theirs = context.Pipe()
            how = (rank, size, str(Path(self.folder.name, "store")), theirs)
            process = context.Process(target=serve, args=how, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, members: Members, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What a function returns, or raises, in each of some processes; called with their group and these.

        A process that is gone answers with the number of the signal that has ended it, less than zero.
        """
        self.begin(members, function, *args)
        return self.answers(members)

    def begin(self, members: Members, function: Callable[..., Any], *args: Any) -> None:
        called = _each(members)
        new = called not in self._groups
        self._groups.add(called)
        for rank in self.alive() if new else called:
            self.pipes[rank].send((called, new, function, args))

    def answers(self, members: Members) -> list[Any]:
        end = time.monotonic() + DEADLINE
        found = []
        for pipe, process in [(self.pipes[rank], self.processes[rank]) for rank in _each(members)]:
            while not pipe.poll(0.02):
                assert time.monotonic() < end, f"{process} hangs"
            try:
                found.append(pipe.recv())
            except (EOFError, OSError):  # at the end of what it said, or within
                process.join(DEADLINE)
                found.append(process.exitcode)
        return found

    def alive(self) -> list[int]:
        """Those that nobody has killed."""
        return [rank for rank, process in enumerate(self.processes) if process.is_alive()]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        end = time.monotonic() + DEADLINE
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        left = [process for process in self.processes if process.exitcode is None]
        for process in left:
            process.kill()
        self.folder.cleanup()
        assert not left, "a process does not end"


def _each(members: Members) -> tuple[int, ...]:
    return tuple(range(members)) if isinstance(members, int) else tuple(members)


def serve(rank: int, size: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "process_group has")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    groups: dict[tuple[int, ...], Any] = {}
    while True:
        try:
            members, new, function, args = pipe.recv()
        except EOFError:
            os._exit(0)  # others may be gone already
        try:
            if new:  # its name depends on how many each of them has, so the others make one of their own
                own = members if rank in members else [rank]
                groups[members] = dist.new_group(own, use_local_synchronization=True)
            if rank not in members:
                continue
            with torch.no_grad():
                answer = function(groups[members], *args)
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
