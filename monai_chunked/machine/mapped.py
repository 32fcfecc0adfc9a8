"""Which file memory belongs to: tensors and arrays over mapped files do not say it, the system does."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

__all__ = ["MappedFiles"]


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
