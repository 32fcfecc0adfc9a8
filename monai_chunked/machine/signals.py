"""
Ctrl-C and SIGTERM, with which Slurm and ``docker stop`` end a process, in the middle of a run that writes to disk.

Both end it as an error does, so that what is finished is recorded, or removed where it cannot be gone on with, and both
end with a sentence that says so.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ["interruptible"]


logger = logging.getLogger(__name__)


class _Terminated(SystemExit):
    """The process ends as SIGTERM would end it, but for the signal."""


@contextmanager
def interruptible(journal: Path | None) -> Iterator[None]:
    """Let a run end well when it is interrupted.

    SIGTERM is caught only in the main thread, and only where nobody else does.

    Args:
        journal: of a run that can be resumed.

    Raises:
        SystemExit: with the status 143, after SIGTERM.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    catches = in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if catches:
        signal.signal(signal.SIGTERM, _terminator(os.getpid()))
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = (*error.args, *_goes_on(journal))  # the last line of what is printed
        raise
    except _Terminated:
        logger.warning("ended by SIGTERM%s", "".join(f"; {sentence}" for sentence in _goes_on(journal)))
        raise
    finally:
        if catches:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _goes_on(journal: Path | None) -> list[str]:
    if journal is None or not journal.exists():
        return []
    return [f"the same call goes on where this one stopped ({journal})"]


def _terminator(owner: int) -> Callable[[int, FrameType | None], NoReturn]:
    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # who asks again does not want to wait
        if os.getpid() != owner:  # a forked child has nothing to clean up
            os.kill(os.getpid(), number)
        raise _Terminated(128 + number)

    return terminate
