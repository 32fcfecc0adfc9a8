"""A run, which is a call that has begun: what an earlier one left of it, and what becomes of its results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod

from monai_chunked.call.call import Call, Fingerprint
from monai_chunked.chunks.ending import Ending
from monai_chunked.outputs.base import Expected, Form, Metadata, OutputWriter, Result, UsedFile
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Head, Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.recovery.left import Left
from monai_chunked.recovery.record import NoRecord, Record
from monai_chunked.recovery.recovery import recovering

__all__ = ["Run", "begun"]


@dataclass(frozen=True)
class Run:
    """A call that has begun.

    Attributes:
        call: what is asked for.
        record: what an earlier run left, and what of this one is written down.
        metadata: of each image, with a name where the result must have one.
        used: the files that are read, if it writes some.
        told: the windows that are known to be skipped, where another process has read the mask.
    """

    call: Call
    record: Record
    metadata: tuple[Metadata, ...]
    used: tuple[UsedFile, ...] = ()
    told: Skipped | None = None

    @classmethod
    def of_worker(cls, call: Call, left: Left, skipped: Skipped | None) -> Run:
        """What a worker has of the run of another process.

        Args:
            call: whose output takes the boxes that are made here.
            left: what all workers know, or nothing.
            skipped: the windows that are known to be skipped.
        """
        return cls(call, NoRecord(left), call.source.metadata, told=skipped)

    @cached_property
    def skipped(self) -> Skipped | None:
        """The windows that are known to be skipped; the mask is read for it once."""
        return self.told or self.call.settings.skipped()

    @property
    def left(self) -> Left:
        """What an earlier run left."""
        return self.record.left

    @property
    def replaces(self) -> bool:
        """Whether results that exist already may be replaced: this call says so, or the one that it goes on with."""
        return bool(self.call.settings.overwrite) or self.record.replaces

    def layout_left(self) -> Layout | None:
        """The chunks of the earlier run; ``None``: there was none."""
        left = self.left
        return None if left.heads is None else self.call.lay_out(left.heads, left.cuts, self.skipped)

    def finished(self) -> list[object] | None:
        """The results, opened again, if an earlier run finished them and nobody has removed them since."""
        layout = self.layout_left() if self.left.complete else None
        if layout is None or self.left.heads is None:
            return None
        results = [
            self.result(head, self.call.ending(grid), self.left.results[number])
            for number, (head, grid) in enumerate(zip(self.left.heads, layout.grids))
        ]
        return self.record.load(self.call.output, results)

    def result(self, head: Head, ending: Ending, form: Form) -> Result:
        """What one head becomes."""
        metadata = ending.metadata(self.metadata, self.call.settings.image_size)
        return Result(
            head.name,
            (self.call.images, form.channels, *ending.size),
            form.dtype,
            ending.cuts,
            metadata,
            self.replaces,
            resumable=self.record.journal is not None,
        )

    def start_result(self, number: int, head: Head, ending: Ending, form: Form) -> OutputWriter:
        """Start the result of a head, or go on with one that an earlier run left."""
        return self.record.writer(number, self.call.output, self.result(head, ending, form))

    def check_results(self, heads: Heads, known_bytes: int) -> None:
        """Raise if the results of these heads are not possible; nothing is written yet.

        Args:
            heads: of the network.
            known_bytes: a lower limit of their size.
        """
        names = tuple(head.name for head in heads)
        self.call.output.check(Expected(0, None, self.metadata, True, self.used, names))
        if self.left.heads is None:  # else its space is taken already
            self.call.output.check(Expected(known_bytes))

    def written(self, layout: Layout | None) -> frozenset[ChunkId]:
        """The chunks that need not come again, because every box that they go into is written.

        Args:
            layout: the chunks of the run that wrote it; ``None``: there was none.
        """
        if layout is None or self.left.heads is None:
            return frozenset()
        endings = (self.call.ending(grid) for grid in layout.grids)
        chunks = (ending.finished(self.left.written, self.call.images, head) for head, ending in enumerate(endings))
        return frozenset(itertools.chain.from_iterable(chunks))


@contextmanager
def begun(call: Call, fingerprint: Callable[[], Fingerprint] | None, skipped: Skipped | None = None) -> Iterator[Run]:
    """A run of a call, with what an earlier one left of it.

    Args:
        call: what is asked for.
        fingerprint: what the result depends on; ``None``: nobody can know.
        skipped: the windows that the mask skips, where it has been read already.

    Raises:
        FileExistsError: when a result would take the place of what is read.
        ValueError, TypeError, OSError: when the output cannot take the result.
    """
    settings, output, known_dtype = call.settings, call.output, call.known_dtype
    output.check(Expected(0, known_dtype))
    call.importance(settings.windows.roi_size)  # one that does not fit is refused now
    used = call.used()

    def check(metadata: tuple[Metadata, ...]) -> None:
        output.check(Expected(0, None, metadata, True, used))

    with recovering(
        output, call.source.metadata, fingerprint=fingerprint, overwrite=settings.overwrite, check=check
    ) as (record, metadata):
        if record.left.heads is None:
            size = call.images * prod(settings.image_size) * (1 if known_dtype is None else known_dtype.itemsize)
            output.check(Expected(size, known_dtype, metadata, bool(settings.overwrite) or record.replaces))
        yield Run(call, record, metadata, used, skipped)
