"""Files that are mapped to memory: which of them an array shows, and which the memory of any tensor belongs to."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MappedFiles", "map_for_writing", "map_under", "mapped_under"]


def mapped_under(array: Any) -> np.memmap | None:
    """The mapped file that an array is a view of, also where that is a private copy."""
    while array is not None and not (isinstance(array, np.memmap) and getattr(array, "_mmap", None) is not None):
        array = getattr(array, "base", None)
    return array if array is not None and array.filename is not None else None


def map_under(array: Any) -> np.memmap | None:
    """The mapped file whose content an array shows; a private copy of one is memory like any other."""
    mapped = mapped_under(array)
    return mapped if mapped is not None and mapped.mode != "c" else None


def map_for_writing(array: Any) -> np.memmap | None:
    """The mapped file that an array shows and that its owner may change."""
    mapped = map_under(array) if isinstance(array, np.ndarray) else None
    return mapped if mapped is not None and mapped.mode != "r" else None


class MappedFiles:
    """The files that are mapped into this process, as they are now. Only Linux tells; elsewhere there are none."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._parts: list[tuple[int, str]] = []  # end and path
        maps = Path("/proc/self/maps")
        if not maps.exists():
            return
        for line in maps.read_text(errors="surrogateescape").splitlines():
            borders, *others = line.split(maxsplit=5)
            if len(others) == 5 and others[4].startswith("/"):
                start, end = (int(border, 16) for border in borders.split("-"))
                self._starts.append(start)
                self._parts.append((end, others[4]))

    def of(self, address: int) -> str | None:
        """The path of the file that an address belongs to; ``None``: it is other memory, or the file has no name."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        end, path = self._parts[place]
        return path if address < end and not path.endswith(" (deleted)") else None
