"""
What differs between accelerators, and between them and a CPU: free memory, streams, pinned memory.

Nothing else in the package names CUDA. On a device that is not known here everything is synchronous, which is correct
and slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeVar

import torch

__all__ = ["Downloads", "Uploads", "free_memory", "likely_device", "on_stream_of", "send", "with_index"]


def with_index(device: torch.device | str) -> torch.device:
    """With its index, so that ``cuda`` equals ``cuda:0`` of the tensors on it."""
    return torch.empty(0, device=device).device


def likely_device() -> torch.device:
    """The accelerator that a plan is for, where nobody says which."""
    return torch.device("cuda")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on an accelerator; ``None`` where that cannot be told."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def on_stream_of(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A context in which another thread works on the stream that this one has now."""
    if device.type != "cuda":
        return nullcontext
    return partial(torch.cuda.stream, torch.cuda.current_stream(device))


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; from pinned memory, from which it is copied while other things go on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        pinned = torch.empty_like(tensor, pin_memory=True)  # as dense as the copy will be, unlike pin_memory()
        return pinned.copy_(tensor).to(device, non_blocking=True)
    return tensor.to(device)


Read = TypeVar("Read")


class Uploads:
    """Copies to a device on a stream of their own, beside what the network does there.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def run(self, read: Callable[[], Read]) -> Read:
        """What is read, when it has arrived. In any thread."""
        if self._stream is None:
            return read()
        with torch.cuda.stream(self._stream):
            data = read()
        self._stream.synchronize()
        return data

    def take(self, data: Sequence[torch.Tensor]) -> None:
        """This thread uses what has arrived; its memory must not be used again before it is done with it."""
        if self._stream is not None:
            for tensor in data:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))


class Downloads:
    """Copies to CPU memory on a stream of their own."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def ready(self, tensor: torch.Tensor) -> torch.cuda.Event | None:
        """From when on a tensor holds what this thread has asked for."""
        return torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def get(self, tensor: torch.Tensor, ready: torch.cuda.Event | None) -> torch.Tensor:
        """The tensor in CPU memory, or as it is where it need not be copied asynchronously. In any thread."""
        if ready is None:
            return tensor
        self._stream = self._stream or torch.cuda.Stream(tensor.device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            self._stream.synchronize()
        return host
