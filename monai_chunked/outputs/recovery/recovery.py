"""Going on where an earlier run stopped: what it left, and a record of what this one adds."""

from __future__ import annotations

import errno
import itertools
import logging
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from monai_chunked.inference.fingerprint.fingerprint import differences, fingerprint_of
from monai_chunked.inputs.source import metadata_of
from monai_chunked.machine.files import leaving_no_empty_folder, make_folder
from monai_chunked.outputs.base import Metadata, Output, OutputWriter, Result
from monai_chunked.outputs.recovery.journal import FORMAT, Journal
from monai_chunked.outputs.recovery.recording import _crc, _RecordingWriter
from monai_chunked.plan.boxes import Corner
from monai_chunked.plan.heads import RecordedOutput

__all__ = ["Overwrite", "Recovery", "recovering"]


logger = logging.getLogger(__name__)


Overwrite = bool | Literal["changed"]


class Recovery:
    """What an earlier run with the same fingerprint left, and a record of what this one adds.

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

    Attributes:
        keys: of the outputs where the network returns a dict.
        outputs: of the network, as soon as they are known.
        results: channels and dtype of the results that have been started, by the number of their output.
        done: CRC-32 of the chunks that are safe, by where they begin, for each output.
        complete: when the earlier run finished; ``None``: it did not.
    """

    def __init__(self, path: Path, images: int, fingerprint: Mapping[str, str], overwrite: Overwrite) -> None:
        self.images = images
        self.fingerprint = dict(fingerprint)
        self.path = path
        make_folder(path.parent)
        self._begun = False
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            reason = "another run is writing this result; wait for it, or choose another output_dir"
            raise BlockingIOError(errno.EAGAIN, reason, str(path)) from None
        try:
            self._journal = None if overwrite is True else self._read(overwrite)
            if self._journal is None:
                path.unlink(missing_ok=True)
            self._restore()
        except BaseException:
            self.close()
            raise

    def _read(self, overwrite: Overwrite) -> Journal | None:
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
            found = differences(header["fingerprint"], self.fingerprint)
            if not found:
                return journal
            reason = (
                f"an earlier run with other settings began or finished this result; what differs: {', '.join(found)}"
            )
            if any(name.startswith("network") for name in found) and "network_id" not in self.fingerprint:
                reason += " (network_id= vouches for all of the network but its weights)"
        if replaced:
            logger.info("%s starts afresh: %s", self.path, reason)
            return None
        advice = "overwrite=True starts afresh, overwrite='changed' does where something differs, "
        advice += "another output_dir keeps both"
        raise FileExistsError(errno.EEXIST, f"{reason}; {advice}", str(self.path))

    def _restore(self) -> None:
        self.keys: list[Hashable] | None = None
        self.outputs: list[RecordedOutput] = []
        self.results: dict[int, tuple[int, torch.dtype]] = {}
        self.done: dict[int, dict[Corner, int]] = {}
        self.complete: str | None = None
        if self._journal is None:
            return
        for record in self._journal.records[1:]:
            if "outputs" in record:
                self.keys = record["keys"]
                self.outputs = [_output_of(output) for output in record["outputs"]]
            elif "result" in record:
                self.results[record["result"]] = (record["channels"], getattr(torch, record["dtype"]))
            elif "chunk" in record:
                self.done.setdefault(record["output"], {})[tuple(record["chunk"])] = record["crc"]
            elif "complete" in record:
                self.complete = record["complete"]

    @property
    def resumed(self) -> bool:
        """Whether anything of an earlier run can be used."""
        return bool(self.results)

    def start_afresh(self) -> None:
        """Forget what an earlier run left."""
        self._journal = None
        self.path.unlink(missing_ok=True)
        self._restore()

    def begin(self, keys: list[Hashable] | None, outputs: Sequence[RecordedOutput]) -> None:
        """The first batch is there: record what the outputs of the network are, before any of them is started."""
        self.keys, self.outputs = keys, list(outputs)
        self._begun = True
        self._journal = Journal.create(self.path, {"fingerprint": self.fingerprint})
        self._journal.add({"keys": keys, "outputs": [output._asdict() for output in outputs]})

    def writer(self, number: int, output: Output, result: Result) -> OutputWriter:
        """Start a result, or go on with the one that an earlier run left, and record each chunk that is safe.

        Args:
            number: of the output of the network.
            output: makes the writer.
            result: what is to be written.

        Raises:
            OSError: when the files or a chunk in them are not what was recorded.
        """
        channels, dtype = result.shape[1], result.dtype
        if number not in self.results:
            writer = output.create(result)
            self.results[number] = channels, dtype
            self._add({"result": number, "channels": channels, "dtype": str(dtype).removeprefix("torch.")})
            return _RecordingWriter(writer, self, number)
        if self.results[number] != (channels, dtype):
            raise ValueError(
                f"the {result.name} has {channels} channels of {dtype} but had {self.results[number]} in the run that "
                f"is resumed; overwrite=True starts afresh"
            )
        try:
            writer = output.resume(result)
            try:
                self._compare(number, writer)
            except BaseException:
                writer.abandon()
                raise
        except OSError as error:
            reason = f"{error.strerror or error}; overwrite=True starts afresh"
            raise OSError(error.errno or errno.EIO, reason, error.filename) from error
        return _RecordingWriter(writer, self, number)

    def _compare(self, output: int, writer: OutputWriter) -> None:
        """Files are what was recorded."""
        done = self.done.setdefault(output, {})
        cuts = self.outputs[output].cuts
        if writer.complete:
            if len(done) < self.images * prod(len(c) - 1 for c in cuts):
                raise OSError(errno.EIO, "the journal lacks chunks of a result that is complete", str(self.path))
            return
        ends = [dict(itertools.pairwise(c)) for c in cuts]
        for (image, *starts), crc in done.items():
            box = tuple(slice(start, end[start]) for start, end in zip(starts, ends))
            if _crc(writer.read(image, box)) != crc:
                at = ", ".join(f"{s.start}:{s.stop}" for s in box)
                reason = f"the chunk of image {image} at [{at}] is not what was written"
                raise OSError(errno.EIO, reason, str(self.path))

    def record(self, output: int, chunks: Mapping[Corner, int]) -> None:
        """Chunks are safe: where they begin, and their CRC-32."""
        self._add(*({"output": output, "chunk": list(corner), "crc": crc} for corner, crc in chunks.items()))

    def finish(self) -> None:
        """All results have their names."""
        self._add({"complete": datetime.now().astimezone().isoformat(" ", "seconds")})

    def close(self) -> None:
        """Let others have the journal, if it says anything of a result."""
        if self._lock.is_locked:
            if self._begun and not self.results:
                self.path.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def _add(self, *records: dict[str, Any]) -> None:
        assert self._journal is not None
        self._journal.add(*records)


