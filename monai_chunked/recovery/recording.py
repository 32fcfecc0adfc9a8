"""A writer that records which chunks are safe."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from monai_chunked.outputs.base import OutputWriter, ResumableWriter
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkId

__all__ = ["LONGEST_PAUSE", "PAUSE", "RecordingWriter", "crc_of"]

PAUSE = 20
"""The pause after chunks were made safe, in multiples of the time that it took."""

LONGEST_PAUSE = 30
"""Seconds; what was finished in the last of them may have to be predicted again after a crash."""


class RecordingWriter(OutputWriter):
    """Writes chunks, and records them when they are safe.

    Making chunks safe takes time, and less for each the more there are. So it is done now and then, and the pause after
    it is many times as long as it took.

    Args:
        writer: does the writing.
        head: index among the heads of the network.
        cuts: for each spatial dimension, where chunks begin, and the size.
        record: called with the CRC-32 of chunks that are safe.
    """

    def __init__(
        self,
        writer: ResumableWriter,
        head: int,
        cuts: Sequence[Sequence[int]],
        record: Callable[[Mapping[ChunkId, int]], None],
    ) -> None:
        self.writer = writer
        self.head = head
        self.record = record
        self._positions = [{start: position for position, start in enumerate(along)} for along in cuts]
        self._unrecorded: dict[ChunkId, int] = {}
        self._due = 0.0
        self._failed = False

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.writer.write(image, box, chunk)
        self._unrecorded[self._chunk(image, box)] = crc_of(chunk)
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
        if not self._failed:  # what could not be made safe may be gone, and the system says so only once
            with suppress(OSError):  # the run has failed already
                self._record()
        self.writer.abandon()

    def _record(self, last: bool = False) -> None:
        if not self._unrecorded:
            return  # and perhaps the writer is complete
        self._failed = True
        safe = self.writer.flush(last)
        chunks = list(self._unrecorded) if safe is None else [self._chunk(image, box) for image, box in safe]
        if chunks:
            self.record({chunk: self._unrecorded.pop(chunk) for chunk in chunks})
        self._failed = False

    def _chunk(self, image: int, box: Box) -> ChunkId:
        return ChunkId(image, self.head, tuple(at[side.start] for at, side in zip(self._positions, box)))


def crc_of(chunk: torch.Tensor) -> int:
    """CRC-32 of the values of a chunk."""
    values = chunk.detach().cpu().contiguous()
    data = values.as_strided((values.numel(),), (1,)).view(torch.uint8).numpy()
    return zlib.crc32(data.reshape(-1).data)
