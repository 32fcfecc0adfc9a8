"""Whether a run can be resumed, and the record of it with what an earlier run left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path

from monai_chunked.machine.caller import warn_caller
from monai_chunked.machine.files import leaving_no_empty_folder
from monai_chunked.outputs.base import Metadata, Output, ResumableOutput
from monai_chunked.outputs.file_output import check_forgotten
from monai_chunked.recovery.alone import Alone
from monai_chunked.recovery.journal_record import JournalRecord
from monai_chunked.recovery.record import NoRecord, Overwrite, Record

__all__ = ["recovering"]


@contextmanager
def recovering(
    output: Output,
    metadata: tuple[Metadata, ...],
    *,
    fingerprint: Callable[[], tuple[Mapping[str, str], Sequence[str]]] | None,
    overwrite: Overwrite,
    check: Callable[[tuple[Metadata, ...]], None],
) -> Iterator[tuple[Record, tuple[Metadata, ...]]]:
    """The record of a run with what an earlier one left, and metadata in which every image has a name.

    An image without a name is called by the digest of its voxels.

    Args:
        output: where results go.
        metadata: of each image.
        fingerprint: a text for each part that the result depends on, and what cannot be compared. Asked for only where
            a run can be resumed. ``None``: nobody can know what it depends on.
        overwrite: start afresh whatever is there, or what has changed.
        check: called with the metadata that name the results, before anything is written; raises if they may not be.

    Yields:
        The record. Nothing is left in it, and nothing is recorded, if the output does not allow a run to be resumed, or
        if something that the result depends on cannot be compared.

    Raises:
        FileExistsError: when something differs from an earlier run, or cannot be compared with it.
        BlockingIOError: when another run is writing the same results.
    """
    if not isinstance(output, ResumableOutput) or output.journal(metadata) is None:
        check(metadata)
        with leaving_no_empty_folder(output.folders(metadata)):
            yield NoRecord(), metadata
        return
    texts, unknown = fingerprint() if fingerprint is not None else ({}, [])
    if unknown:
        warn_caller(
            f"this run cannot be resumed, because there is no telling whether {'; '.join(unknown)} will be the same; "
            f"run_id= vouches for all of it, network_id= for the network",
        )
    if unknown or fingerprint is None:
        check(metadata)
        with leaving_no_empty_folder(output.folders(metadata)), _alone(output, metadata, bool(overwrite)) as earlier:
            yield NoRecord(earlier=earlier), metadata
        return
    endings = [""] if len(metadata) == 1 else [f"-{k}" for k in range(len(metadata))]
    content = blake2b(texts["input"].encode(), digest_size=4).hexdigest()
    named = tuple(
        image if image.get("filename_or_obj") else {**image, "filename_or_obj": f"image-{content}{ending}"}
        for image, ending in zip(metadata, endings)
    )
    check(named)
    path = output.journal(named)
    assert path is not None
    with (
        leaving_no_empty_folder(output.folders(named)),
        closing(JournalRecord(path, len(named), texts, overwrite)) as record,
    ):
        yield record, named


@contextmanager
def _alone(output: ResumableOutput, metadata: Sequence[Metadata], overwrite: bool) -> Iterator[Path | None]:
    """Let no other run write the same results; yields the journal of an earlier one that did, which may be replaced."""
    path = output.journal(metadata)
    if path is None or (output.numbers_unnamed and not metadata[0].get("filename_or_obj")):
        yield None
        return
    with closing(Alone(path)):
        check_forgotten(path, overwrite)
        yield path
