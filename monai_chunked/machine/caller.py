"""Warnings that point at the line of whoever called the package, however deep in it they arise."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn_caller"]

INSIDE = ("monai_chunked.", "monai.engines.", "ignite.", "contextlib")
"""Modules whose lines tell a user nothing."""


def warn_caller(message: str) -> None:
    """A ``UserWarning`` at the first line on the way here that is not in this package or in an engine."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
