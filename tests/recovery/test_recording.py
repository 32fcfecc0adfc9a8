"""Chunks are made safe several at a time, soon, and all of them in the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_chunked import (
    Result,
    ResumableOutput,
    ResumableWriter,
)
from monai_chunked.chunks.write_behind import WriteBehind
from monai_chunked.plan.heads import Heads
from monai_chunked.recovery.journal import Journal
from monai_chunked.recovery.journal_record import JournalRecord
from monai_chunked.recovery.recording import PAUSE


class SlowDisk(ResumableOutput):
    """Takes its time to make chunks safe, and says when it was asked to; may hold back every other chunk."""

    def __init__(self, holding: bool) -> None:
        self.holding = holding
        self.flushed: list[int] = []

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def journal(self, metadata: Any) -> None:
        return None

    def create(self, result: Result) -> SlowWriter:
        return SlowWriter(self)

    def resume(self, result: Result) -> SlowWriter:
        raise AssertionError("no run is gone on with")

    load = resume


class SlowWriter(ResumableWriter):
    def __init__(self, output: SlowDisk) -> None:
        self.output = output
        self.written: list[Any] = []
        self.all = 0

    def write(self, image: int, box: Any, chunk: torch.Tensor) -> None:
        self.written.append((image, box))
        self.all += 1
        time.sleep(0.002)

    def flush(self, last: bool = False) -> Any:
        time.sleep(0.02)
        self.output.flushed.append(self.all)
        kept = self.written[len(self.written) // 2 :] if self.output.holding and not last else []
        safe = self.written[: len(self.written) - len(kept)]
        self.written = kept
        return safe if self.output.holding else None

    def read(self, image: int, box: Any) -> torch.Tensor:
        raise AssertionError("no run is gone on with")

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("holding", [False, True])
@pytest.mark.parametrize("end", ["finish", "abandon"])
def test_chunks_are_made_safe_several_at_a_time_and_all_of_them_in_the_end(
    holding: bool, end: str, tmp_path: Path
) -> None:
    output, cuts = SlowDisk(holding), (tuple(range(101)),)
    begun = JournalRecord(tmp_path / "journal", 1, {}, overwrite=False)
    begun.begin(Heads.of([(1, 1)]), [cuts])
    writer = begun.writer(0, output, Result("prediction", (1, 1, 100), torch.float32, cuts, ({},)))
    start = time.monotonic()
    for k in range(100):
        writer.write(0, (slice(k, k + 1),), torch.zeros(1, 1))
    seconds = time.monotonic() - start
    assert output.flushed[0] == 1  # nothing is known of the disk before
    assert len(output.flushed) <= 2 + seconds / (PAUSE * 0.02)
    getattr(writer, end)()
    assert output.flushed[-1] == 100
    begun.close()
    recorded = [record["chunk"][2][0] for record in Journal.read(tmp_path / "journal").records if "chunk" in record]
    assert len(recorded) == len(set(recorded))
    assert len(recorded) == 100 or (holding and end == "abandon" and 50 <= len(recorded) < 100)


def test_chunks_are_recorded_though_no_other_comes(tmp_path: Path) -> None:
    output, cuts = SlowDisk(holding=False), (tuple(range(11)),)
    begun = JournalRecord(tmp_path / "journal", 1, {}, overwrite=False)
    begun.begin(Heads.of([(1, 1)]), [cuts])
    result = Result("prediction", (1, 1, 10), torch.float32, cuts, ({},))
    behind = WriteBehind(begun.writer(0, output, result), threaded=True)
    for k in range(5):
        behind.put(0, (slice(k, k + 1),), torch.zeros(1, 1), lambda: None)
    limit = time.monotonic() + 300
    while output.flushed[-1:] != [5]:
        assert time.monotonic() < limit
        time.sleep(0.005)
        behind.poll()  # as before each window
    behind.abandon()
    begun.close()
    assert sum("chunk" in record for record in Journal.read(tmp_path / "journal").records) == 5
