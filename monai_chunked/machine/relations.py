"""How files and folders lie to each other: one the same as another, around it, or inside it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from monai_chunked.machine.store_names import is_url

__all__ = ["Identity", "identity", "relation_of_paths", "relation_of_urls"]


Identity = tuple[int, int]
"""The same for all names and links of a file or folder, and for no other one."""


def relation_of_paths(path: str, used: str, exempt: set[Identity], exempt_names: set[str]) -> str:
    """How a path lies to another one, in words; empty: apart. By what the system says that they are, not by names.

    Args:
        path: that is asked about.
        used: the other one.
        exempt: folders in the other one, by their identities, in which a path is apart all the same.
        exempt_names: their names.
    """
    own = identity(used)
    if own is None:
        return ""
    of_path = identity(path)
    if of_path == own:
        return "which belongs to"
    if of_path is not None and of_path in {identity(folder) for folder in _folders(used)}:
        return "which is around"
    for folder in _folders(path):
        around = identity(folder)
        if around == own:
            return "which is inside"
        if around in exempt or folder in exempt_names:
            return ""
    return ""


def _folders(path: str) -> Iterator[str]:
    """Those around a path, from the innermost: of the name, and of what it links to."""
    for place in {
        os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)),
        os.path.realpath(path),
    }:
        while (folder := os.path.dirname(place)) != place:
            yield (place := folder)


def identity(path: str | os.PathLike[str]) -> Identity | None:
    """Of what is there; ``None``: nothing is."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # it is not there, or no such name is possible
        return None
    return status.st_dev, status.st_ino


def relation_of_urls(path: str, used: str) -> str:
    """How a URL lies to another one; a path is one of a file."""
    path, used = _plain(path), _plain(used)
    if path == used:
        return "which belongs to"
    if used.startswith(f"{path}/"):
        return "which is around"
    return "which is inside" if path.startswith(f"{used}/") else ""


def _plain(url: str) -> str:
    """
    >>> _plain("memory:///results//scan.zarr/"), _plain("file:///results"), _plain("/results")
    ('memory://results/scan.zarr', 'file://results', 'file://results')
    """
    scheme, _, path = url.partition("://") if is_url(url) else ("file", "", os.path.realpath(url))
    return f"{'file' if scheme == 'local' else scheme}://{'/'.join(part for part in path.split('/') if part)}"
