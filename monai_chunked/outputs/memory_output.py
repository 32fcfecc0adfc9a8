"""Finished chunks in a tensor, on any device."""

from __future__ import annotations

import torch

from monai_chunked.outputs.base import Output, OutputWriter, Result
from monai_chunked.plan.boxes import Box

__all__ = ["MemoryOutput"]


class MemoryOutput(Output):
    """A tensor in memory.

    Args:
        device: of the tensor.
    """

    in_memory = True

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def create(self, result: Result) -> OutputWriter:
        with torch.inference_mode(False):  # other threads may write to it
            return _MemoryWriter(torch.zeros(result.shape, dtype=result.dtype, device=self.device))


class _MemoryWriter(OutputWriter):
    in_memory = True

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory: torch.Tensor = memory

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.memory[image][(slice(None), *box)] = chunk

    def finish(self) -> torch.Tensor:
        return self.memory
