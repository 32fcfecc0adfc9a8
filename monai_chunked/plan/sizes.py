"""Sizes in voxels and bytes."""

from __future__ import annotations

import operator
import re
from typing import Any

from monai.utils import ensure_tuple_rep

__all__ = ["check_chunk_size", "check_positive", "format_bytes", "parse_bytes", "per_dimension"]


def format_bytes(size: int) -> str:
    """
    >>> format_bytes(1536)
    '1.5 KiB'
    >>> format_bytes(110_100_480_000)
    '102.5 GiB'
    """
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def parse_bytes(name: str, size: int | str | None) -> int | None:
    """A size in bytes, or in words; ``None`` stays ``None``.

    >>> parse_bytes("cpu_memory", "512MB"), parse_bytes("cpu_memory", "1.5 GiB"), parse_bytes("cpu_memory", 0)
    (512000000, 1610612736, 0)
    """
    if size is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?\s*", str(size).upper())
    if match is None:
        raise ValueError(f"{name}={size!r} must be a number of bytes, or a string such as '512MB' or '2GiB'")
    number, prefix, binary = match.groups()
    power = 1 + "KMGT".index(prefix) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def check_chunk_size(chunk_size: object, dims: int, name: str = "chunk_size") -> tuple[int, ...] | None:
    if chunk_size is None:
        return None
    return tuple(check_positive(name, c, chunk_size) for c in per_dimension(name, chunk_size, dims))


def per_dimension(name: str, value: object, dims: int) -> tuple[Any, ...]:
    try:
        return ensure_tuple_rep(value, dims)
    except ValueError:
        raise ValueError(f"{name}={value} must be one number, or one for each of {dims} spatial dimensions") from None


def check_positive(name: str, value: Any, shown: object = None) -> int:
    shown = value if shown is None else shown
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={shown!r} must be made of integers, not {type(value).__name__}") from None
    if number < 1:
        raise ValueError(f"{name}={shown!r} must be at least 1")
    return number
