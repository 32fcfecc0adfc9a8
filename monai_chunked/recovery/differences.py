"""What two fingerprints differ in. A fingerprint has a text for each part that a result depends on."""

from __future__ import annotations

import json
import zlib
from base64 import b85decode, b85encode
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

__all__ = ["DETAILS", "Details", "detail", "differences", "packed", "remedy"]

SHORT = 32
"""Characters; what is longer is said by name only."""


MOST = 3
"""How many details of a part are said."""


DETAILS = "details"
"""In a fingerprint, what is in its parts: nothing that counts, but it tells where a difference is."""


LONG = "#"
"""What a detail begins with of which only a digest is kept."""


HIDDEN = ("._modules", "._parameters", "._buffers", "._orig_mod", ".module")
"""In a path what no user has written."""


Details = dict[str, Any]
"""From the name of each detail to its text, or to its text and the details in it."""


def detail(text: str, inside: Details) -> Any:
    """One detail, with those that are in it."""
    kept = (
        text if len(text) < SHORT else LONG + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    )
    return [kept, inside] if inside else kept


def packed(details: Details) -> str:
    """Details of each part as the text that a fingerprint has of them."""
    return b85encode(zlib.compress(json.dumps(details).encode())).decode()


def differences(before: Mapping[str, str], now: Mapping[str, str], old: str = "before", new: str = "now") -> list[str]:
    """What two fingerprints differ in: short values as they were and are, long ones by name.

    Args:
        before, now: the fingerprints.
        old, new: what is said behind a value of the first, and of the second.

    >>> differences({"overlap": "0.25", "input": "8f" * 16}, {"overlap": "0.5", "input": "9c" * 16})
    ['input', 'overlap (0.25 before, 0.5 now)']
    >>> one, other = ({"network": text * 16, DETAILS: packed({"network": {".rank": text}})} for text in "01")
    >>> differences(one, other)
    ['network.rank (0 before, 1 now)']
    """
    found = []
    inside = [_unpacked(each) for each in (before, now)]
    for name in _differing(before, now):
        values = before.get(name, "nothing"), now.get(name, "nothing")
        details = list(_deepest(name, *(each.get(name, {}) for each in inside))) or [(name, *values)]
        found += [_said(path, one, other, old=old, new=new) for path, one, other in details[:MOST]]
        if len(details) > MOST:
            found.append(f"{len(details) - MOST} more in {name}")
    return found


def remedy(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What can be done about it; empty: nothing but to begin afresh, or to call with the same."""
    if "network" not in _differing(before, now) or "network_id" in now:
        return ""
    return " (network_id= vouches for all of the network but its weights)"


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in sorted({*before, *now} - {DETAILS}) if before.get(name) != now.get(name)]


def _deepest(path: str, before: Details, now: Details) -> Iterator[tuple[str, str, str]]:
    """Path and values of each detail that differs, but for those in which another one does."""
    for name in {**now, **before}:
        (old, old_inside), (new, new_inside) = (_parts(each.get(name, "nothing")) for each in (before, now))
        if old == new:
            continue
        within = path if name in HIDDEN else path + name
        yield from list(_deepest(within, old_inside, new_inside)) or [(within, old, new)]


def _parts(kept: Any) -> tuple[str, Details]:
    return (kept, {}) if isinstance(kept, str) else (kept[0], kept[1])


def _said(name: str, before: str, now: str, *, old: str, new: str) -> str:
    short = max(len(before), len(now)) < SHORT and LONG not in (before[:1], now[:1])
    return f"{name} ({before} {old}, {now} {new})" if short else name


def _unpacked(fingerprint: Mapping[str, str]) -> Details:
    return json.loads(zlib.decompress(b85decode(fingerprint[DETAILS]))) if DETAILS in fingerprint else {}
