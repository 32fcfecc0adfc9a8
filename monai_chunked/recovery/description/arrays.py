"""
Arrays as a text that can be kept and compared.

An array in memory is described by all its voxels. One in files is described by them: by their content if they are
small, else by path, size and time of change. Other arrays cannot be described.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nibabel.arrayproxy import ArrayProxy

from monai_chunked.machine.mapped import map_under
from monai_chunked.machine.optional import is_of
from monai_chunked.recovery.description.protocol import Describes

__all__ = ["DIGEST_BYTES", "SMALL", "array_text", "digest_of_tensor", "sampled"]


DIGEST_BYTES = 16


SMALL = 64 * 2**20
"""Bytes of files that are compared by their content."""


READ = 2**24
"""Bytes that are read at a time."""


LOCKS = {"SerializableLock", "lock", "RLock"}
"""Types of what dask holds while it reads."""


SAMPLES = 4
"""Boxes for each dimension."""


SAMPLE_SIZE = 8
"""Voxels along each side of a box."""


class DerivedArray(Protocol):
    """An array that says what its voxels follow from: other arrays and plain values, by their names."""

    @property
    def stands_on(self) -> Mapping[str, Any]: ...


def array_text(value: Any, describer: Describes) -> str | None:
    """The text of an array; ``None`` if its kind is not known."""
    if isinstance(value, np.ndarray):
        return _of_numpy(value, describer)
    if hasattr(type(value), "stands_on"):
        derived: DerivedArray = value
        parts = (describer.describe(part, f".{name}") for name, part in derived.stands_on.items())
        return f"{type(value).__name__}({', '.join(parts)})"
    if type(value).__module__ == "dask._task_spec":
        return describer.cannot(value)  # it is part of something else than an array
    if type(value) is ArrayProxy:
        return _of_proxy(value, describer)
    for package, kind, of in (
        ("h5py", "Dataset", _of_h5py),
        ("zarr", "Array", _of_zarr),
        ("dask.array", "Array", _of_dask),
    ):
        if is_of(value, package, kind):
            return of(value, describer)
    return None


def digest_of_tensor(tensor: torch.Tensor) -> str:
    """A digest of dtype, shape, order in memory and all bytes."""
    tensor = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    digest.update(f"{tensor.dtype} {_layout(tuple(tensor.shape), tensor.stride())}".encode())
    # one part at a time, which needs no copy of the whole where the tensor is elsewhere or not contiguous
    whole = tensor.is_contiguous() and tensor.device.type == "cpu"
    leading = () if whole else tensor.shape[: max(min(3, tensor.dim() - 1), 0)]
    for index in itertools.product(*map(range, leading)):
        digest.update(tensor[index].contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def sampled(array: Any) -> str:
    """A digest of the voxels of at most 64 small boxes, spread over the three largest dimensions."""
    shape = tuple(array.shape)
    digest = hashlib.blake2b(f"{array.dtype} {shape}".encode(), digest_size=DIGEST_BYTES)
    largest = sorted(range(len(shape)), key=lambda d: -shape[d])[:3]
    starts = []
    for d, size in enumerate(shape):
        last = max(size - SAMPLE_SIZE, 0)
        starts.append(sorted({last * k // (SAMPLES - 1) for k in range(SAMPLES)}) if d in largest else [0])
    for corner in itertools.product(*starts):
        box = tuple(slice(start, start + SAMPLE_SIZE) for start in corner)
        digest.update(np.ascontiguousarray(array[box]).tobytes())
    return digest.hexdigest()


def _layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> str:
    """Shape and strides; those of a dimension of one voxel mean nothing."""
    return f"{shape} {[stride for size, stride in zip(shape, strides) if size > 1]}"


def _of_numpy(array: np.ndarray, describer: Describes) -> str:
    if array.dtype.hasobject:
        return f"array({array.shape}, {describer.describe(array.tolist())})"
    mapped = map_under(array)
    if mapped is None:
        digest = hashlib.blake2b(f"{array.dtype} {_layout(array.shape, array.strides)}".encode(), digest_size=16)
        for part in _parts(array.shape, array.itemsize):
            digest.update(np.ascontiguousarray(array[part]).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()
    if mapped.mode != "r":
        mapped.flush()
    memory = np.frombuffer(mapped._mmap, np.uint8)  # type: ignore[attr-defined]  # NumPy has no public name for it
    start = array.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    path = Path(str(mapped.filename))
    where = f"{mapped.offset} {start} {array.dtype} {_layout(array.shape, array.strides)}"
    return f"map({_of_files([path], describer, array)}, {where})"


def _parts(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of some 16 MiB in the order of a C array, which together are the whole."""
    cut = next((d for d in range(len(shape)) if prod(shape[d + 1 :]) * itemsize <= READ), len(shape))
    if cut == len(shape):
        yield ()
        return
    step = max(1, READ // max(1, prod(shape[cut + 1 :]) * itemsize))
    for index in itertools.product(*map(range, shape[:cut])):
        for start in range(0, shape[cut], step):
            yield (*(slice(k, k + 1) for k in index), slice(start, start + step))


def _of_voxels(array: Any) -> str:
    """A digest of an array in memory that is not NumPy's."""
    shape = tuple(array.shape)
    digest = hashlib.blake2b(f"{array.dtype} {shape}".encode(), digest_size=DIGEST_BYTES)
    for part in _parts(shape, np.dtype(array.dtype).itemsize):
        digest.update(np.ascontiguousarray(array[part]).tobytes())
    return digest.hexdigest()


def _of_files(paths: list[Path], describer: Describes, value: Any, root: Path | None = None) -> str:
    """The text of files: of their content if they are small, so that it does not matter when they were written."""
    if not paths or not all(path.is_file() for path in paths):
        return describer.cannot(value, f"of which {paths[0] if paths else root} is no file")
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    statuses = [path.stat() for path in paths]
    small = sum(status.st_size for status in statuses) <= SMALL
    for path, status in zip(paths, statuses):
        if small:
            name = path.relative_to(root) if root else ""
            digest.update(f"{name} {status.st_size} ".encode() + path.read_bytes())
        else:
            digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns} ".encode())
    return f"{'content' if small else 'files'} {digest.hexdigest()}"