def _output_of(record: Mapping[str, Any]) -> RecordedOutput:
    cuts = tuple(map(tuple, record["cuts"]))
    return RecordedOutput(record["name"], record["channels"], tuple(record["prediction_size"]), cuts)


@contextmanager
def recovering(
    output: Output,
    inputs: Any,
    network: Any,
    ids: tuple[str | None, str | None],
    settings: Mapping[str, Any],
    overwrite: Overwrite,
) -> Iterator[tuple[Recovery | None, tuple[Metadata, ...]]]:
    """What is left of an earlier run for the same result, and metadata in which every image has a name.

    An image without a name is called by the digest of its voxels.

    Args:
        output: where results go.
        inputs: ``(B, C, *spatial)``.
        network: what is called with windows.
        ids: the user's names for the network and for the run.
        settings: all else that the result depends on.
        overwrite: start afresh whatever is there, or what has changed.

    Yields:
        ``None`` in the place of the first if the output does not allow a run to be resumed, or if something that the
        result depends on cannot be compared.

    Raises:
        FileExistsError: when something differs from an earlier run, or cannot be compared with it.
    """
    metadata = metadata_of(inputs)
    if output.journal(metadata) is None:
        with leaving_no_empty_folder(output.folders(metadata)):
            yield None, metadata
        return
    kind = {name: value for name, value in vars(output).items() if name not in ("output_dir", "data_root_dir")}
    settings = {**settings, "output": (type(output), kind)}
    fingerprint, unknown = fingerprint_of(inputs, metadata, network, *ids, settings)
    if unknown:
        warnings.warn(
            f"this run cannot be resumed, because there is no telling whether {'; '.join(unknown)} will be the same; "
            f"run_id= vouches for all of it, network_id= for the network",
            stacklevel=6,
        )
        with leaving_no_empty_folder(output.folders(metadata)):
            _forget(output, metadata, overwrite)
            yield None, metadata
        return
    endings = [""] if len(metadata) == 1 else [f"-{k}" for k in range(len(metadata))]
    content = blake2b(fingerprint["input"].encode(), digest_size=4).hexdigest()
    named = tuple(
        each if each.get("filename_or_obj") else {**each, "filename_or_obj": f"image-{content}{ending}"}
        for each, ending in zip(metadata, endings)
    )
    path = output.journal(named)
    assert path is not None
    with leaving_no_empty_folder(output.folders(named)):
        recovery = Recovery(path, len(named), fingerprint, overwrite)
        try:
            yield recovery, named
        finally:
            recovery.close()


def _forget(output: Output, metadata: Sequence[Metadata], overwrite: Overwrite) -> None:
    """A run without a journal must not leave its result beside the journal of another one."""
    path = output.journal(metadata)
    if path is None or not path.exists() or not metadata[0].get("filename_or_obj"):
        return
    if not overwrite:
        reason = "an earlier run began or finished this result, and this one cannot be compared with it"
        advice = "overwrite=True starts afresh, another output_dir keeps both"
        raise FileExistsError(errno.EEXIST, f"{reason}; {advice}", str(path))
    Recovery(path, len(metadata), {}, overwrite=True).close()
