"""Results are apart from what a run reads: none takes the place of its files, lies around them, or in them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from monai_chunked.outputs.base import UsedFile

__all__ = ["check_apart", "is_url"]


Identity = tuple[int, int]
"""The same for all names and links of a file or folder, and for no other one."""


def is_url(path: str | os.PathLike[str]) -> bool:
    """
    >>> is_url("s3://bucket/folder"), is_url("results")
    (True, False)
    """
    return "://" in str(path)


def check_apart(taken: Iterable[Path] | Iterable[str], used: Sequence[UsedFile], meant: Iterable[Path] = ()) -> None:
    """Refuse what would be written to, or replaced, of what a run reads.

    Args:
        taken: paths or URLs that results take, and those that they need until they are complete.
        used: what the run reads.
        meant: folders in what it reads that are there for results.

    Raises:
        FileExistsError: when one of them takes the place of what is read, or lies around it, or in it.
    """
    exempt = {identity for folder in meant if (identity := _identity(folder))}
    exempt_names = {os.path.realpath(folder) for folder in meant}
    for path in taken:
        for file in used:
            if is_url(path) or is_url(file.path):
                how = _of_urls(_plain(str(path)), _plain(file.path))
            else:
                how = _of_paths(str(path), file.path, exempt, exempt_names)
            if how:
                reason = (
                    f"the result needs this name, {how} {file.path}, which {file.name} is read from; that is refused, "
                    f"also with overwrite=True, or what is read would be lost. Choose another output_dir, or another "
                    f"output_postfix"
                )
                raise FileExistsError(errno.EEXIST, reason, str(path))


def _of_paths(path: str, used: str, exempt: set[Identity], exempt_names: set[str]) -> str:
    """How a path would harm what is read; empty: not at all. By what the system says that they are, not by names."""
    own = _identity(used)
    if own is None:
        return ""
    found = _identity(path)
    if found == own:
        return "which belongs to"
    if found is not None and found in {_identity(folder) for folder in _folders(used)}:
        return "which is around"
    for folder in _folders(path):
        identity = _identity(folder)
        if identity == own:
            return "which is inside"
        if identity in exempt or folder in exempt_names:
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


def _identity(path: str | os.PathLike[str]) -> Identity | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # it is not there, or no such name is possible
        return None
    return status.st_dev, status.st_ino


def _of_urls(path: str, used: str) -> str:
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