def _of_proxy(proxy: Any, describer: Describes) -> str:
    if not isinstance(proxy.file_like, (str, os.PathLike)):
        return describer.cannot(proxy, "over an open file")
    scaling = f"{proxy.offset} {proxy.slope!r} {proxy.inter!r} {proxy.dtype} {proxy.shape} {proxy.order}"
    return f"proxy({_of_files([Path(proxy.file_like)], describer, proxy)}, {scaling})"


def _of_h5py(dataset: Any, describer: Describes) -> str:
    if dataset.file.driver == "core":
        return _of_voxels(dataset)
    if dataset.is_virtual or dataset.external:
        return describer.cannot(dataset, "whose voxels lie in other files")
    if dataset.file.mode != "r":
        dataset.file.flush()
    file = _of_files([Path(os.fsdecode(dataset.file.filename))], describer, dataset)
    return f"h5py({file}, {dataset.name}, {dataset.dtype}, {dataset.shape})"


def _of_zarr(array: Any, describer: Describes) -> str:
    store = array.store
    while hasattr(store, "_store") and not hasattr(store, "root"):
        store = store._store  # one store may wrap another
    kind = type(store).__mro__
    if any(cls.__name__ == "MemoryStore" for cls in kind):
        return _of_voxels(array)
    if any(cls.__name__ == "ZipStore" for cls in kind):
        return f"zarr({_of_files([Path(store.path)], describer, array)}, {array.path})"
    root = getattr(store, "root", None)
    if not isinstance(root, Path):
        return describer.cannot(array, f"in a {type(store).__name__}")
    folder, own = root / array.path, _file_of_array(array)
    paths = sorted(path for path in folder.rglob("*") if own(path.relative_to(folder).as_posix()) and path.is_file())
    return f"zarr({_of_files(paths, describer, array, folder)}, {array.dtype}, {array.shape})"


def _file_of_array(array: Any) -> Callable[[str], re.Match[str] | None]:
    """Whether a path in the folder of an array belongs to it: its metadata, and its storage chunks."""
    more = max(len(array.shape) - 1, 0)
    return re.compile(rf"zarr\.json|\.zarray|\.zattrs|c|(c[/.])?\d+([/.]\d+){{{more}}}").fullmatch


def _of_dask(array: Any, describer: Describes) -> str:
    """The text of the arrays that it stands on, and of what is done to them."""
    graph = dict(array.__dask_graph__())
    node = _DaskGraph(graph, describer).node
    keys = list(_flat(array.__dask_keys__()))
    return f"dask({array.chunks}, {', '.join(map(node, keys))})"


class _DaskGraph:
    """Describes tasks. Their names may be random, so a task is called by the order in which it is met."""

    def __init__(self, graph: Mapping[Hashable, Any], describer: Describes) -> None:
        self.graph = graph
        self.describer = describer
        self.numbers: dict[Hashable, int] = {}

    def node(self, key: Hashable) -> str:
        if key in self.numbers:
            return f"task {self.numbers[key]}"
        self.numbers[key] = len(self.numbers)
        return f"task {self.numbers[key]} is {self.of(self.graph[key], self.describer.describe)}"

    def of(self, value: Any, otherwise: Callable[[Any, str], str]) -> str:
        if type(value).__module__ != "dask._task_spec":
            if isinstance(value, tuple) and value and callable(value[0]):  # a task of an older version of dask
                return self.describer.cannot(value, "of a version of dask that is not known")
            return "a lock" if type(value).__name__ in LOCKS else otherwise(value, ".task")
        if hasattr(value, "func"):
            if not value.dependencies and not _makes_constants(value.func):
                return self.describer.cannot(value, f"({value.func} may read a file)")
            parts = [self.of(part, self.describer.describe) for part in value.args]
            named = [f"{name}={self.of(part, self.describer.describe)}" for name, part in value.kwargs.items()]
            return f"{self.describer.describe(value.func, '.func')}({', '.join([*parts, *named])})"
        if hasattr(value, "value"):
            return self.of(value.value, self.describer.describe)
        return self.node(getattr(value, "target", None) or value.key)


def _makes_constants(function: Any) -> bool:
    function = getattr(function, "func", function)
    return str(getattr(function, "__module__", "")) in ("dask.array.wrap", "dask._task_spec")


def _flat(keys: list[Any]) -> Iterator[Hashable]:
    for key in keys:
        if isinstance(key, list):
            yield from _flat(key)
        else:
            yield key
