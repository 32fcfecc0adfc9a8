"""
One part of a run in two halves, for parts that hand on chunks but need not run at the same time.

The first half predicts the windows of the part and does all that can be done before the sums of others are there. The
second half adds what was kept to these sums, which takes next to no time. What is between them can be pickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from monai_chunked.chunks.handing_on import Heir, Neighbours, Opener, Products
from monai_chunked.inputs.source import Source
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.run.call import Call
from monai_chunked.run.laying_out import lay_out_call
from monai_chunked.run.predicting import predict
from monai_chunked.run.sharing import Given, OwnWindows
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.parts import Agreed

__all__ = ["Sums", "first_half", "second_half"]


Sums = dict[int, list[torch.Tensor]]
"""For each part the sums of chunks, ``(C, *chunk)``, that it gets from another one, in that order."""


def first_half(
    call: Call, network: BoundNetwork, condition: Source | None, agreed: Agreed, part: int
) -> tuple[Sums, Products]:
    """Predict the windows of a part. The output of the call takes the boxes that need nothing of other parts.

    Args:
        call: what is known before the network runs.
        network: with its further arguments.
        condition: where windows of the condition are read from.
        agreed: what all workers know.
        part: which one.

    Returns:
        what it hands on; and what it keeps for the second half.
    """
    passed = _Passed({})
    share = _Half(Opener, agreed.ranges[part], agreed.ranges, part, passed, {})
    _predict(call, network, condition, agreed, share)
    return passed.sent, share.products


def second_half(
    call: Call, network: BoundNetwork, agreed: Agreed, part: int, products: Products, given: Mapping[int, Any]
) -> Sums:
    """Add what a part has kept. The output of the call takes the boxes that it finishes now.

    Args:
        call, network, agreed, part: as above.
        products: what was kept.
        given: for each part, the sums that it has handed on to this one, in that order.

    Returns:
        what it hands on.
    """
    passed = _Passed(given)
    start = agreed.ranges[part].stop
    share = _Half(Heir, range(start, start), agreed.ranges, part, passed, dict(products))  # kept for another try
    _predict(call, network, None, agreed, share)
    return passed.sent


def _predict(call: Call, network: BoundNetwork, condition: Source | None, agreed: Agreed, share: _Half) -> None:
    given = Given(agreed.heads, agreed.cuts, agreed.results, agreed.written)
    layout = lay_out_call(call.settings, agreed.heads, call.device, call.sum_dtype, agreed.cuts, call.skipped)
    predict(replace(call, recovery=given, share=share), network, condition, layout)


class _Half(OwnWindows):
    """What is done of a part.

    Args:
        kind: which half.
        numbers: the windows that come.
        ranges: the windows of each part.
        part: which one.
        passed: brings sums.
        products: what was kept.
    """

    def __init__(
        self,
        kind: type[Neighbours],
        numbers: range,
        ranges: Sequence[range],
        part: int,
        passed: _Passed,
        products: Products,
    ) -> None:
        super().__init__(numbers)
        self.products = products
        self._kind = kind
        self._ranges = ranges
        self._part = part
        self._passed = passed

    def neighbours(self, call: Call, layout: Layout, done: frozenset[ChunkId]) -> Neighbours:
        parts = Parts(layout.grids, len(call.metadata), self._ranges, call.skipped)
        found = self._kind(parts, self._part, done, self._passed, call.device)
        found.products = self.products
        return found


@dataclass
class _Passed:
    """Keeps the sums that others get, and gives those that others have handed on."""

    given: Mapping[int, Any]

    def __post_init__(self) -> None:
        self.sent: Sums = {}
        self._given = {part: iter(sums) for part, sums in self.given.items()}

    def send(self, part: int, sums: torch.Tensor) -> None:
        self.sent.setdefault(part, []).append(sums)

    def receive(self, part: int, shape: tuple[int, ...]) -> torch.Tensor:
        # another half may get the same ones, if this one is done once more
        return torch.clone(next(self._given[part]))
