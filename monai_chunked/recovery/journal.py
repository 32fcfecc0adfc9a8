"""
The journal beside a result on disk: what the run depends on, and which chunks of it are safe.

A text file. Each line is one record in JSON behind its CRC-32 in eight hexadecimal digits; the first is the header.
What is added is on the disk before more is. Whatever ends the process or the machine, what comes behind the last whole
line is dropped. After a power cut that may be zeros, where the file had its new size but not yet all of its bytes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import zlib
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from monai_chunked.machine.files import beside, make_folder, new_file, rename, sync, write_all

__all__ = ["FORMAT", "Journal"]


logger = logging.getLogger(__name__)


FORMAT = 3
"""Version of the records; a run is resumed only by the version that began it."""


NOT_WRITTEN = bytes(16)
"""Zeros where nothing was written. No record has as many, even where one of its bytes is damaged."""


class Journal:
    """Records of one run, in the order in which they were made.

    Args:
        path: of the file.
        records: what is in it; the first is the header.

    Attributes:
        records: all of the file, also those that have been added.
    """

    def __init__(self, path: Path, records: list[dict[str, Any]]) -> None:
        self.path = path
        self.records = records
        self._lock = threading.Lock()
        self._error: OSError | None = None

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        """A new file, in place of one that is there; it has its name when the header is safe."""
        make_folder(path.parent)
        record = {"format": FORMAT, **header}
        new = beside(path, ".new")
        try:
            with new_file(new) as file:
                _append(file, record)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        rename(new, path)
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
        *lines, _ = data.split(b"\n")
        records: list[dict[str, Any]] = []
        whole = 0
        for line in lines:
            if line[:9] != b"%08x " % zlib.crc32(line[9:]):
                if NOT_WRITTEN in data[whole:]:
                    break
                raise _damaged(path, f"line {len(records) + 1} is not what was written")
            records.append(json.loads(line[9:]))
            whole += len(line) + 1
        if not records:
            raise _damaged(path, "its header is missing")
        if whole < len(data):
            logger.warning("%s ends in the middle of a record, which is dropped", path)
            os.truncate(path, whole)
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
                with self.path.open("ab", buffering=0) as file:
                    _append(file, *records)
            except OSError as error:
                reason = f"{error.strerror}; the journal could not be written"
                self._error = OSError(error.errno, reason, str(self.path))
                raise self._error from error
            self.records.extend(records)


def _append(file: FileIO, *records: Mapping[str, Any]) -> None:
    texts = [json.dumps(record, sort_keys=True).encode() for record in records]
    write_all(file, memoryview(b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts)))
    sync(file)


def _damaged(path: Path, how: str) -> OSError:
    return OSError(errno.EIO, f"the journal is damaged: {how}; overwrite=True starts afresh", str(path))
