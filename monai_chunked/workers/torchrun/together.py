"""A run of several processes: the first of them writes the result, and each of the others sends what it makes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from monai_chunked.call.call import Call, Fingerprint
from monai_chunked.call.identity import fingerprint_of_call
from monai_chunked.call.settings import Settings
from monai_chunked.inputs.source import Source
from monai_chunked.machine.caller import warn_caller
from monai_chunked.outputs.base import Result
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.work import cut, needed_windows, work_of
from monai_chunked.recovery.left import NOTHING_LEFT, Left
from monai_chunked.run.assembly import LayOut, Part, Results
from monai_chunked.run.begun import Run
from monai_chunked.run.run import finished, hand_out, infer, predict
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.part import HandedOver, SharedRun, numbers_of, predict_part
from monai_chunked.workers.torchrun.agreement import check_shared, differing
from monai_chunked.workers.torchrun.peers import Peers
from monai_chunked.workers.torchrun.results import Shown, show, take
from monai_chunked.workers.torchrun.shared_disk import Mark, look, marked, unseen
from monai_chunked.workers.torchrun.shares import SharedResults, SumsExchange

__all__ = ["infer_together"]


@dataclass(frozen=True)
class Start:
    """What the first process tells the others before anybody predicts anything.

    Attributes:
        ranges: the windows of each part; empty: an earlier run has finished the result.
        left: what an earlier run left.
    """

    ranges: Sequence[range]
    left: Left = NOTHING_LEFT


def infer_together(
    peers: Peers, source: Source, network: BoundNetwork, settings: Settings, *, condition: Source | None
) -> Any:
    """What :py:func:`infer` does, by several processes.

    Args:
        peers: these processes.
        source: where windows are read from.
        network: with its further arguments.
        settings: what is asked for, the same in all.
        condition: where windows of the condition are read from.

    Returns:
        the results, in all of them.

    Raises:
        ValueError: when they were called with different things, or this cannot be shared.
        FileNotFoundError: when the result is to be in a folder that not all of them see.
        RuntimeError: when another process could not go on.
    """
    call = Call.of(source, network, settings, condition)
    if call.why_whole() is None:  # else it is refused for that
        check_shared(call)
    with torch.no_grad():
        if peers.rank == 0:
            return infer(call, Leader(peers))
        follower = Follower(peers, settings)
        return infer(replace(call, settings=follower.own, output=follower.own.target(source.device)), follower)


class _Together:
    """One process of a run.

    Args:
        peers: all of them.
    """

    def __init__(self, peers: Peers) -> None:
        self.peers = peers

    def whole(self, call: Call, reason: str) -> Any:
        """
        Raises:
            ValueError: the inverse cannot be done by several processes.
        """
        raise ValueError(
            f"process_group: the prediction can only be brought to the patient's grid as a whole, because {reason}; "
            f"leave out the inverse and do it to what the inferer returns, or process_group"
        )

    def judge(self, verdict: Exception | None) -> None:
        """Raise the verdict, if there is one, as all processes do."""
        if verdict is not None:
            self.peers.all_know = True
            raise verdict


class Leader(_Together):
    """The first process, which has the output and its journal."""

    def fingerprint(self, call: Call) -> Callable[[], Fingerprint]:
        self._texts = functools.cache(partial(fingerprint_of_call, call))  # found out once
        return self._texts

    def finished(self, run: Run) -> Results | None:
        self._compare()
        self._show_disk(run)
        results = finished(run)
        if results is not None:
            self._tell(Start(()))
            self._shared = SharedResults(run, self.peers)
            self._shared.layout = run.layout_left()
        return results

    def results(self, run: Run) -> Results:
        call, settings = run.call, run.call.settings
        layout = run.layout_left()
        needed = None if layout is None else needed_windows(layout.grids, call.images, run.written(layout))
        work = work_of(settings.windows, call.images, settings.sw_batch_size, skipped=run.skipped, needed=needed)
        ranges = cut(work, self.peers.size)
        if len(ranges) < self.peers.size:
            warn_caller(
                f"process_group has more processes ({self.peers.size}) than there are batches of windows to predict "
                f"({len(ranges)}), so some have nothing to do; fewer are as fast"
            )
        self._tell(Start(ranges, run.left))
        self._shared = shared = SharedResults(run, self.peers)
        shared.layout = layout
        passed = ranges if call.parts_hand_on else None
        part = Part(
            numbers_of(run, ranges[0], 0), self._agree, shared.poll, ranges=passed, exchange=SumsExchange(self.peers)
        )
        try:
            heads, values = predict(replace(run, record=shared, told=run.skipped), part)
            return Results(heads, shared.results(len(values)))
        except BaseException:
            shared.abandon()
            raise

    def hand_out(self, run: Run, results: Results) -> Any:
        show(self.peers, run, results, self._shared)
        return hand_out(run.call, results)

    def _agree(self, heads: Heads, lay_out: LayOut) -> Layout:
        self._shared.layout = layout = lay_out(None)
        self._tell(Left(heads, tuple(grid.cuts for grid in layout.grids)))
        return layout

    def _compare(self) -> None:
        """Raise unless all processes were called with the same."""
        # where the result goes concerns the first process alone
        texts = {name: text for name, text in self._texts()[0].items() if name != "output"}
        different = differing(texts, self._hear())
        self._decide(ValueError(different) if different else None)

    def _show_disk(self, run: Run) -> None:
        """Raise unless all processes see where the result will be."""
        with marked(run.call.output, run.metadata) as mark:
            self._tell(mark)
            if mark is not None:
                said = self._hear()
        if mark is not None:
            self._decide(unseen(mark, said))

    def _decide(self, verdict: Exception | None) -> None:
        self._tell(verdict)
        self.judge(verdict)

    def _tell(self, value: object) -> None:
        for rank in self.peers.others:
            self.peers.say(rank, value)

    def _hear(self) -> dict[int, Any]:
        return {rank: self.peers.hear(rank) for rank in self.peers.others}


class Follower(_Together):
    """Any other process, which sends what it makes to the first one.

    Args:
        peers: all of them.
        settings: what is asked for.

    Attributes:
        own: what is asked for here, where boxes are sent.
    """

    def __init__(self, peers: Peers, settings: Settings) -> None:
        super().__init__(peers)
        self.settings = settings
        progress = False if settings.progress is True else settings.progress  # one bar is enough
        self.own = replace(settings, output=HandedOver(self._put), output_dir=None, overwrite=False, progress=progress)

    def fingerprint(self, call: Call) -> None:
        return None

    def finished(self, run: Run) -> Results | None:
        self.peers.say(0, fingerprint_of_call(run.call)[0])
        self.judge(self.peers.hear(0))
        mark: Mark | None = self.peers.hear(0)
        if mark is not None:
            self.peers.say(0, look(self.settings.target(run.call.source.device), mark))
            self.judge(self.peers.hear(0))
        self._start: Start = self.peers.hear(0)
        return None if self._start.ranges else Results(Heads(), [])

    def results(self, run: Run) -> Results:
        self._predict(run)
        self.peers.send_box(0, None, torch.empty(0))
        return Results(Heads(), [])  # they come from the first process

    def hand_out(self, run: Run, results: Results) -> Any:
        shown: Shown = self.peers.hear(0)
        taken = take(self.peers, self.settings, run.call.source, shown)
        return hand_out(run.call, Results(shown.heads, taken))

    def _predict(self, run: Run) -> None:
        call, rank, ranges, left = run.call, self.peers.rank, self._start.ranges, self._start.left
        if left.heads is None and (rank >= len(ranges) or not call.parts_hand_on):
            left = self.peers.hear(0)
        if rank >= len(ranges):
            return
        shared = SharedRun(left, ranges, run.skipped)
        if call.parts_hand_on:
            exchange = SumsExchange(self.peers)
            part = Part(ranges[rank], self._agree, self.peers.check, ranges=ranges, number=rank, exchange=exchange)
            predict(shared.run_of(call), part)
        else:
            predict_part(call, shared, rank, self.peers.check)

    def _agree(self, heads: Heads, lay_out: LayOut) -> Layout:
        left: Left = self.peers.hear(0)
        if heads != left.heads:
            assert left.heads is not None
            raise ValueError(
                f"the network returns {list(heads)} on rank {self.peers.rank} of the process group, but "
                f"{list(left.heads)} on rank 0"
            )
        return lay_out(left.cuts)

    def _put(self, result: Result, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.peers.send_box(0, (result.name, image, box), chunk)
