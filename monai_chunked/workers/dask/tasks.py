"""What the tasks of a part are. They run on workers; an error says which part it is of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from monai_chunked.plan.parts.parts import Parts
from monai_chunked.transforms.inversion import Inversion
from monai_chunked.windows.errors import add_note
from monai_chunked.workers.dask.cluster import RETRIES, Cluster
from monai_chunked.workers.part import SharedRun
from monai_chunked.workers.worker import FirstHalf, PartBox, SecondHalf, Worker

__all__ = ["IndependentParts", "LinkedParts"]


class IndependentParts:
    """Each part is one task.

    Args:
        cluster: the workers.
        shared: what all workers know.
        inversion: how predictions are brought to the patients' grids; ``None``: they stay where they are.
    """

    def __init__(self, cluster: Cluster, shared: SharedRun, inversion: Inversion | None) -> None:
        self.cluster = cluster
        self._shared = cluster.share("known", shared)
        self._inversion = cluster.share("inversion", inversion)

    def start(self, part: int) -> Any:
        """Start a part.

        Returns:
            the future of its boxes.
        """
        of_part = (self.cluster.worker, self._shared, self._inversion, part)
        return self.cluster.submit(f"part-{part}", _make, *of_part, priority=-part)  # written in this order


class LinkedParts:
    """Each part is two tasks: one does its windows and needs no other part, one adds to what others have handed on.

    Tasks between them pick what one part gets from another, so that this alone is sent from worker to worker. If a
    worker is lost, Dask does what it had once more.

    Args:
        cluster: the workers.
        parts: the parts.
        shared: what all workers know.
    """

    def __init__(self, cluster: Cluster, parts: Parts, shared: SharedRun) -> None:
        self.cluster = cluster
        self.parts = parts
        self._shared = cluster.share("known", shared)
        self._sums: dict[tuple[int, int], list[Any]] = {}  # futures, by giver and taker

    def start(self, part: int) -> Any:
        """Start a part, after those before it.

        Returns:
            the future of its boxes.
        """
        of_part = (self.cluster.worker, self._shared, part)
        begun = self.cluster.submit(f"part-{part}-begin", _begin, *of_part, priority=-part)
        inherited, takers = self.parts.inherited(part), self.parts.handed_on(part)
        given = [(giver, sums) for giver in set(inherited.values()) for sums in self._sums.pop((giver, part))]
        passed = {taker for chunk, taker in takers.items() if chunk in inherited}
        end = (_end if passed else _last), *of_part, begun, [giver for giver, _ in given], *[sums for _, sums in given]
        ended = self.cluster.submit(f"part-{part}-end", *end, priority=1)
        for taker in set(takers.values()):
            halves = [("opened", begun), ("passed", ended)] if taker in passed else [("opened", begun)]
            self._sums[part, taker] = [
                self.cluster.submit(f"part-{part}-{name}-{taker}", _sums_for, half, taker, priority=1)
                for name, half in halves
            ]
        return self.cluster.submit(f"part-{part}-boxes", _boxes, ended, priority=1) if passed else ended


def _make(worker: Worker, shared: SharedRun, inversion: Inversion | None, part: int) -> list[PartBox]:
    with _naming(part, shared):
        return worker.make(part, shared, inversion)


def _begin(worker: Worker, shared: SharedRun, part: int) -> FirstHalf:
    with _naming(part, shared):
        return worker.begin(part, shared)


def _end(
    worker: Worker, shared: SharedRun, part: int, begun: FirstHalf, givers: list[int], *sums: list[torch.Tensor]
) -> SecondHalf:
    given: dict[int, list[torch.Tensor]] = {}
    for giver, handed_on in zip(givers, sums):
        given.setdefault(giver, []).extend(handed_on)
    with _naming(part, shared):
        return worker.end(part, shared, begun, given)


def _last(*arguments: Any) -> list[PartBox]:
    """The end of a part that nobody waits for."""
    return _boxes(_end(*arguments))


def _sums_for(task: FirstHalf | SecondHalf, part: int) -> list[torch.Tensor]:
    return task.sums.get(part, [])


def _boxes(ended: SecondHalf) -> list[PartBox]:
    return ended.boxes


@contextmanager
def _naming(part: int, shared: SharedRun) -> Iterator[None]:
    """Adds to an error which part it is of, and leaves its type as it is."""
    numbers = shared.ranges[part]
    name = f"part {part} of {len(shared.ranges)}, windows {numbers.start} to {numbers.stop - 1}"
    try:
        yield
    except Exception as error:  # whatever a network raises
        add_note(error, f"(in {name}, tried {RETRIES + 1} times)")
        raise
