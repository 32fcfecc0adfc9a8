"""
Zarr stores of inputs: the one place where a path becomes an open store.

A path is a folder, a zip file (``.ozx``, or ``.zip`` as in ``.ome.zarr.zip``) or a URL, and may go on to a group or an
array in the store. Opening it again, also in another process, is :py:func:`open_node` with the same path.
"""

from __future__ import annotations

import errno
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_chunked.machine.store_names import is_url, without_store_endings

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

__all__ = ["archive_of", "may_be_in_store", "member", "name_in_store", "open_node"]


ARCHIVES = (".ozx", ".zip")


SUFFIXES = (".zarr", *ARCHIVES)
"""Endings of the names of stores."""


GROUPS = ("zarr.json", ".zgroup")
"""Files that make a folder a group."""


METADATA = (*GROUPS, ".zarray", ".zattrs")


UNREADABLE = (TypeError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What zarr raises of metadata that are not what they should be."""


def archive_of(path: str) -> tuple[str, str] | None:
    """The zip file that a path lies in, or is, and the path in it; ``None`` if there is none.

    >>> archive_of("https://host/plate.ozx/A/1/0")
    ('https://host/plate.ozx', 'A/1/0')
    >>> archive_of("zip://A/1/0::https://host/plate.ozx")  # fsspec opens it as it is
    """
    if "::" in path:
        return None
    parts = path.split("/")
    for k, part in enumerate(parts, 1):
        archive = "/".join(parts[:k])
        if part.lower().endswith(ARCHIVES) and (is_url(path) or Path(archive).is_file()):
            return archive, "/".join(parts[k:])
    return None


def open_node(path: str) -> Any:
    """The ``zarr.Array`` or ``zarr.Group`` at a path, for reading.

    Raises:
        ImportError: when zarr, or what it needs for a URL, is missing.
        ValueError: when there is no array and no group.
        OSError: when there is one whose metadata cannot be read.
    """
    try:
        import zarr
    except ImportError:
        raise ImportError("reading Zarr needs zarr 3: pip install 'zarr>=3'") from None
    store, inside = _store(path)
    try:
        return zarr.open(store, path=inside, mode="r")
    except FileNotFoundError as error:
        raise ValueError(_what_is_there(path)) from error
    except (KeyError, *UNREADABLE) as error:
        raise _damaged(store, inside, path, error) from error


def member(group: zarr.Group, name: str, path: str) -> Any:
    """An array or group in a group.

    Args:
        group: that it is in.
        name: its path in the group.
        path: of the group, for messages.

    Raises:
        FileNotFoundError: when it is not there.
        OSError: when its metadata cannot be read.
    """
    try:
        return group[name]
    except KeyError as error:
        inside = f"{group.path}/{name}".strip("/")
        if _is_there(group.store, inside):
            raise _damaged(group.store, inside, path, error) from error
        missing = f"its metadata name {name!r}, which is not there; the store is not complete"
        members = "" if is_url(path) else ", ".join(sorted(group.keys()))
        raise FileNotFoundError(errno.ENOENT, missing + (f" (it has {members})" if members else ""), path) from error
    except UNREADABLE as error:
        raise _damaged(group.store, f"{group.path}/{name}".strip("/"), path, error) from error


def may_be_in_store(url: str) -> bool:
    """Whether a URL may lead to something in a store, by its name.

    >>> may_be_in_store("s3://bucket/embryo.ome.zarr/labels"), may_be_in_store("s3://bucket/images")
    (True, False)
    """
    return any(part.lower().endswith(SUFFIXES) for part in url.split("/"))


def name_in_store(path: str) -> str:
    """What results of an image are called: after its store, and where it lies in that.

    Images of plates and series themselves are all called ``0`` or so.

    >>> name_in_store("https://host/plate.ome.zarr/A/1/0"), name_in_store("https://host/embryo.ome.zarr")
    ('plate_A_1_0', 'embryo')
    """
    parts = (path if is_url(path) else os.path.abspath(path).replace(os.sep, "/")).rstrip("/").split("/")
    at = len(parts) - 1
    archive = archive_of("/".join(parts))
    if archive is not None:
        at = archive[0].count("/")
    elif not is_url(path):
        while at > 1 and any(os.path.isfile("/".join([*parts[:at], name])) for name in GROUPS):
            at -= 1
    elif not parts[-1].lower().endswith(SUFFIXES):
        at = next((k for k in range(at, 2, -1) if parts[k].lower().endswith(SUFFIXES)), at)
    return "_".join([without_store_endings(parts[at]), *parts[at + 1 :]])


def _store(path: str) -> tuple[Store, str]:
    """The store that a path leads to, and the path in it."""
    from zarr.storage import FsspecStore, LocalStore, ZipStore

    archive, inside = archive_of(path) or (None, "")
    if archive is None:
        return (FsspecStore.from_url(path, read_only=True) if is_url(path) else LocalStore(path, read_only=True)), ""
    try:
        if is_url(path):
            return FsspecStore.from_url(f"zip://::{archive}", read_only=True), inside
        with zipfile.ZipFile(archive) as file:
            root = _root(file)
    except zipfile.BadZipFile as error:
        raise OSError(errno.EIO, f"it is no zip file, or not complete ({error})", archive) from error
    return ZipStore(archive, mode="r"), f"{root}/{inside}".strip("/")


def _root(file: zipfile.ZipFile) -> str:
    """The folder of a zip file that the store is in: none as the specification has it, or the only one."""
    names = file.namelist()
    folders = {name.split("/")[0] for name in names}
    return folders.pop() if len(folders) == 1 and all("/" in name for name in names) else ""


def _is_there(store: Store, inside: str) -> bool:
    """Whether there is an array or a group, whatever its metadata say."""
    from zarr.core.sync import sync

    return any(sync(store.exists(f"{inside}/{name}".strip("/"))) for name in METADATA[:3])


def _what_is_there(path: str) -> str:
    """A sentence on a path without a Zarr array or group."""
    if is_url(path) or archive_of(path):
        return f"there is no Zarr array or group at {path} (no {', '.join(METADATA[:3])})"
    if not Path(path).is_dir():
        return f"{path} is no .nii, .nii.gz or .npy file, nor a Zarr array or group; MONAI's LoadImage reads others"
    holds = f"a folder without {', '.join(METADATA[:3])}" if any(Path(path).iterdir()) else "an empty folder"
    return f"{path} is {holds}, so it is no Zarr array or group; MONAI's LoadImage reads other folders"


def _damaged(store: Store, inside: str, path: str, error: Exception) -> OSError:
    """The error that says what of the metadata of an array or group cannot be read."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    reason = f"its Zarr metadata cannot be read ({type(error).__name__}: {error})"
    for name in METADATA:
        key = f"{inside}/{name}".strip("/")
        try:
            data = sync(store.get(key, default_buffer_prototype()))
            if not isinstance(json.loads(data.to_bytes() if data is not None else b"{}"), dict):
                reason = f"its {key} is no JSON object"
        except ValueError as wrong:
            reason = f"its {key} is not JSON ({wrong})"
        except (zipfile.BadZipFile, zlib.error) as wrong:
            reason = f"its {key} is damaged ({wrong})"
    return OSError(errno.EIO, reason, path)
