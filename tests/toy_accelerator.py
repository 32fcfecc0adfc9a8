"""
An accelerator without hardware: a PyTorch device ``toy`` with memory of its own, whose kernels are the CPU's.

Tried with PyTorch 2.13 (``_setup_privateuseone_for_python_backend`` is experimental there, and came with 2.9). Tensors
on ``toy`` wrap a tensor in host memory. Every operation is unwrapped, run on the CPU, and wrapped again, so views,
in-place operations, ``out=``, modules and convolutions work. What a real accelerator would do differently is what is
simulated: tensors of two devices do not mix, memory is counted and can run out, copies between host and device are
counted.

    from tests import toy_accelerator as toy
    network.to("toy"); x = x.to("toy")
    with toy.limit(2**20): ...          # torch.OutOfMemoryError beyond
    toy.used, toy.peak, toy.to_device, toy.to_host   # bytes

Not simulated here: streams, events, pinned memory, other last bits. Kernels run at once; a version whose streams are
threads that lag behind would find a missing wait.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch.utils._pytree import tree_leaves, tree_map

registration._setup_privateuseone_for_python_backend("toy")
DEVICE = torch.device("toy:0")

used = peak = to_device = to_host = 0
_most: int | None = None
_storages: dict[int, list[int]] = {}  # by address: number of tensors over it, bytes


class ToyTensor(torch.Tensor):
    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> ToyTensor:
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        wrapped.host = host
        return wrapped

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def reset() -> None:
    """Begin to count anew."""
    global peak, to_device, to_host
    peak, to_device, to_host = used, 0, 0


@contextmanager
def limit(size: int) -> Iterator[None]:
    """Let the device have so many bytes beyond what is in use."""
    global _most
    before, _most = _most, used + size
    try:
        yield
    finally:
        _most = before


def _wrap(host: Any) -> Any:
    global used, peak
    if not isinstance(host, torch.Tensor) or isinstance(host, ToyTensor):
        return host
    if not host.numel():
        return ToyTensor(host)
    storage = host.untyped_storage()
    address, size = storage.data_ptr(), storage.nbytes()
    if address not in _storages:
        if _most is not None and used + size > _most:
            raise torch.OutOfMemoryError(f"toy out of memory: {size} bytes asked for, {used} of {_most} in use")
        _storages[address] = [0, size]
        used += size
        peak = max(peak, used)
    _storages[address][0] += 1
    wrapped = ToyTensor(host)
    weakref.finalize(wrapped, _drop, address)
    return wrapped


def _drop(address: int) -> None:
    global used
    entry = _storages[address]
    entry[0] -= 1
    if not entry[0]:
        used -= entry[1]
        del _storages[address]


def _unwrap(value: Any) -> Any:
    if isinstance(value, ToyTensor):
        return value.host
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "toy" else value


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    global to_device, to_host
    name = func._schema.name
    copies = name in ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
    for value in tree_leaves((args, kwargs)):
        if not copies and isinstance(value, torch.Tensor) and not isinstance(value, ToyTensor) and value.dim():
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, got cpu and toy")
    wanted = kwargs.get("device")
    host_args, host_kwargs = tree_map(_unwrap, args), tree_map(_unwrap, kwargs)
    host_kwargs.pop("pin_memory", None)
    result = func(*host_args, **host_kwargs)
    if "out" in kwargs:
        return kwargs["out"]
    if name.endswith("_"):
        if copies:
            to_device, to_host = (
                (to_device + args[0].host.nbytes, to_host)
                if isinstance(args[0], ToyTensor)
                else (to_device, to_host + args[0].nbytes)
            )
        return args[0]
    if name == "aten::_to_copy":
        if wanted is not None and torch.device(wanted).type == "cpu":
            to_host += result.nbytes
            return result
        if not isinstance(args[0], ToyTensor):
            to_device += result.nbytes
    return tree_map(_wrap, result)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    global to_device, to_host
    if isinstance(target, ToyTensor):
        to_device += target.host.nbytes
    else:
        to_host += target.nbytes
    _unwrap(target).copy_(_unwrap(source))
    return target


_every = torch.library.Library("_", "IMPL")
_every.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
_aten.impl(
    "empty.memory_format",
    lambda size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None: _wrap(
        torch.empty(size, dtype=dtype, memory_format=memory_format)
    ),
    "PrivateUse1",
)
_aten.impl(
    "empty_strided",
    lambda size, stride, dtype=None, layout=None, device=None, pin_memory=None: _wrap(
        torch.empty_strided(size, stride, dtype=dtype)
    ),
    "PrivateUse1",
)
_aten.impl("_copy_from", _copy_from, "PrivateUse1")
