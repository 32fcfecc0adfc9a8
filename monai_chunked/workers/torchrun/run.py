"""A run of several processes: what each of them does, from what they are called with to the result that all get."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from monai_chunked.inputs.source import Source, source_of
from monai_chunked.machine.caller import warn_caller
from monai_chunked.machine.signals import interruptible
from monai_chunked.outputs.base import Result
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.work import cut, needed_windows, work_of
from monai_chunked.run.call import Call
from monai_chunked.run.calling import calling, packed, sum_dtype_of
from monai_chunked.run.identity import fingerprint_of_call
from monai_chunked.run.inverting import inversion_of, why_whole
from monai_chunked.run.laying_out import lay_out_call
from monai_chunked.run.predicting import predict
from monai_chunked.run.run import load
from monai_chunked.run.settings import Settings
from monai_chunked.run.sharing import Given, HandedOver
from monai_chunked.transforms.inversion import Inversion
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.parts import Agreed, numbers_of, predict_part
from monai_chunked.workers.torchrun.checks import check_shared, differing
from monai_chunked.workers.torchrun.peers import Peers
from monai_chunked.workers.torchrun.results import Shown, show, take
from monai_chunked.workers.torchrun.shared_disk import Mark, look, marked, unseen
from monai_chunked.workers.torchrun.shares import LeaderShare, PartShare

__all__ = ["infer_together"]


@dataclass(frozen=True)
class Start:
    """What the first process tells the others before anybody predicts anything.

    Attributes:
        ranges: the windows of each part; empty: an earlier run has finished the result.
        hands_on: whether chunks are handed on from part to part, or else parts are independent.
        agreed: what all know of heads and chunks, if an earlier run left it.
    """

    ranges: Sequence[range]
    hands_on: bool
    agreed: Agreed | None


def infer_together(peers: Peers, inputs: Any, network: BoundNetwork, settings: Settings, condition: Any) -> Any:
    """What :py:func:`infer` does, by several processes.

    Args:
        peers: these processes.
        inputs, network, settings, condition: as for one process, and the same in all.

    Returns:
        the results, in all of them.

    Raises:
        ValueError: when they were called with different things, or this cannot be shared.
        FileNotFoundError: when the result is to be in a folder that not all of them see.
        RuntimeError: when another process could not go on.
    """
    source = source_of(inputs)
    condition_source = None if condition is None else source_of(condition)
    inversion = inversion_of(settings, source)
    if inversion is not None and (reason := why_whole(inversion, settings, sum_dtype_of(source, settings))):
        raise ValueError(
            f"process_group: the prediction can only be brought to the patient's grid as a whole, because {reason}; "
            f"leave out the inverse and do it to what the inferer returns, or process_group"
        )
    check_shared(settings, inversion, source.device)
    kind = _Leader if peers.rank == 0 else _Follower
    with torch.no_grad():
        return kind(peers, settings, network, source, condition_source, inversion).infer()


class _Worker:
    """One process of a run.

    Args:
        peers: all of them.
        settings: what is asked for.
        network: with its further arguments.
        source, condition: where windows are read from.
        inversion: how predictions are brought to the patients' grids.
    """

    def __init__(
        self,
        peers: Peers,
        settings: Settings,
        network: BoundNetwork,
        source: Source,
        condition: Source | None,
        inversion: Inversion | None,
    ) -> None:
        self.peers = peers
        self.settings = settings
        self.network = network
        self.source = source
        self.condition = condition
        self.inversion = inversion
        self._texts: tuple[dict[str, str], list[str]] | None = None

    def fingerprint(self, call: Call) -> tuple[dict[str, str], list[str]]:
        """What the result depends on, as this process was called; found out once."""
        if self._texts is None:
            self._texts = fingerprint_of_call(call, self.network, self.condition)
        return self._texts

    def judge(self, verdict: Exception | None) -> None:
        """Raise, in all processes alike, if there is something to raise."""
        if verdict is not None:
            self.peers.all_know = True
            raise verdict


class _Leader(_Worker):
    """The first of them, which has the output and its journal."""

    def infer(self) -> Any:
        reads = {"condition": self.condition, "network": self.network}
        with calling(self.settings, self.source, self.inversion, self.fingerprint, reads) as call:
            self._compare(call)
            self._show_disk(call)
            recovery, recorded = call.recovery, None
            if recovery.resumed:
                how = (recovery.heads, call.device, call.sum_dtype, recovery.cuts, call.skipped)
                recorded = lay_out_call(self.settings, *how)
            results = load(call, recorded)
            if results is None:
                recorded = recorded if recovery.resumed else None
                share, results = self._predict(call, recorded)
            else:
                self._tell(Start((), False, None))
                share = LeaderShare(self.peers, range(0), None, recovery.heads, recorded)
            show(self.peers, call, results, share)
            return packed(call, results)

    def _compare(self, call: Call) -> None:
        """What all were called with is the same."""
        # where the result goes is the first one's business
        texts = {name: text for name, text in self.fingerprint(call)[0].items() if name != "output"}
        different = differing(texts, self._hear())
        self._decide(ValueError(different) if different else None)

    def _show_disk(self, call: Call) -> None:
        """All see where the result will be."""
        with marked(call.output, call.metadata) as mark:
            self._tell(mark)
            if mark is not None:
                said = self._hear()
        if mark is not None:
            self._decide(unseen(mark, said))

    def _predict(self, call: Call, recorded: Layout | None) -> tuple[LeaderShare, list[Any]]:
        settings, recovery, images = self.settings, call.recovery, len(call.metadata)
        needed = None if recorded is None else needed_windows(recorded.grids, images, call.done(recorded))
        work = work_of(settings.windows, images, settings.sw_batch_size, call.skipped, needed)
        ranges = cut(work, self.peers.size)
        if len(ranges) < self.peers.size:
            warn_caller(
                f"process_group has more processes ({self.peers.size}) than there are batches of windows to predict "
                f"({len(ranges)}), so some have nothing to do; fewer are as fast"
            )
        agreed = None
        if recorded is not None:
            agreed = Agreed(recovery.heads, recovery.cuts, ranges, recovery.results, recovery.done)
        self._tell(Start(ranges, call.hands_on, agreed))
        numbers = numbers_of(call, ranges[0], 0)
        passed = ranges if call.hands_on else None
        share = LeaderShare(self.peers, numbers, passed, recovery.heads, recorded)
        writes_files = settings.output_dir is not None or not call.output.in_memory
        with interruptible(recovery.journal) if writes_files else nullcontext():
            results = predict(replace(call, share=share), self.network, self.condition, recorded)
        return share, results

    def _decide(self, verdict: Exception | None) -> None:
        self._tell(verdict)
        self.judge(verdict)

    def _tell(self, value: Any) -> None:
        for rank in self.peers.others:
            self.peers.say(rank, value)

    def _hear(self) -> dict[int, Any]:
        return {rank: self.peers.hear(rank) for rank in self.peers.others}


class _Follower(_Worker):
    """Any other of them, which sends what it makes to the first one."""

    def infer(self) -> Any:
        progress = False if self.settings.progress is True else self.settings.progress  # one bar is enough
        own = replace(self.settings, output=HandedOver(self._put), output_dir=None, overwrite=False, progress=progress)
        with calling(own, self.source, self.inversion, None) as call:
            self.peers.say(0, self.fingerprint(call)[0])
            self.judge(self.peers.hear(0))
            mark: Mark | None = self.peers.hear(0)
            if mark is not None:
                self.peers.say(0, look(self.settings.target(self.source.device), mark))
                self.judge(self.peers.hear(0))
            start: Start = self.peers.hear(0)
            if start.ranges:
                self._predict(call, start)
                self.peers.send_box(0, None, torch.empty(0))
            return self._result(call, self.peers.hear(0))

    def _predict(self, call: Call, start: Start) -> None:
        rank, ranges, agreed = self.peers.rank, start.ranges, start.agreed
        if agreed is None and (rank >= len(ranges) or not start.hands_on):
            heads, cuts = self.peers.hear(0)
            agreed = Agreed(heads, cuts, ranges)
        if rank >= len(ranges):
            return
        if start.hands_on:
            share = PartShare(self.peers, ranges[rank], ranges)
            recorded = None
            if agreed is not None:
                given = Given(agreed.heads, agreed.cuts, agreed.results, agreed.written)
                call = replace(call, recovery=given)
                recorded = lay_out_call(
                    self.settings, given.heads, call.device, call.sum_dtype, given.cuts, call.skipped
                )
            predict(replace(call, share=share), self.network, self.condition, recorded)
        else:
            assert agreed is not None
            predict_part(call, self.network, self.condition, agreed, rank, self.peers.check)

    def _put(self, result: Result, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.peers.send_box(0, (result.name, image, box), chunk)

    def _result(self, call: Call, shown: Shown) -> Any:
        results = take(self.peers, self.settings, self.source, shown)
        given = Given(shown.heads, [], {}, {})
        return packed(replace(call, recovery=given), results)
