"""
What the result of a run depends on, in a form that can be kept and compared.

Tensors are known by the BLAKE2 digest of their dtype, shape and bytes. An array that is read piece by piece is known by
dtype, shape, the path, size and time of change of its files where it names them, and the voxels of at most 64 small
boxes spread over it: reading all of it would take as long as much of the run. Functions are known by name and code.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

__all__ = ["describe", "differences", "digest_of_input", "digest_of_network"]

DIGEST_BYTES = 16
DEPTH = 8
"""How far an object is followed to what it holds."""

SAMPLES = 4
"""Boxes for each dimension."""

SAMPLE_SIZE = 8
"""Voxels along each side of a box."""


def digest_of_network(network: Any, network_id: str | None) -> str | None:
    """Of the structure and all weights of a network, and of ``network_id``; ``None`` if there is neither."""
    state = getattr(network, "state_dict", None)
    if state is None and network_id is None:
        return None
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    digest.update(repr(network_id).encode())
    if state is not None:
        digest.update(_without_addresses(f"{type(network).__qualname__} {network}").encode())
        digest.update(str(getattr(network, "training", None)).encode())
        for name, value in state().items():
            digest.update(f"{name}={describe(value)}".encode())
    return digest.hexdigest()


def digest_of_input(inputs: Any) -> str:
    """Of ``(B, C, *spatial)``: of all voxels of a tensor, of some of another array."""
    if isinstance(inputs, (torch.Tensor, np.ndarray)) and not isinstance(inputs, np.memmap):
        return describe(inputs)
    digest = hashlib.blake2b(f"{inputs.dtype} {tuple(inputs.shape)}".encode(), digest_size=DIGEST_BYTES)
    for path in _files_of(inputs):
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    for box in _samples(tuple(inputs.shape)):
        digest.update(np.ascontiguousarray(inputs[box]).tobytes())
    return digest.hexdigest()


def describe(value: Any, depth: int = DEPTH) -> str:
    """The same text for what computes the same, as far as that can be told, in this process and in others."""

    def inner(part: Any) -> str:
        return describe(part, depth - 1) if depth else _name(type(part))

    if isinstance(value, torch.Tensor):
        return _digest_of_tensor(value)
    if isinstance(value, np.ndarray):
        return _digest_of_array(value)
    if isinstance(value, torch.nn.Module):
        return str(digest_of_network(value, None))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {inner(v)}" for k, v in sorted(value.items(), key=lambda i: repr(i[0]))) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(inner, value))) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(inner, value)) + "]"
    if isinstance(value, MethodType):
        return f"{inner(value.__self__)}.{value.__name__}"
    if isinstance(value, FunctionType):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{_name(value)}({_digest_of_code(value.__code__)}, {inner(value.__defaults__)}, {inner(closure)})"
    if isinstance(value, (type, BuiltinFunctionType, np.ufunc)):
        return _name(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return digest_of_input(value)
    if hasattr(value, "__dict__"):
        return f"{_name(type(value))}{inner(vars(value))}"
    return _without_addresses(repr(value))


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What two fingerprints differ in: short values as they were and are, long ones by name.

    >>> differences({"overlap": "0.25", "input": "8f" * 16}, {"overlap": "0.5", "input": "9c" * 16})
    ['input', 'overlap (0.25 before, 0.5 now)']
    """
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            short = max(len(old), len(new)) < 2 * DIGEST_BYTES
            found.append(f"{name} ({old} before, {new} now)" if short else name)
    return found


def _files_of(inputs: Any) -> Iterator[Path]:
    """The files that an array is read from, as far as it names them."""
    metadata = getattr(inputs, "meta", None) or {}
    each_image = metadata if isinstance(metadata, Sequence) else [metadata]
    roots = [each.get("filename_or_obj") for each in each_image]
    roots += [getattr(inputs, "filename", None), getattr(getattr(inputs, "store", None), "root", None)]
    for root in {Path(root) for root in roots if isinstance(root, (str, Path))}:
        if root.is_file():
            yield root
        elif root.is_dir():  # of a Zarr store
            files = (path for path in root.rglob("*") if path.is_file())
            yield from sorted(path for path in files if path.relative_to(root).parts[0] != "labels")  # results, perhaps


def _samples(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Small boxes, spread evenly over the three largest dimensions."""
    largest = sorted(range(len(shape)), key=lambda d: -shape[d])[:3]
    starts = []
    for d, size in enumerate(shape):
        last = max(size - SAMPLE_SIZE, 0)
        starts.append(sorted({last * k // (SAMPLES - 1) for k in range(SAMPLES)}) if d in largest else [0])
    for corner in itertools.product(*starts):
        yield tuple(slice(start, start + SAMPLE_SIZE) for start in corner)


def _digest_of_tensor(tensor: torch.Tensor) -> str:
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.complex32):
        tensor = tensor.view(torch.uint8) if tensor.dim() and tensor.is_contiguous() else tensor.float()
    if tensor.dim() < 2:
        return _digest_of_array(torch.as_tensor(tensor).cpu().numpy())
    # one part at a time, which needs no copy of the whole where the tensor is elsewhere or not contiguous
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=DIGEST_BYTES)
    for index in itertools.product(*map(range, tensor.shape[: min(3, tensor.dim() - 1)])):
        part = torch.as_tensor(tensor[index]).cpu().contiguous().numpy()
        digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest_of_array(array: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=DIGEST_BYTES)
    if prod(array.shape):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest_of_code(code: CodeType) -> str:
    constants = [_digest_of_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    text = f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x", text)
