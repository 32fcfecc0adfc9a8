"""What of a run is written down while it goes on: nothing here, or a journal (``journal_record.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from monai_chunked.outputs.base import Output, OutputWriter, Result
from monai_chunked.plan.heads import Heads
from monai_chunked.recovery.left import NOTHING_LEFT, Cuts, Left

__all__ = ["NoRecord", "Overwrite", "Record"]


Overwrite = bool | Literal["changed"]


class Record(Protocol):
    """What of a run is written down while it goes on.

    Attributes:
        left: what an earlier run left.
        journal: of a run that can be resumed when it fails.
        replaces: whether the run that began the results was told that they may replace others.
    """

    @property
    def left(self) -> Left: ...

    @property
    def journal(self) -> Path | None: ...

    @property
    def replaces(self) -> bool: ...

    def load(self, output: Output, results: Sequence[Result]) -> list[Any] | None:
        """The results, if an earlier run finished them and nobody has removed them since."""
        ...

    def begin(self, heads: Heads, cuts: Sequence[Cuts]) -> None:
        """The heads of the network are known, and how they are cut into chunks."""
        ...

    def writer(self, number: int, output: Output, result: Result) -> OutputWriter:
        """Start the result of a head of the network, or go on with the one that was left."""
        ...

    def finish(self) -> None:
        """All results have their names."""
        ...


class NoRecord:
    """Where a run cannot be resumed: nothing is recorded.

    Args:
        left: what a worker is told of the run that it takes part in.
        earlier: the journal of an earlier run with the same results. It is removed when this run begins to write them.
    """

    journal: Path | None = None
    replaces = False

    def __init__(self, left: Left = NOTHING_LEFT, earlier: Path | None = None) -> None:
        self.left = left
        self.earlier = earlier

    def load(self, output: Output, results: Sequence[Result]) -> list[Any] | None:
        return None

    def begin(self, heads: Heads, cuts: Sequence[Cuts]) -> None:
        """
        Raises:
            ValueError: when the network returns something else here than elsewhere.
        """
        if self.left.heads is not None and heads.each != self.left.heads.each:
            raise ValueError(
                f"the network returns {list(heads.each)} here but {list(self.left.heads.each)} where the run was begun"
            )

    def writer(self, number: int, output: Output, result: Result) -> OutputWriter:
        if self.earlier is not None:
            self.earlier.unlink(missing_ok=True)
        return output.create(result)

    def finish(self) -> None:
        """Nothing is recorded."""
