"""No two runs write the same result at the same time."""

from __future__ import annotations

import errno
from pathlib import Path

from filelock import FileLock, Timeout

from monai_chunked.machine.files import beside, make_folder

__all__ = ["Alone"]


class Alone:
    """From here until it is closed no other run can have the same journal, and so the same results.

    Args:
        journal: of the run, or what it would be called.

    Raises:
        BlockingIOError: when another run is writing there.
    """

    def __init__(self, journal: Path) -> None:
        make_folder(journal.parent)
        self._lock = FileLock(beside(journal, ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            reason = "another run is writing this result; wait for it, or choose another output_dir"
            raise BlockingIOError(errno.EAGAIN, reason, str(journal)) from None

    @property
    def lasts(self) -> bool:
        """Whether it has not been closed yet."""
        return self._lock.is_locked

    def close(self) -> None:
        """Let others have the journal."""
        if self.lasts:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
