"""
How the processes of a run find each other, and notice that one is gone before it has called the inferer.

Each says in the store of torch.distributed that it has called, and looks whether the others have. Who waits cannot tell
one that loads its input from one that is dead, so it asks the connections that gloo has had since the process group was
made: to begin to receive from a process that is gone is an error at once. Where the process group has another backend,
such as NCCL alone, only whatever has started the processes can know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["GONE", "connected", "ended"]


CALLING = timedelta(minutes=30)
"""How long one process waits for another one to call the inferer, as long as torch.distributed does."""


CONNECTING = timedelta(minutes=2)
"""How long they may take to connect when all have called, which takes some milliseconds."""


LOOKING = 0.5
"""Seconds between two looks at the others, at most."""


NEVER_SENT = 2**31 - 1
"""A tag with which nothing is sent."""


GONE = "it is gone: it was killed, it has crashed, or its machine cannot be reached"


def ended(rank: int, why: str) -> RuntimeError:
    """What is raised where another process has failed or is gone."""
    return RuntimeError(f"rank {rank} of the process group could not go on, so this run has ended: {why}")


def connected(process_group: dist.ProcessGroup | None) -> tuple[Any, int, int]:
    """Connections for one run alone, whatever else is said in the process group; the rank, and how many there are.

    Args:
        process_group: whose members all call this; ``None``: all processes.

    Raises:
        RuntimeError: when one of the others is gone, or does not call in time.
    """
    group: Any = process_group or dist.group.WORLD
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    name = "monai_chunked " + " ".join(map(str, dist.get_process_group_ranks(group)))
    store = dist.distributed_c10d._get_default_store()
    with _reaching_store():
        run = (store.add(name, 1) - 1) // size  # all of them add one
        of_run = dist.PrefixStore(f"{name} {run}", store)
        of_run.set(_called(rank), "")
    _meet(of_run, [other for other in range(size) if other != rank], _receiving(group))
    return dist.ProcessGroupGloo(of_run, rank, size, CONNECTING), rank, size


def _meet(store: dist.Store, others: Sequence[int], receive: Callable[[int], object]) -> None:
    """Return when all others have called."""
    start, pause = time.monotonic(), 0.001
    while True:
        with _reaching_store():
            missing = [other for other in others if not store.check([_called(other)])]
        for other in others if pause == LOOKING or not missing else ():  # who has called may be gone since
            try:
                receive(other)
            except RuntimeError as error:
                raise ended(other, GONE) from error
        if not missing:
            return
        if time.monotonic() - start > CALLING.total_seconds():
            raise RuntimeError(
                f"process_group: rank {missing[0]} has not called the inferer for {CALLING}, as each of its processes "
                f"must"
            )
        time.sleep(pause)
        pause = min(2 * pause, LOOKING)


def _called(rank: int) -> str:
    return f"{rank} has called"


def _receiving(group: dist.ProcessGroup) -> Callable[[int], object]:
    """Begins to receive from a process what it never sends: that raises if it is gone, where this can be told."""
    try:
        backend = group._get_backend(torch.device("cpu"))
    except RuntimeError:  # it has none
        return lambda rank: None
    if not isinstance(backend, dist.ProcessGroupGloo):
        return lambda rank: None
    gloo: Any = backend  # its type does not show recv
    return lambda rank: gloo.recv([torch.empty(1, dtype=torch.uint8)], rank, NEVER_SENT)


@contextmanager
def _reaching_store() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"process_group: the store of torch.distributed cannot be reached, which rank 0 has, or whatever has "
            f"started the processes, so this run has ended: {error}"
        ) from error
