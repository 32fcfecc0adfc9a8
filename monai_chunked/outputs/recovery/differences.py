"""What two fingerprints differ in. A fingerprint has a text for each part that a result depends on."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["differences"]

SHORT = 32
"""Characters; what is longer is said by name only."""


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What two fingerprints differ in: short values as they were and are, long ones by name.

    >>> differences({"overlap": "0.25", "input": "8f" * 16}, {"overlap": "0.5", "input": "9c" * 16})
    ['input', 'overlap (0.25 before, 0.5 now)']
    """
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            short = max(len(old), len(new)) < SHORT
            found.append(f"{name} ({old} before, {new} now)" if short else name)
    return found
