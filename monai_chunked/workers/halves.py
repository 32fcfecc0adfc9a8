"""
One part of a run in two halves, for parts that hand on chunks but need not run at the same time.

The first half predicts the windows of the part and does all that can be done before the sums of others are there. The
second half adds what was kept to these sums, which takes next to no time. What is between them can be pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from monai_chunked.chunks.handing_on import Products
from monai_chunked.run.assembly import Part
from monai_chunked.run.begun import Run
from monai_chunked.run.run import predict

__all__ = ["Sums", "first_half", "second_half"]


Sums = dict[int, list[torch.Tensor]]
"""Sums of chunks, ``(C, *chunk)``, by the part that they go to or come from, in the order of sending."""


def first_half(run: Run, ranges: Sequence[range], part: int) -> tuple[Sums, Products]:
    """Predict the windows of a part. The output of the run takes the boxes that need nothing of other parts.

    Args:
        run: as a worker has it.
        ranges: the windows of each part.
        part: which one.

    Returns:
        what it hands on; and what it keeps for the second half.
    """
    mail = _Mail()
    half = Part(ranges[part], ranges=ranges, number=part, exchange=mail, takes=False)
    predict(run, half)
    return mail.sent, half.products


def second_half(run: Run, ranges: Sequence[range], part: int, *, products: Products, sums: Sums) -> Sums:
    """Add what a part has kept. The output of the run takes the boxes that it finishes now.

    Args:
        run: as a worker has it.
        ranges: the windows of each part.
        part: which one.
        products: what was kept.
        sums: for each part those that it has handed on to this one, in the order in which it did.

    Returns:
        what it hands on.
    """
    mail = _Mail({giver: iter(handed_on) for giver, handed_on in sums.items()})
    stop = ranges[part].stop
    kept = dict(products)  # what is added is taken out, and another try needs all
    predict(run, Part(range(stop, stop), ranges=ranges, number=part, exchange=mail, gives=False, products=kept))
    return mail.sent


@dataclass
class _Mail:
    """Keeps the sums that others get, and gives those that others have handed on."""

    received: Mapping[int, Iterator[torch.Tensor]] = field(default_factory=dict)
    sent: Sums = field(default_factory=dict)

    def send(self, part: int, sums: torch.Tensor) -> None:
        self.sent.setdefault(part, []).append(sums)

    def receive(self, part: int, shape: tuple[int, ...]) -> torch.Tensor:
        # another half may get the same ones, if this one is done once more
        return torch.clone(next(self.received[part]))
