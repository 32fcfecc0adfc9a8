"""Finds out, before the first window, whether all processes of a run see the folder that its results go to."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from monai_chunked.outputs.base import Metadata, Output, ResumableOutput

__all__ = ["Mark", "look", "marked", "unseen"]


PATIENCE = 10.0
"""Seconds in which a network file system shows what another machine has made."""


@dataclass(frozen=True)
class Mark:
    """An empty file in a folder that exists, where the first process is about to write.

    Attributes:
        name: of the file, which no other has.
        folder: of the first process, as it calls it.
        below: from that folder to the journal of the run, beside which results are.
        metadata: of each image, which names the results.
        host: of the first process.
    """

    name: str
    folder: str
    below: tuple[str, ...]
    metadata: tuple[Metadata, ...]
    host: str


@contextmanager
def marked(output: Output, metadata: tuple[Metadata, ...]) -> Iterator[Mark | None]:
    """A mark, which is removed at the end; ``None``: results of this output are sent to the others, or are at a URL.

    Raises:
        OSError: when the folder cannot be written to.
    """
    journal = _journal(output, metadata)
    if journal is None:
        yield None
        return
    folder = next(parent for parent in journal.parents if parent.exists())
    below = journal.relative_to(folder).parts
    with tempfile.NamedTemporaryFile(prefix=".monai_chunked-", dir=folder) as file:
        yield Mark(os.path.basename(file.name), str(folder), below, metadata, socket.gethostname())


def look(output: Output, mark: Mark) -> str:
    """What is wrong with where another process would open the results; empty: it sees the mark there."""
    here = f"on {socket.gethostname()}"
    try:
        journal = _journal(output, mark.metadata)
    except ValueError as error:  # such as of an image that the output needs and that is not there
        return f"{here}: {error}"
    if journal is None:
        return f"{here} has output={type(output).__name__}, which is in no such folder"
    folder = Path(*journal.parts[: -len(mark.below)])
    if journal.parts[-len(mark.below) :] != mark.below or not _appears(folder / mark.name):
        return f"{here} would look for it in {journal.parent}"
    return ""


def unseen(mark: Mark, said: Mapping[int, str]) -> FileNotFoundError | None:
    """What to raise; ``None``: all others see the mark.

    Args:
        mark: the one that was made.
        said: what :py:func:`look` says in each of the others, by their ranks.

    >>> mark = Mark("x", "/data", ("results", "scan.nii.journal"), ({},), "first")
    >>> print(unseen(mark, {1: "", 2: "on second would look for it in /home/results"}))  # doctest: +ELLIPSIS
    [Errno 2] process_group: rank 0 on first writes the result to a folder that not all ... see: rank 2 on second ...
    """
    missing = "; ".join(f"rank {rank} {text}" for rank, text in said.items() if text)
    if not missing:
        return None
    text = (
        f"process_group: rank 0 on {mark.host} writes the result to a folder that not all processes see: {missing}; "
        f"give each of them the same folder on a disk that all share, or an output in memory, such as output='cpu', "
        f"which is sent to all"
    )
    return FileNotFoundError(errno.ENOENT, text, str(Path(mark.folder, *mark.below[:-1])))


def _journal(output: Output, metadata: Sequence[Metadata]) -> Path | None:
    """The absolute path to the journal of a run, if results are opened by their names."""
    journal = output.journal(metadata) if isinstance(output, ResumableOutput) else None
    return None if journal is None else journal.absolute()


def _appears(path: Path) -> bool:
    """Whether there is such a file, or will be soon."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
        for folder in reversed(path.parents):
            with suppress(OSError):
                os.scandir(folder).close()  # has the system ask a server what is in there by now
    return True
