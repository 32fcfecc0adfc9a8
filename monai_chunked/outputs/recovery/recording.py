"""A writer that records what is safe."""

from __future__ import annotations

import time
import zlib
from contextlib import suppress
from typing import Any

import torch

from monai_chunked.outputs.base import OutputWriter
from monai_chunked.outputs.recovery.recovery import Recovery
from monai_chunked.plan.boxes import Box, Corner

__all__ = ["_RecordingWriter", "_crc"]


PAUSE = 20
"""Times what it took to make chunks safe, until those written meanwhile are made safe."""


LONGEST_PAUSE = 30
"""Seconds; what was finished in the last of them may have to be predicted again after a crash."""


class _RecordingWriter(OutputWriter):
    """Writes chunks, and records them when they are safe.

    This takes time, and the less the more of them there are. So it is done every now and then, with a pause after it
    of many times what it took.
    """

    def __init__(self, writer: OutputWriter, recovery: Recovery, output: int) -> None:
        self.writer = writer
        self.recovery = recovery
        self.output = output
        self._unrecorded: dict[Corner, int] = {}
        self._due = 0.0
        self._failed = False

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.writer.write(image, box, chunk)
        self._unrecorded[_corner(image, box)] = _crc(chunk)
        self.idle()

    def idle(self) -> bool:
        start = time.monotonic()
        if start >= self._due and self._unrecorded:
            self._record()
            end = time.monotonic()
            self._due = end + min(PAUSE * (end - start), LONGEST_PAUSE)
        return not self._unrecorded

    def finish(self) -> Any:
        self._record(last=True)
        return self.writer.finish()

    def abandon(self) -> None:
        if not self._failed:  # what could not be made safe once may be gone, though the system says no more about it
            with suppress(OSError):  # the run has failed already
                self._record()
        self.writer.abandon()

    def _record(self, last: bool = False) -> None:
        if not self._unrecorded:
            return  # and perhaps the writer is complete
        self._failed = True
        safe = self.writer.flush(last)
        self._failed = False
        corners = list(self._unrecorded) if safe is None else [_corner(*each) for each in safe]
        if corners:
            self.recovery.record(self.output, {corner: self._unrecorded.pop(corner) for corner in corners})


def _corner(image: int, box: Box) -> Corner:
    return (image, *(s.start for s in box))


def _crc(chunk: torch.Tensor) -> int:
    data = chunk.detach().cpu().contiguous().view(torch.uint8).numpy()
    return zlib.crc32(data.reshape(-1).data)
