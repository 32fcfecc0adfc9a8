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
"""In a fingerprint, the details of its parts. They are not compared, but tell where a difference is."""


LONG = "#"
"""What a detail begins with of which only a digest is kept."""


HIDDEN = ("._modules", "._parameters", "._buffers", "._orig_mod", ".module")
"""Parts of a path that no user has written."""


Details = dict[str, Any]
"""From the name of each detail to its text, or to its text and the details in it."""


def detail(text: str, inside: Details) -> Any:
    """A detail, with those that are in it."""
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
    >>> before, now = ({"network": text * 16, DETAILS: packed({"network": {".rank": text}})} for text in "01")
    >>> differences(before, now)
    ['network.rank (0 before, 1 now)']
    """
    said = []
    inside_before, inside_now = _unpacked(before), _unpacked(now)
    for name in _differing(before, now):
        values = before.get(name, "nothing"), now.get(name, "nothing")
        details = list(_deepest(name, inside_before.get(name, {}), inside_now.get(name, {}))) or [(name, *values)]
        said += [_said(path, was, is_now, old=old, new=new) for path, was, is_now in details[:MOST]]
        if len(details) > MOST:
            said.append(f"{len(details) - MOST} more in {name}")
    return said


def remedy(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What else the user can do than begin afresh, or call with the same; empty: nothing."""
    if "network" not in _differing(before, now) or "network_id" in now:
        return ""
    return " (network_id= vouches for all of the network but its weights)"


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in sorted({*before, *now} - {DETAILS}) if before.get(name) != now.get(name)]


def _deepest(path: str, before: Details, now: Details) -> Iterator[tuple[str, str, str]]:
    """Path and values of each detail that differs, except those in which another detail differs."""
    for name in {**now, **before}:
        (old, old_inside), (new, new_inside) = (_parts(run.get(name, "nothing")) for run in (before, now))
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
