"""
Consolidated metadata: copies that a group keeps of the metadata of all that is in it, and that readers trust.

What is added to a store, or replaced in it, is not found until these copies say so. Only the entries of the labels are
written; those of others stay as they are, and the attributes of the groups too.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from monai_chunked.machine.caller import warn_caller
from monai_chunked.machine.files import rename, sync

__all__ = ["consolidate"]


METADATA = "zarr.json"


KEY = "consolidated_metadata"


def consolidate(labels: Path) -> None:
    """Add complete labels to the copies of the groups around them: of the image, and of the plate around that.

    Args:
        labels: the group of the labels, in ``labels`` of an image.
    """
    for group in labels.parents:
        if not (group / METADATA).is_file():
            return
        entries = _entries(labels, group)
        if _is_known(_read(group), labels.relative_to(group).as_posix(), entries):
            continue
        try:
            _write(group, labels, entries)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            warn_caller(
                f"{labels} is complete, but {group}, which has consolidated metadata, cannot be written to "
                f"({error.strerror}), so it does not know of it; zarr.open_group({str(group)!r}, "
                f"use_consolidated=False) does, and zarr.consolidate_metadata({str(group)!r}) makes it known"
            )


def _entries(labels: Path, group: Path) -> dict[str, Any]:
    """Metadata of the labels, and of the groups between them and a group above, by their paths from that group."""
    between = [node for node in labels.parents if group in node.parents]
    within = sorted(path.parent for path in labels.rglob(METADATA))
    return {node.relative_to(group).as_posix(): _plain(_read(node)) for node in (*between, *within)}


def _is_known(document: dict[str, Any], name: str, entries: dict[str, Any]) -> bool:
    """Whether a group keeps no copies, or those of the labels are as they should be."""
    if not isinstance(document.get(KEY), dict):
        return True
    copies = document[KEY].get("metadata", {})
    kept = {key: _plain(copy) for key, copy in copies.items() if key in entries or key.startswith(f"{name}/")}
    return kept == entries


def _write(group: Path, labels: Path, entries: dict[str, Any]) -> None:
    """Replace the copies of the labels. Two runs may do so at the same time, for labels of other images too."""
    name = labels.relative_to(group).as_posix()
    lock = FileLock(group / f"{METADATA}.lock")
    with lock:
        document = _read(group)
        copies = document[KEY].get("metadata", {})
        others = {key: copy for key, copy in copies.items() if not key.startswith(f"{name}/")}
        document[KEY]["metadata"] = dict(sorted({**others, **entries}.items()))
        path = group / f"{METADATA}.unfinished"
        try:
            path.write_text(json.dumps(document, indent=2))
            sync(path)
            rename(path, group / METADATA)
        finally:
            path.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the copies that a group keeps."""
    return {key: value for key, value in metadata.items() if key != KEY}


def _read(node: Path) -> dict[str, Any]:
    return dict(json.loads((node / METADATA).read_text()))
