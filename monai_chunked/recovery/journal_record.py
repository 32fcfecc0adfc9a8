"""The record of a run: what an earlier one left is found in it, and what this one adds is written down."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_chunked.machine.caller import warn_caller
from monai_chunked.outputs.base import Form, Output, OutputWriter, Result, ResumableOutput, ResumableWriter
from monai_chunked.plan.boxes import Box, box_text
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.recovery.alone import Alone
from monai_chunked.recovery.differences import differences, remedy
from monai_chunked.recovery.journal import FORMAT, Journal
from monai_chunked.recovery.left import NOTHING_LEFT, Cuts, Left
from monai_chunked.recovery.record import Overwrite
from monai_chunked.recovery.recording import RecordingWriter, crc_of

__all__ = ["JournalRecord"]


logger = logging.getLogger(__name__)


class JournalRecord:
    """A journal of what is safe, which begins with what an earlier run with the same fingerprint left there.

    From here until it is closed no other run can have the same journal, and so the same results.

    Args:
        path: of the journal.
        images: number of images in the input batch.
        fingerprint: what the result depends on.
        overwrite: start afresh whatever is there; ``"changed"``: only if it is of another fingerprint.

    Raises:
        FileExistsError: when an earlier run had another fingerprint; the message says what differs.
        BlockingIOError: when another run is writing there.
        OSError: when the journal is damaged.
    """

    def __init__(self, path: Path, images: int, fingerprint: Mapping[str, str], overwrite: Overwrite) -> None:
        self.images = images
        self.fingerprint = dict(fingerprint)
        self.path = path
        self.replaces = overwrite is not False
        self.left = NOTHING_LEFT
        self._results: dict[int, Form] = {}
        self._begun = False
        self._alone = Alone(path)
        try:
            # the journal of an earlier run, until this one begins to write
            self._journal = None if overwrite is True else self._earlier(overwrite)
            if self._journal is not None:
                self.replaces |= self._journal.records[0].get("replaces", False)
                self.left = Left.of_records(self._journal.records[1:])
                self._results.update(self.left.results)
        except BaseException:
            self.close()
            raise

    def _earlier(self, overwrite: Overwrite) -> Journal | None:
        """The journal of a run with this fingerprint; another one is refused, unless it may be replaced."""
        replaced = overwrite == "changed"
        try:
            journal = Journal.read(self.path)
        except OSError:
            if not replaced or not self.path.is_file():
                raise
            logger.warning("%s is damaged, so this result starts afresh", self.path)
            return None
        if journal is None:
            return None
        header = journal.records[0]
        if header.get("format") != FORMAT:
            reason = "another version of monai_chunked began or finished this result, and wrote down other things of it"
        else:
            differ = differences(header["fingerprint"], self.fingerprint)
            if not differ:
                return journal
            reason = (
                f"an earlier run with other settings began or finished this result; what differs: {', '.join(differ)}"
                f"{remedy(header['fingerprint'], self.fingerprint)}"
            )
        if replaced:
            logger.info("%s starts afresh: %s", self.path, reason)
            return None
        advice = "overwrite=True starts afresh, overwrite='changed' does where something differs, "
        advice += "another output_dir keeps both"
        raise FileExistsError(errno.EEXIST, f"{reason}; {advice}", str(self.path))

    @property
    def journal(self) -> Path | None:
        return self.path

    def load(self, output: Output, results: Sequence[Result]) -> list[Any] | None:
        """The results, if an earlier run finished them and nobody has removed them since.

        Raises:
            OSError: when another run has replaced the result of one of several images.
        """
        if not self.left.complete:
            return None
        assert isinstance(output, ResumableOutput)
        try:
            loaded = [output.load(result) for result in results]
        except FileNotFoundError:
            self.start_afresh()
            return None
        for head, result in enumerate(results):
            try:
                self._compare_others(head, result.cuts, loaded[head])
            except OSError as error:
                if not self.replaces:
                    raise _advised(error) from error
                self.start_afresh()
                return None
        name = self.path.with_name(self.path.name.removesuffix(".journal"))
        warn_caller(
            f"{name} is returned as an earlier run finished it on {self.left.complete}, without running the network: "
            f"nothing that it depends on has changed; overwrite=True starts afresh",
        )
        return loaded

    def start_afresh(self) -> None:
        """Forget what an earlier run left."""
        self._journal = None
        self.path.unlink(missing_ok=True)
        self.left = NOTHING_LEFT
        self._results.clear()

    def begin(self, heads: Heads, cuts: Sequence[Cuts]) -> None:
        """The first batch is there: record the heads of the network, or check that they are as they were.

        Raises:
            ValueError: when they differ.
        """
        if self.left.heads is None:
            self._begun = True
            self._journal = Journal.create(self.path, {"fingerprint": self.fingerprint, "replaces": self.replaces})
            self._journal.add({"keys": heads.keys, "heads": heads.each, "cuts": cuts})
        elif heads.each != self.left.heads.each:
            raise ValueError(
                f"the network returns {list(heads.each)} but returned {list(self.left.heads.each)} in the run that is "
                f"resumed; overwrite=True starts afresh"
            )

    def writer(self, number: int, output: Output, result: Result) -> OutputWriter:
        """Start a result, or go on with the one that an earlier run left, and record each chunk that is safe.

        Args:
            number: of the head of the network.
            output: makes the writer.
            result: what is to be written.

        Raises:
            OSError: when the files or a chunk in them are not what was recorded.
        """
        assert isinstance(output, ResumableOutput)  # or there would be no journal
        channels, dtype = form = Form(result.shape[1], result.dtype)
        if number not in self._results:
            writer = output.create(result)
            self._results[number] = form
            self._add({"result": number, "channels": channels, "dtype": str(dtype).removeprefix("torch.")})
            return self._recording(writer, number, result.cuts)
        if self._results[number] != form:
            raise ValueError(
                f"the {result.name} has {channels} channels of {dtype} but had {self._results[number]} in the run that "
                f"is resumed; overwrite=True starts afresh"
            )
        try:
            writer = output.resume(result)
            try:
                self._compare(number, writer, result.cuts)
            except BaseException:
                writer.abandon()
                raise
        except OSError as error:
            raise _advised(error) from error
        return self._recording(writer, number, result.cuts)

    def _recording(self, writer: ResumableWriter, number: int, cuts: Cuts) -> OutputWriter:
        return RecordingWriter(writer, number, cuts, self._record)

    def _compare(self, head: int, writer: ResumableWriter, cuts: Cuts) -> None:
        """Check that the files hold the chunks that were recorded."""
        done = {chunk: crc for chunk, crc in self.left.written.items() if chunk.head == head}
        if writer.complete:
            if len(done) < self.images * prod(len(along) - 1 for along in cuts):
                raise OSError(errno.EIO, "the journal lacks chunks of a result that is complete", str(self.path))
            return
        for chunk, crc in done.items():
            box = _box_of(chunk, cuts)
            self._check(chunk, box, crc_of(writer.read(chunk.image, box)), crc)

    def _compare_others(self, head: int, cuts: Cuts, images: Any) -> None:
        """Check the results of all images but the first, which a run with a journal of their own may have replaced."""
        for chunk, crc in self.left.written.items():
            if chunk.head == head and chunk.image > 0 and isinstance(images, list):
                box = _box_of(chunk, cuts)
                values = images[chunk.image][(slice(None), *box)]
                self._check(chunk, box, crc_of(torch.as_tensor(np.asarray(values))), crc)

    def _check(self, chunk: ChunkId, box: Box, crc: int, recorded: int) -> None:
        if crc != recorded:
            reason = f"the chunk of image {chunk.image} at {box_text(box)} is not what was written"
            raise OSError(errno.EIO, reason, str(self.path))

    def _record(self, chunks: Mapping[ChunkId, int]) -> None:
        """Record that chunks are safe, with their CRC-32."""
        self._add(*({"chunk": chunk, "crc": crc} for chunk, crc in chunks.items()))

    def finish(self) -> None:
        """Record that all results have their names."""
        self._add({"complete": datetime.now().astimezone().isoformat(" ", "seconds")})

    def close(self) -> None:
        """Let others have the journal, if it says anything of a result."""
        if self._alone.lasts:
            if self._begun and not self._results:
                self.path.unlink(missing_ok=True)
            self._alone.close()

    def _add(self, *records: dict[str, Any]) -> None:
        assert self._journal is not None
        self._journal.add(*records)


def _advised(error: OSError) -> OSError:
    return OSError(error.errno or errno.EIO, f"{error.strerror or error}; overwrite=True starts afresh", error.filename)


def _box_of(chunk: ChunkId, cuts: Cuts) -> Box:
    return tuple(slice(along[k], along[k + 1]) for along, k in zip(cuts, chunk.position))
