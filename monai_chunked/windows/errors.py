"""Errors of the input, the network and the user's callables say at which windows they happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from monai_chunked.plan.boxes import box_text
from monai_chunked.plan.window_grid import Window

__all__ = ["add_note", "name_windows", "windows_text"]


@contextmanager
def name_windows(windows: Sequence[Window], doing: str) -> Iterator[None]:
    """Adds the position of the windows to an error, and leaves its type as it is."""
    try:
        yield
    except Exception as error:
        add_note(error, f"(while {doing} {windows_text(windows)})")
        raise


def add_note(error: Exception, note: str) -> None:
    """Say more at the end of an error's message, and leave its type as it is."""
    if len(error.args) == 1 and error.args[0] == str(error):
        error.args = (f"{error} {note}",)
    elif hasattr(error, "add_note"):  # Python >= 3.11; the arguments are something else than a message
        error.add_note(note)


def windows_text(windows: Sequence[Window]) -> str:
    """Windows as messages show them."""
    places = "; ".join(f"image {window.image} {box_text(window.box)}" for window in windows)
    return f"{'window' if len(windows) == 1 else 'windows'} {places}"
