"""The levels that open chunks are on: memory of a device, CPU memory, scratch, and the result itself."""

from __future__ import annotations

import os

import torch

from monai_chunked.machine.caller import warn_caller
from monai_chunked.machine.pages import Pages
from monai_chunked.machine.scratch import ScratchFile
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH
from monai_chunked.plan.sizes import format_bytes

__all__ = ["Levels", "Memory"]


class Memory:
    """The memory of one chunk. Whoever has it gives it back when nobody needs what is in it any more.

    Args:
        tensor: flat, or a part of the result.
        pages: where it goes when it is recycled; ``None``: it is freed with its last tensor.

    Attributes:
        in_result: whether it is a part of the result, where what is in it stays.
    """

    def __init__(self, tensor: torch.Tensor, pages: Pages | None = None, in_result: bool = False) -> None:
        self.tensor = tensor
        self.in_result = in_result
        self._pages = pages

    def recycle(self) -> None:
        """It can be used again. Safe to call twice."""
        if self._pages is not None:
            self._pages.recycle(self.tensor)
            self._pages = None


class Levels:
    """Hands out memory on each level, and counts what is open there.

    Args:
        layout: what the run will hold and move.
        device: where predictions are.
        dtype: of the sums.
        reuse: whether the memory of a finished chunk may be used again.
        scratch_dir: the folder of the scratch file.

    Attributes:
        open_bytes: bytes of open chunks on each level.
        written, read: to and from scratch so far, in bytes.
        pages: CPU memory that is used again; ``None``: it comes from the heap.
    """

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        dtype: torch.dtype,
        *,
        reuse: bool,
        scratch_dir: str | os.PathLike[str] | None,
    ) -> None:
        self.open_bytes = [0, 0, 0]
        self.written = self.read = 0
        self.device = device
        self._dtype = dtype
        self.pages: Pages | None = None
        if reuse and Pages.supported():
            self.pages = Pages(dtype, layout.forecast.peak[CPU], layout.largest_chunk())
        self._scratch_dir = scratch_dir
        self._scratch: ScratchFile | None = None
        if layout.forecast.scratch_file:
            self._scratch = ScratchFile(layout.forecast.scratch_file, scratch_dir)

    def open(self, level: int, size: int) -> tuple[Memory, int]:
        """Memory of so many bytes, and its level: CPU memory where a device turns out to have no room."""
        elements = size // self._dtype.itemsize
        if level == DEVICE:
            try:
                tensor = torch.empty(elements, dtype=self._dtype, device=self.device)
            except torch.OutOfMemoryError:
                warn_caller(
                    f"the device has no room for open chunks beyond {format_bytes(self.open_bytes[DEVICE])}; "
                    f"they go to CPU memory from now on (device_memory sets a limit beforehand)",
                )
                return self.open(CPU, size)
            memory = Memory(tensor)
        elif self.pages is None:
            memory = Memory(torch.empty(elements, dtype=self._dtype))
        else:
            memory = Memory(self.pages.allocate(elements), self.pages)
        self.open_bytes[level] += size
        return memory, level

    def leave(self, level: int, memory: Memory) -> None:
        """What is in this memory is not open on a level any more; it is still there until it is recycled."""
        self.open_bytes[level] -= memory.tensor.nbytes
        if self.pages is not None and level == CPU and not memory.in_result:
            self.pages.release(memory.tensor)

    def store(self, slot: int, memory: Memory, scratch_file: int) -> None:
        """Write a chunk to scratch, to a place in bytes of a file of that size."""
        if self._scratch is None:  # not foreseen: a device turned out to have less room than it said
            self._scratch = ScratchFile(scratch_file, self._scratch_dir)
        self._scratch.write(slot, memory.tensor.cpu())
        self.written += memory.tensor.nbytes
        self.open_bytes[SCRATCH] += memory.tensor.nbytes

    def restore(self, slot: int, memory: Memory) -> None:
        """Read a chunk from scratch."""
        assert self._scratch is not None
        tensor = memory.tensor
        host = tensor if tensor.device.type == "cpu" else torch.empty(tensor.shape, dtype=tensor.dtype)
        self._scratch.read(slot, host)
        if host is not tensor:
            tensor.copy_(host)
        self.read += tensor.nbytes
        self.open_bytes[SCRATCH] -= tensor.nbytes

    def close(self) -> None:
        """The run is over, well or not."""
        if self._scratch is not None:
            self._scratch.close()
