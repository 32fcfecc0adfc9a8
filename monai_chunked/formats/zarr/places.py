"""Where OME-Zarr stores are kept: in folders, where a run can go on with them, or at URLs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import zarr
from filelock import FileLock
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from monai_chunked.formats.zarr.consolidated import consolidate
from monai_chunked.machine.files import beside, make_folder, remove, rename_all, replace_folder, restore_folder

__all__ = ["LabelPlace", "LocalPlace", "Place", "RemotePlace"]


METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
"""One of these is in every Zarr group and array."""


UNFINISHED = ".unfinished"
"""Ending of a file in a store while its bytes are not all on disk."""


class DurableStore(LocalStore):
    """A folder in which a file has its name only when its bytes are on disk, also if it replaces another.

    What is set can be read at once, and gets its name with the next flush.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._unnamed: set[str] = set()

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(self._write, self.root / (key + UNFINISHED), value.as_buffer_like())
        self._unnamed.add(key)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await super().get(key + UNFINISHED if key in self._unnamed else key, prototype, byte_range)

    async def delete(self, key: str) -> None:
        if key in self._unnamed:
            self._unnamed.remove(key)
            await super().delete(key + UNFINISHED)
        await super().delete(key)

    def flush(self) -> None:
        """Return when all that was set is on disk, under its name."""
        if self._unnamed:
            rename_all(self.root, {self.root / (key + UNFINISHED): self.root / key for key in self._unnamed})
            self._unnamed.clear()

    def _write(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise


class LocalPlace:
    """A folder for a store. It has another name until the store is complete.

    Args:
        path: of the folder.
        partial: the path of the folder until the store is complete.
        old: the path of the store that had the name before, while it is replaced.
    """

    def __init__(self, path: Path, partial: Path, old: Path) -> None:
        self.path = path
        self.partial = partial
        self.old = old
        self.name = str(path)
        self._store: DurableStore | None = None

    @property
    def is_begun(self) -> bool:
        return self.partial.is_dir()

    @property
    def is_published(self) -> bool:
        return self.path.exists()

    def create(self) -> Store:
        """An empty store."""
        restore_folder(self.path, self.old)
        remove(self.partial)
        make_folder(self.partial)
        return self.begun()

    def begun(self) -> Store:
        """The store that an earlier run left unfinished."""
        for path in self.partial.rglob("*" + UNFINISHED):
            path.unlink()
        self._store = DurableStore(self.partial)
        return self._store

    def published(self) -> Store:
        """The store that is complete."""
        return LocalStore(self.path, read_only=True)

    def flush(self) -> None:
        """Return when what was written to the store would survive a crash."""
        if self._store is not None:
            self._store.flush()

    def publish(self) -> None:
        """Give the store its name, if it has another. The store that had it is removed when that is safe."""
        self.flush()
        replace_folder(self.partial, self.path, self.old)

    def abandon(self, keep: bool) -> None:
        """The run failed: keep what is written for a run that goes on with it, or remove it."""
        if not keep:
            remove(self.partial)

    def path_to(self, image: str | None) -> str | None:
        """The path from the store to an OME-Zarr image; ``None`` if that is not in a folder."""
        if image is None or not Path(image).is_dir():
            return None
        return Path(os.path.relpath(image, self.path)).as_posix()


class LabelPlace(LocalPlace):
    """A store in the ``labels`` of an image's own store, which lists it when it is complete.

    Until then it lies beside the image's store, which a run that fails leaves as it was.
    """

    def publish(self) -> None:
        make_folder(self.path.parent)
        super().publish()

    def published(self) -> Store:
        if self.path.exists():  # here, not in publish(), after which the process may have ended
            self._list()
            consolidate(self.path)
        return super().published()

    def _list(self) -> None:
        """Name the store in the attributes of ``labels``. Two runs may do so at the same time."""
        labels, image = self.path.parent, self.path.parents[1]
        if self.path.name in _listed(labels):
            return
        lock = FileLock(beside(image, ".labels.lock"))
        with lock:
            store = DurableStore(labels)
            group = zarr.open_group(store, mode="a", zarr_format=3)
            names = sorted({*_listed(labels), self.path.name})
            group.update_attributes({"ome": {"version": "0.5", "labels": names}})
            store.flush()
            Path(lock.lock_file).unlink(missing_ok=True)

    def path_to(self, image: str | None) -> str | None:
        return "../../"


class RemotePlace:
    """A URL for a store, which is written in place. A run cannot go on with what another one left there.

    Where a store has the name already, the new one is written beside it until it is complete.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None) -> None:
        self.name = url
        self.partial = f"{url}.partial"
        self.storage_options = storage_options
        self.is_begun = False
        self._written = url

    @property
    def is_published(self) -> bool:
        return not sync(self.open(read_only=True).is_empty(""))

    def other(self) -> str | None:
        """The one of its URLs where something else than a Zarr store lies; ``None`` if there is none."""
        for url in (self.name, self.partial):
            store = self._open(url, read_only=True)
            if not sync(store.is_empty("")) and not any(sync(store.exists(name)) for name in METADATA):
                return url
        return None

    def create(self) -> Store:
        self._written = self.partial if self.is_published else self.name
        store = self._open(self._written)
        sync(store.delete_dir(""))
        self.is_begun = True
        return store

    def published(self) -> Store:
        return self.open(read_only=True)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def publish(self) -> None:
        """Bring the store to its name, if it has another. It stays where it is if that fails."""
        self.is_begun = False
        if self._written != self.name:
            sync(_move(self._open(self._written), self.open()))
            self._written = self.name

    def abandon(self, keep: bool) -> None:
        """Remove the store, unless it is complete."""
        if self.is_begun:
            sync(self._open(self._written).delete_dir(""))

    def path_to(self, image: str | None) -> None:
        """Not known, since the image is elsewhere."""

    def open(self, read_only: bool = False) -> Store:
        """Open the store through fsspec, or through obstore where fsspec cannot.

        Raises:
            ImportError: when neither can.
        """
        return self._open(self.name, read_only)

    def _open(self, url: str, read_only: bool = False) -> Store:
        options = self.storage_options
        try:
            return FsspecStore.from_url(url, storage_options=options, read_only=read_only)
        except (ImportError, ValueError) as error:
            try:
                from obstore.store import from_url
            except ImportError:
                raise ImportError(f"{url} needs obstore, or fsspec with what it says: {error}") from error
            return ObjectStore(from_url(url, **(options or {})), read_only=read_only)


Place = LocalPlace | RemotePlace


async def _move(source: Store, target: Store) -> None:
    """Move all of a store to the place of another; last the file that makes an image of it."""
    await target.delete_dir("")
    keys = [key async for key in source.list()]
    for key in sorted(keys, key=lambda key: key == "zarr.json"):
        value = await source.get(key, default_buffer_prototype())
        assert value is not None
        await target.set(key, value)
    await source.delete_dir("")


def _listed(labels: Path) -> list[str]:
    """The labels that the group of an image's labels lists."""
    try:
        ome: Any = zarr.open_group(labels, mode="r", zarr_format=3).attrs.get("ome", {})
    except FileNotFoundError:
        return []
    return list(ome.get("labels", []))
