"""
The journal beside a result on disk: what the run depends on, and which chunks of it are safe.

A text file. Each line is one record in JSON behind its CRC-32 in eight hexadecimal digits; the first is the header, and
what is added is on the disk before more is. Whatever ends the process or the machine, what comes behind the last whole
line is dropped.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "Journal"]

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of the records; a run is resumed only by the version that began it."""


class Journal:
    """Records of one run, in the order in which they were made.

    Args:
        path: of the file.
        records: what is in it; the first is the header.

    Attributes:
        records: as above, with those that have been added.
    """

    def __init__(self, path: Path, records: list[dict[str, Any]]) -> None:
        self.path = path
        self.records = records
        self._lock = threading.Lock()
        self._error: OSError | None = None

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        """A new file, in place of one that is there; it has its name when the header is safe."""
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, **header}
        new = path.with_name(path.name + ".new")
        with new.open("wb") as file:
            _append(file, record)
        new.replace(path)
        _sync_folder(path.parent)
        return cls(path, [record])

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """The journal that an earlier run left; ``None`` if there is none.

        A record that was cut off is dropped, and a warning is logged.

        Raises:
            OSError: when the file is damaged.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        *lines, rest = data.split(b"\n")
        records = []
        for number, line in enumerate(lines, start=1):
            if line[:9] != b"%08x " % zlib.crc32(line[9:]):
                raise _damaged(path, f"line {number} is not what was written")
            records.append(json.loads(line[9:]))
        if not records:
            raise _damaged(path, "its header is missing")
        if rest:
            logger.warning("%s ends in the middle of a record, which is dropped", path)
            os.truncate(path, len(data) - len(rest))
        return cls(path, records)

    def add(self, *records: dict[str, Any]) -> None:
        """Return when the records are safe. From any thread.

        Raises:
            OSError: when it could not be written, now or before: nothing may follow a record that was cut off.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                with self.path.open("ab") as file:
                    _append(file, *records)
            except OSError as error:
                self._error = OSError(
                    error.errno, f"{error.strerror}; the journal could not be written", str(self.path)
                )
                raise self._error from error
            self.records.extend(records)


def _append(file: Any, *records: Mapping[str, Any]) -> None:
    texts = [json.dumps(record, sort_keys=True).encode() for record in records]
    file.write(b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts))
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """So that the names in a folder survive a crash too; not every system can open a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, how: str) -> OSError:
    return OSError(errno.EIO, f"the journal is damaged: {how}; overwrite=True starts afresh", str(path))
