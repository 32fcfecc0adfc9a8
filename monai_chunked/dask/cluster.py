"""The workers of a Dask client: what they are sent, what they are asked, and parts that come back from them."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from monai_chunked.inference.elsewhere import Made, Worker
from monai_chunked.inference.inverse.inversion import Inversion
from monai_chunked.inference.part_of_run import Agreed
from monai_chunked.plan.skipped import Skipped
from monai_chunked.windows.errors import add_note

__all__ = ["Cluster"]


RETRIES = 2
"""How often a part that fails is tried again."""

IN_FLIGHT = 2
"""Parts that a worker has or that wait to be written, for each thread of it."""


class Cluster:
    """The workers of a client, and what they know of a run.

    Args:
        client: of ``distributed``.
        worker: what each worker has of the run.
        resources: that a task needs.
    """

    def __init__(self, client: Any, worker: Worker, resources: Mapping[str, float] | None) -> None:
        self.distributed = _distributed()
        self.client = client
        self.resources = None if resources is None else dict(resources)
        self._run = uuid.uuid4().hex
        self._worker = worker
        self._shared: list[Any] = []
        self._flying: dict[Any, int] = {}

    def __enter__(self) -> Cluster:
        # a task of its own: if a worker is lost, others get it from those that have it, or make it once more
        self._worker = self._share("worker", self._worker)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.cancel([*self._flying, *self._shared])
        self._flying.clear()
        self._shared.clear()

    def threads(self) -> int:
        """Of all workers; at least one will come."""
        return max(1, sum(self.client.nthreads().values()))

    def run(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """What a worker says."""
        future = self._submit(method.__name__, method, self._worker, *arguments)
        self._shared.append(future)
        return future.result()

    def parts(
        self, numbers: Sequence[int], agreed: Agreed, skipped: Skipped | None, inversion: Inversion | None
    ) -> Iterator[tuple[int, list[Made]]]:
        """The boxes that parts make, as they come; so few are in flight that results take little memory."""
        known = self._share("known", (agreed, skipped, inversion))
        waiting = iter(numbers)
        completed = self.distributed.as_completed()
        self._start(itertools.islice(waiting, IN_FLIGHT * self.threads()), known, completed)
        for future in completed:
            part = self._flying[future]
            with _naming(part, agreed):
                boxes = self._result(future, part)
            del self._flying[future]
            future.release()
            del future  # or its result would stay in the cluster
            yield part, boxes
            del boxes
            free = IN_FLIGHT * self.threads() - len(self._flying)
            self._start(itertools.islice(waiting, max(free, 0 if self._flying else 1)), known, completed)

    def _start(self, parts: Iterator[int], known: Any, completed: Any) -> None:
        for part in parts:
            # what comes in order is written in order
            future = self._submit(f"part-{part}", _make, self._worker, known, part, priority=-part)
            self._flying[future] = part
            completed.add(future)

    def _result(self, future: Any, part: int) -> list[Made]:
        try:
            boxes: list[Made] = future.result()
            return boxes
        except self.distributed.scheduler.KilledWorker as error:
            raise RuntimeError(
                f"{error.allowed_failures + 1} workers were lost while they did the same part: too little memory, or a "
                f"network that ends the process? (distributed.scheduler.allowed-failures: {error.allowed_failures})"
            ) from error

    def _share(self, name: str, value: Any) -> Any:
        """Something that tasks need and that is sent once. A task makes it, so that it is not lost with a worker."""
        future = self._submit(name, _same, value)
        self._shared.append(future)
        return future

    def _submit(self, name: str, function: Callable[..., Any], *arguments: Any, priority: int = 0) -> Any:
        """Start a task of a name that no other run has."""
        from dask import config  # the other one

        how = {"pure": False, "retries": RETRIES, "resources": self.resources, "priority": priority}
        with config.set({"distributed.admin.large-graph-warning-threshold": 2**62}):  # the input may be large
            return self.client.submit(function, *arguments, key=f"{name}-{self._run}", **how)


def _same(value: Any) -> Any:
    return value


def _make(worker: Worker, known: tuple[Agreed, Skipped | None, Inversion | None], part: int) -> list[Made]:
    """The task."""
    return worker.make(part, *known)


@contextmanager
def _naming(part: int, agreed: Agreed) -> Iterator[None]:
    """Adds to an error which part it is of, and leaves its type as it is."""
    numbers = agreed.ranges[part]
    name = f"part {part} of {len(agreed.ranges)}, windows {numbers.start} to {numbers.stop - 1}"
    try:
        yield
    except Exception as error:  # whatever a network raises
        add_note(error, f"(in {name}, tried {RETRIES + 1} times)")
        raise


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise ImportError("monai_chunked.dask needs distributed: pip install distributed") from None
    return distributed
