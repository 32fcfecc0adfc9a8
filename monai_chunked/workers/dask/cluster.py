"""The workers of a Dask client: what they are sent, what they are asked, and parts that come back from them."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from monai_chunked.workers.dask.parcels import Parcel, opened
from monai_chunked.workers.worker import PartBox, Worker

__all__ = ["RETRIES", "Cluster"]


RETRIES = 2
"""How often a part that fails is tried again."""

IN_FLIGHT = 4
"""Parts that a worker has or that wait to be written, for each thread of it: so many that none waits for the next."""


class Cluster:
    """The workers of a client, and what they know of a run.

    Args:
        client: of ``distributed``.
        worker: what each worker has of the run.
        resources: those that a task needs.

    Attributes:
        worker: as tasks get it.
    """

    def __init__(self, client: Any, worker: Worker, resources: Mapping[str, float] | None) -> None:
        self.distributed = _distributed()
        self.client = client
        self.resources = None if resources is None else dict(resources)
        self._run = uuid.uuid4().hex
        self.worker = worker
        self._shared: list[Any] = []
        self._submitted: weakref.WeakSet[Any] = weakref.WeakSet()
        self._flying: dict[Any, int] = {}

    def __enter__(self) -> Cluster:
        # a task of its own: if a worker is lost, others get it from those that have it, or make it once more
        self.worker = self.share("worker", self.worker)
        for address in self.client.nthreads():  # who waits for the first batch gets input and network meanwhile
            self._shared.append(self.submit(f"ready-{address}", _ready, self.worker, workers=[address]))
        return self

    def __exit__(self, *_: object) -> None:
        # a released future is cancelled; Client.cancel itself fails over tasks between those that it is given
        for future in list(self._submitted):
            future.release()
        self._flying.clear()
        self._shared.clear()

    def threads(self) -> int:
        """The number of threads of all workers, at least one: a worker will come."""
        return max(1, sum(self.client.nthreads().values()))

    def run(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """What a method of :py:class:`Worker` returns on a worker."""
        future = self.submit(method.__name__, method, self.worker, *arguments)
        self._shared.append(future)
        return opened(future.result())

    def parts(self, numbers: Sequence[int], start: Callable[[int], Any]) -> Iterator[tuple[int, list[PartBox]]]:
        """The boxes that parts make, as they come; so few are in flight that results take little memory.

        Args:
            numbers: which parts.
            start: starts a part, and returns the future of its boxes.
        """
        waiting = iter(numbers)
        completed = self.distributed.as_completed()
        self._start(itertools.islice(waiting, IN_FLIGHT * self.threads()), start, completed)
        for future in completed:
            part = self._flying[future]
            boxes = self._result(future)
            del self._flying[future]
            future.release()
            del future  # or its result would stay in the cluster
            yield part, boxes
            del boxes
            free = IN_FLIGHT * self.threads() - len(self._flying)
            self._start(itertools.islice(waiting, max(free, 0 if self._flying else 1)), start, completed)

    def share(self, name: str, value: Any) -> Any:
        """Something that tasks need and that is sent once. A task makes it, so that it is not lost with a worker."""
        future = self.submit(name, _same, Parcel(value))
        self._shared.append(future)
        return future

    def submit(self, name: str, function: Callable[..., Any], *arguments: Any, priority: int = 0, **more: Any) -> Any:
        """Start a task of a name that no other run has. What it returns comes in a :py:class:`Parcel`."""
        from dask import config  # not monai_chunked.dask

        how = {"pure": False, "retries": RETRIES, "resources": self.resources, "priority": priority, **more}
        with config.set({"distributed.admin.large-graph-warning-threshold": 2**62}):  # the input may be large
            future = self.client.submit(_packed, function, *arguments, key=f"{name}-{self._run}", **how)
        self._submitted.add(future)
        return future

    def _start(self, parts: Iterator[int], start: Callable[[int], Any], completed: Any) -> None:
        for part in parts:
            future = start(part)
            self._flying[future] = part
            completed.add(future)

    def _result(self, future: Any) -> list[PartBox]:
        try:
            boxes: list[PartBox] = opened(future.result())
            return boxes
        except self.distributed.scheduler.KilledWorker as error:
            part = str(error.task).split("-")[1]
            raise RuntimeError(
                f"{error.allowed_failures + 1} workers were lost while they did part {part}: too little memory, or a "
                f"network that ends the process? (distributed.scheduler.allowed-failures: {error.allowed_failures})"
            ) from error


def _packed(function: Callable[..., Any], *arguments: Any) -> Parcel:
    """A task: what it is given and what it returns come in parcels."""
    return Parcel(function(*map(opened, arguments)))


def _same(value: Any) -> Any:
    return value


def _ready(worker: Worker) -> None:
    """Open the input and build the network. If that fails, it fails again in a part, whose error is told."""
    with suppress(Exception):
        _ = worker.source, worker.network


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise ImportError("monai_chunked.dask needs distributed: pip install distributed") from None
    return distributed
