"""What the process that writes does of a run, and how the others bring it what they make."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_chunked.outputs.base import Form, Output, OutputWriter, Result
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.recovery.left import Cuts, Left
from monai_chunked.run.begun import Run
from monai_chunked.workers.torchrun.peers import Peers

__all__ = ["SharedResults", "SumsExchange"]


class SharedResults:
    """The record of a run whose results several processes have boxes for.

    Args:
        run: of the process that writes.
        peers: the processes of the run.

    Attributes:
        heads: of the network, as soon as they are known.
        layout: the chunks.
    """

    def __init__(self, run: Run, peers: Peers) -> None:
        self.run = run
        self.peers = peers
        self.heads = run.left.heads
        self.layout: Layout | None = None
        self._results: dict[int, SharedResult] = {}
        self._takes = False
        self._at_work = set(peers.others)

    @property
    def left(self) -> Left:
        return self.run.left

    @property
    def journal(self) -> Path | None:
        return self.run.record.journal

    @property
    def replaces(self) -> bool:
        return self.run.record.replaces

    def load(self, output: Output, results: Sequence[Result]) -> list[Any] | None:
        return self.run.record.load(output, results)

    def begin(self, heads: Heads, cuts: Sequence[Cuts]) -> None:
        self.heads = heads
        self._results = {number: SharedResult(partial(self._create, number)) for number in range(len(heads))}
        self.run.record.begin(heads, cuts)

    def writer(self, number: int, output: Output, result: Result) -> OutputWriter:
        return self._results[number].start(Form(result.shape[1], result.dtype))

    def finish(self) -> None:
        """The process that writes says so itself."""

    def poll(self) -> None:
        """Results can be started now: take what comes from others; raise if they cannot go on."""
        if not self._takes:
            self._takes = True
            self.peers.on_box(self._take)
        self.peers.check()

    def results(self, count: int) -> list[Any]:
        """The results, when the others have made their parts too. What nobody had a part in is finished as well."""
        self.peers.wait(lambda: not self._at_work)
        return [self._results[number].finish() for number in range(count)]

    def forms(self) -> dict[int, Form]:
        """The forms of the results that were started, in this run or an earlier one."""
        started = {number: result.form for number, result in self._results.items() if result.form is not None}
        return {**self.left.results, **started}

    def abandon(self) -> None:
        """The run failed."""
        for result in self._results.values():
            result.abandon()

    def _create(self, number: int, form: Form) -> OutputWriter:
        assert self.heads is not None
        assert self.layout is not None
        ending = self.run.call.ending(self.layout.grids[number])
        return self.run.start_result(number, self.heads[number], ending, form)

    def _take(self, rank: int, about: tuple[str, int, Box] | None, values: torch.Tensor) -> None:
        """Take a box of a result from another process; without ``about``, that process has sent all of its boxes."""
        if about is None:
            self._at_work.discard(rank)
            self.peers.changed()
            return
        name, image, box = about
        assert self.heads is not None
        form = Form.of(values)
        self._results[self.heads.number(name)].start(form).write(image, box, values)


class SharedResult:
    """A result that several threads bring boxes to. It is started with the first of them.

    Args:
        create: starts it.
    """

    def __init__(self, create: Callable[[Form], OutputWriter]) -> None:
        self._create = create
        self._lock = threading.Lock()
        self._abandoned = False
        self.writer: OutputWriter | None = None
        self.form: Form | None = None

    def start(self, form: Form) -> OutputWriter:
        """Where boxes go.

        Raises:
            ValueError: when it was started with other channels or another dtype.
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


class SumsExchange:
    """Sums go from process to process."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers

    def send(self, part: int, sums: torch.Tensor) -> None:
        self.peers.send_sums(part, sums)

    def receive(self, part: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self.peers.receive_sums(part)
