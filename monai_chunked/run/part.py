"""What one process does of a run: all of it, or a part, with what it knows of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from monai_chunked.chunks.handing_on import Exchange, HandingOn, Products
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.parts.parts import Parts
from monai_chunked.recovery.left import Cuts
from monai_chunked.run.begun import Run

__all__ = ["LayOut", "Part"]


LayOut = Callable[[Sequence[Cuts] | None], Layout]
"""Makes the chunks, with cuts if others have chosen them."""


def _alone(heads: Heads, lay_out: LayOut) -> Layout:
    return lay_out(None)


def _nobody() -> None:
    """There is nobody who could fail."""


@dataclass(frozen=True)
class Part:
    """What one process does of a run.

    Attributes:
        numbers: the windows that come here, in scan order over all images.
        agree: called with the heads that the first prediction shows; makes the chunks of all parts.
        poll: called for each window; raises if others cannot go on.
        ranges: the windows of each part, where chunks are handed on from part to part; ``None``: nothing is handed on.
        number: which part this is.
        exchange: brings sums from one part to another.
        takes: whether it takes over what others have opened, when its windows are in.
        gives: whether it hands on what it has opened then.
        products: what it keeps for the chunks that others have opened.
    """

    numbers: range
    agree: Callable[[Heads, LayOut], Layout] = _alone
    poll: Callable[[], None] = _nobody
    ranges: Sequence[range] | None = None
    number: int = 0
    exchange: Exchange | None = None
    takes: bool = True
    gives: bool = True
    products: Products = field(default_factory=dict)

    def handing_on(self, run: Run, layout: Layout) -> HandingOn:
        """Which chunks are not opened here, and what becomes of those that several parts add to."""
        written = run.written(layout)
        if self.ranges is None or self.exchange is None:
            return HandingOn(written)
        parts = Parts(layout.grids, run.call.images, self.ranges, run.skipped)
        return HandingOn(
            written,
            inherited=parts.inherited(self.number),
            handed_on=parts.handed_on(self.number),
            exchange=self.exchange,
            device=run.call.device,
            takes=self.takes,
            gives=self.gives,
            products=self.products,
        )
