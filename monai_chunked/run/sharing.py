"""What one process does of a run: all of it, or the part of one of several workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from monai_chunked.chunks.handing_on import Alone
from monai_chunked.outputs.base import Form, Output, OutputWriter, Result
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.recovery.left import Cuts
from monai_chunked.recovery.record import NoRecovery

__all__ = ["Given", "HandedOver", "OwnWindows", "Unshared"]


Create = Callable[[Form], OutputWriter]
"""Starts a result of this form."""


class Unshared:
    """A run that one process does by itself."""

    def numbers(self, windows: int) -> range:
        """Which of so many windows in all come, in scan order."""
        return range(windows)

    def agree(self, heads: Heads, lay_out: Callable[[Sequence[Cuts] | None], Layout]) -> Layout:
        """The chunks of all workers.

        Args:
            heads: of the network, as the first prediction shows them here.
            lay_out: makes the chunks, with cuts if others have chosen them.

        Raises:
            ValueError: when the network has other heads elsewhere.
        """
        return lay_out(None)

    def neighbours(self, call: Any, layout: Layout, done: frozenset[ChunkId]) -> Alone:
        """Who else adds to chunks."""
        return Alone(done)

    def creating(self, head: int, create: Create) -> Create:
        """Who starts the result of a head: whoever asks first, with its form."""
        return create

    def poll(self) -> None:
        """Raise if others cannot go on."""

    def finish(self, results: list[Any]) -> list[Any]:
        """The results of all heads, when this process has made its part of them; ``None``: it had none in it."""
        return results

    def abandon(self) -> None:
        """The run failed: leave nothing behind."""


class OwnWindows(Unshared):
    """The windows that a worker must see to finish its chunks by itself.

    Args:
        numbers: of the windows in scan order over all images.
        poll: called for each window; raises if others cannot go on.
    """

    def __init__(self, numbers: range, poll: Callable[[], None] = lambda: None) -> None:
        self._numbers = numbers
        self._poll = poll

    def numbers(self, windows: int) -> range:
        return self._numbers

    def poll(self) -> None:
        self._poll()


class Given(NoRecovery):
    """What a worker is told of the run that it has a part in, in the place of what an earlier run left.

    Args:
        heads: of the network.
        cuts: for each head and spatial dimension, where chunks begin, and the size.
        results: the forms of the results that are known, by the number of their head.
        written: the boxes of the results that are there already, or that others make.
    """

    resumed = True

    def __init__(
        self,
        heads: Heads,
        cuts: Sequence[Cuts],
        results: Mapping[int, Form],
        written: Mapping[ChunkId, int],
    ) -> None:
        super().__init__()
        self.heads, self.cuts = heads, list(cuts)
        self.results, self.done = dict(results), dict(written)

    def begin(self, heads: Heads, cuts: Sequence[Cuts]) -> None:
        """
        Raises:
            ValueError: when the network returns something else here than elsewhere.
        """
        if heads.each != self.heads.each:
            raise ValueError(f"the network returns {list(heads)} here but {list(self.heads)} where the run was begun")


class HandedOver(Output):
    """Finished chunks go to whoever brings them to the result.

    Args:
        put: called with the result, the number of the image, the box, and ``(C, *box)``, whose memory is used again
            afterwards.
    """

    def __init__(self, put: Callable[[Result, int, Box, torch.Tensor], None]) -> None:
        self.put = put

    def create(self, result: Result) -> OutputWriter:
        return _HandingOver(result, self.put)


class _HandingOver(OutputWriter):
    def __init__(self, result: Result, put: Callable[[Result, int, Box, torch.Tensor], None]) -> None:
        self.result = result
        self.put = put

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.put(self.result, image, box, chunk)

    def finish(self) -> None:
        """Nobody gets it here."""
