"""What the tasks of a part are. They run on workers; an error says which part it is of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from monai_chunked.plan.parts.parts import Parts
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.transforms.inversion import Inversion
from monai_chunked.windows.errors import add_note
from monai_chunked.workers.dask.cluster import RETRIES, Cluster
from monai_chunked.workers.parts import Agreed
from monai_chunked.workers.worker import Begun, Ended, Made, Worker

__all__ = ["HandingOn", "Independent"]


class Known(NamedTuple):
    """What all tasks know of a run."""

    agreed: Agreed
    skipped: Skipped | None


class Independent:
    """Each part is one task.

    Args:
        cluster: the workers.
        parts: the parts.
        agreed: what all workers know.
        inversion: how predictions are brought to the patients' grids; ``None``: they stay where they are.
    """

    def __init__(self, cluster: Cluster, parts: Parts, agreed: Agreed, inversion: Inversion | None) -> None:
        self.cluster = cluster
        self._known = cluster.share("known", Known(agreed, parts.skipped))
        self._inversion = cluster.share("inversion", inversion)

    def start(self, part: int) -> Any:
        """Start a part.

        Returns:
            the future of its boxes.
        """
        # what comes in order is written in order
        known = (self.cluster.worker, self._known, self._inversion, part)
        return self.cluster.submit(f"part-{part}", _make, *known, priority=-part)


class HandingOn:
    """Each part is two tasks: its windows, which needs nothing of other parts, and what others have handed on.

    Tasks between them pick what one part gets from another, so that this alone is sent from worker to worker. If a
    worker is lost, Dask does what it had once more.

    Args:
        cluster, parts, agreed: as above.
    """

    def __init__(self, cluster: Cluster, parts: Parts, agreed: Agreed) -> None:
        self.cluster = cluster
        self.parts = parts
        self._known = cluster.share("known", Known(agreed, parts.skipped))
        self._sums: dict[tuple[int, int], list[Any]] = {}

    def start(self, part: int) -> Any:
        """Start a part, when those before it were started.

        Returns:
            the future of its boxes.
        """
        known = (self.cluster.worker, self._known, part)
        begun = self.cluster.submit(f"part-{part}-begin", _begin, *known, priority=-part)
        inherited, takers = self.parts.inherited(part), self.parts.handed_on(part)
        given = [(giver, sums) for giver in set(inherited.values()) for sums in self._sums.pop((giver, part))]
        passed = {taker for chunk, taker in takers.items() if chunk in inherited}
        end = (_end if passed else _last), *known, begun, [giver for giver, _ in given], *[sums for _, sums in given]
        ended = self.cluster.submit(f"part-{part}-end", *end, priority=1)
        for taker in set(takers.values()):
            halves = [("opened", begun), ("passed", ended)] if taker in passed else [("opened", begun)]
            self._sums[part, taker] = [
                self.cluster.submit(f"part-{part}-{name}-{taker}", _sums_for, half, taker, priority=1)
                for name, half in halves
            ]
        return self.cluster.submit(f"part-{part}-boxes", _boxes, ended, priority=1) if passed else ended


def _make(worker: Worker, known: Known, inversion: Inversion | None, part: int) -> list[Made]:
    with _naming(part, known.agreed):
        return worker.make(part, *known, inversion)


def _begin(worker: Worker, known: Known, part: int) -> Begun:
    with _naming(part, known.agreed):
        return worker.begin(part, *known)


def _end(worker: Worker, known: Known, part: int, begun: Begun, givers: list[int], *sums: list[Any]) -> Ended:
    given: dict[int, list[Any]] = {}
    for giver, some in zip(givers, sums):
        given.setdefault(giver, []).extend(some)
    with _naming(part, known.agreed):
        return worker.end(part, *known, begun, given)


def _last(*arguments: Any) -> list[Made]:
    """The end of a part that nobody waits for."""
    return _boxes(_end(*arguments))


def _sums_for(task: Begun | Ended, part: int) -> list[Any]:
    return task.sums.get(part, [])


def _boxes(ended: Ended) -> list[Made]:
    return ended.boxes


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
