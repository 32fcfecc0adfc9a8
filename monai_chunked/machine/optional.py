"""Packages that may not be there: nothing is of their types before somebody has imported them."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_of"]


def is_of(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a type of a package.

    >>> is_of(3, "no_such_package", "Array"), is_of(3, "builtins", "int")
    (False, True)
    """
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
