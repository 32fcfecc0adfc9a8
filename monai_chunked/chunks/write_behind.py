"""Writing finished chunks in a thread, while the network runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from monai_chunked.machine.accelerator import Downloads
from monai_chunked.outputs.base import OutputWriter
from monai_chunked.plan.boxes import Box

__all__ = ["DEPTH", "WriteBehind"]


DEPTH = 2
"""Finished chunks that may wait to be written."""


class WriteBehind:
    """Hands finished chunks to a writer in a thread, behind a queue of :py:data:`DEPTH` chunks.

    A chunk on an accelerator is copied to pinned memory first, on a stream of its own.

    Args:
        writer: does the writing.
        threaded: ``False``: every chunk is written at once, where autograd can see it.
    """

    def __init__(self, writer: OutputWriter, threaded: bool) -> None:
        self.writer = writer
        self.threaded = threaded
        self._thread = ThreadPoolExecutor(1, "monai_chunked-write") if threaded else None
        self._waiting: deque[tuple[Future[None] | Future[bool], Callable[[], None]]] = deque()
        self._idle = True
        self._downloads = Downloads()

    def put(self, image: int, box: Box, chunk: torch.Tensor, written: Callable[[], None]) -> None:
        """Write a chunk; ``written`` is called in this thread when its memory is not needed any more."""
        if self._thread is None:
            self.writer.write(image, box, chunk)
            written()
            return
        self._wait(DEPTH - 1)
        future = self._thread.submit(self._write, image, box, chunk, self._downloads.ready(chunk))
        self._waiting.append((future, written))
        self._idle = False

    def poll(self) -> None:
        """Raise what went wrong so far, and tell the writer if no chunk waits."""
        self._wait(DEPTH)
        if self._thread is not None and not self._waiting and not self._idle:
            future = self._thread.submit(self.writer.idle)
            self._waiting.append((future, lambda: self._idled(future)))

    def finish(self) -> Any:
        """The result, when everything is written."""
        self._wait(0)
        self._stop()
        return self.writer.finish()

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._stop()
        self.writer.abandon()

    def _wait(self, most: int) -> None:
        """Until at most so many chunks wait."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0][0].done()):
            future, written = self._waiting.popleft()
            future.result()
            written()

    def _idled(self, future: Future[bool]) -> None:
        self._idle = future.result()

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _write(self, image: int, box: Box, chunk: torch.Tensor, ready: torch.cuda.Event | None) -> None:
        with torch.no_grad():
            self.writer.write(image, box, self._downloads.get(chunk, ready))
