"""What the process that writes does of a run, and what the others do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from monai_chunked.chunks.handing_on import Alone, Neighbours
from monai_chunked.outputs.base import Form, OutputWriter
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.recovery.left import Cuts
from monai_chunked.run.call import Call
from monai_chunked.run.sharing import Create, OwnWindows
from monai_chunked.workers.torchrun.peers import Peers

__all__ = ["LeaderShare", "PartShare"]


class PartShare(OwnWindows):
    """A part of a run.

    Args:
        peers: the processes of the run; each has the part of its rank.
        numbers: the windows that come here.
        ranges: the windows of each part, if chunks are handed on from part to part; ``None``: parts are independent.
    """

    def __init__(self, peers: Peers, numbers: range, ranges: Sequence[range] | None) -> None:
        super().__init__(numbers, peers.check)
        self.peers = peers
        self.ranges = ranges

    def agree(self, heads: Heads, lay_out: Callable[[Sequence[Cuts] | None], Layout]) -> Layout:
        first, cuts = self.peers.hear(0)
        if first != heads:
            raise ValueError(
                f"the network returns {list(heads)} on rank {self.peers.rank} of the process group, but "
                f"{list(first)} on rank 0"
            )
        return lay_out(cuts)

    def neighbours(self, call: Call, layout: Layout, done: frozenset[ChunkId]) -> Alone:
        if self.ranges is None:
            return Alone(done)
        parts = Parts(layout.grids, len(call.metadata), self.ranges, call.skipped)
        return Neighbours(parts, self.peers.rank, done, _Exchange(self.peers), call.device)


class LeaderShare(PartShare):
    """The first part, of the process that writes the results of all.

    Args:
        peers, numbers, ranges: as for the others.
        heads, layout: what an earlier run has left, or nothing.

    Attributes:
        heads: of the network, as soon as they are known.
        layout: the chunks.
        results: of each head, as soon as they may be started.
    """

    def __init__(
        self,
        peers: Peers,
        numbers: range,
        ranges: Sequence[range] | None,
        heads: Heads,
        layout: Layout | None,
    ) -> None:
        super().__init__(peers, numbers, ranges)
        self.heads, self.layout = heads, layout
        self.results: dict[int, SharedResult] = {}
        self._at_work = set(peers.others)

    def agree(self, heads: Heads, lay_out: Callable[[Sequence[Cuts] | None], Layout]) -> Layout:
        self.heads, self.layout = heads, lay_out(None)
        for rank in self.peers.others:
            self.peers.say(rank, (heads, [grid.cuts for grid in self.layout.grids]))
        return self.layout

    def creating(self, head: int, create: Create) -> Create:
        self.results[head] = SharedResult(create)
        return self.results[head].start

    def neighbours(self, call: Call, layout: Layout, done: frozenset[ChunkId]) -> Alone:
        self.peers.on_box(self._take)  # results can be started now
        return super().neighbours(call, layout, done)

    def finish(self, results: list[Any]) -> list[Any]:
        """When the others have made their parts too. What nobody here had a part in is finished as well."""
        self.peers.wait(lambda: not self._at_work)
        return [self.results[k].finish() for k in range(len(results))]

    def abandon(self) -> None:
        for result in self.results.values():
            result.abandon()

    def _take(self, rank: int, about: Any, values: torch.Tensor) -> None:
        """A box of a result, or nothing more, from another process."""
        if about is None:
            self._at_work.discard(rank)
            self.peers.changed()
            return
        name, image, box = about
        self.results[self.heads.number(name)].start(Form.of(values)).write(image, box, values)


class SharedResult:
    """A result that several threads bring boxes to. It is started with the first of them.

    Args:
        create: starts it.
    """

    def __init__(self, create: Create) -> None:
        self._create = create
        self._lock = threading.Lock()
        self._abandoned = False
        self.writer: OutputWriter | None = None
        self.form: Form | None = None

    def start(self, form: Form) -> OutputWriter:
        """Where boxes go.

        Raises:
            ValueError: when it was started with another form.
        """
        with self._lock:
            if self.writer is None and not self._abandoned:
                self.writer, self.form = self._create(form), form
            if self.form not in (None, form):
                raise ValueError(
                    f"postprocessing must return the same channels and dtype for every chunk: {self.form} before, "
                    f"{form} in another process"
                )
        return _OneAtATime(self)

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        """Take a box, from any thread."""
        with self._lock:
            if not self._abandoned:
                assert self.writer is not None
                self.writer.write(image, box, chunk)

    def idle(self) -> bool:
        """No box waits."""
        with self._lock:
            return self.writer is None or self.writer.idle()

    def finish(self) -> Any:
        """The result, when all boxes are in."""
        with self._lock:
            assert self.writer is not None
            return self.writer.finish()

    def abandon(self) -> None:
        """The run failed."""
        with self._lock:
            self._abandoned = True
            if self.writer is not None:
                self.writer.abandon()


class _OneAtATime(OutputWriter):
    """What one thread sees of a result."""

    def __init__(self, result: SharedResult) -> None:
        self.result = result

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.result.write(image, box, chunk)

    def idle(self) -> bool:
        return self.result.idle()

    def finish(self) -> None:
        """Others may have boxes still."""


class _Exchange:
    """Sums go from process to process."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers

    def send(self, part: int, sums: torch.Tensor) -> None:
        self.peers.send_sums(part, sums)

    def receive(self, part: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self.peers.receive_sums(part)
