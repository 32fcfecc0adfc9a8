"""Finished chunks wherever they fit: on the device, in CPU memory, or on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from monai_chunked.machine.caller import warn_caller
from monai_chunked.machine.memory import available_memory, is_refusal
from monai_chunked.outputs.base import Expected, Metadata, Output, OutputWriter, Result
from monai_chunked.outputs.file_output import check_forgotten
from monai_chunked.outputs.memory_output import MemoryOutput
from monai_chunked.outputs.numpy import NumpyOutput
from monai_chunked.plan.sizes import format_bytes

__all__ = ["AutoOutput"]


class AutoOutput(Output):
    """A tensor on ``device`` if it fits in what is free there, else in CPU memory if it fits there, else on disk.

    Unlike other outputs it is made for one run. Each step down is a warning.

    Args:
        device: the first choice.
        output_dir: the folder for the last choice, as in :py:class:`NumpyOutput`.
    """

    in_memory = True

    def __init__(self, device: torch.device, output_dir: str | os.PathLike[str] | None = None) -> None:
        cpu = torch.device("cpu")
        self.devices = [cpu] if device.type == "cpu" else [device, cpu]
        self.disk = NumpyOutput(output_dir)
        self._taken: dict[torch.device, int] = {}

    def reserve(self, device: torch.device, size: int) -> None:
        self._taken[device] = self._taken.get(device, 0) + size

    def check(self, expected: Expected) -> None:
        if not self.disk.temporary:  # whether temporary files have room matters only when they are needed
            self.disk.check(replace(expected, least_bytes=0, dtype=None, overwrite=True))

    def folders(self, metadata: Sequence[Metadata]) -> list[Path]:
        return self.disk.folders(metadata)

    def create(self, result: Result) -> OutputWriter:
        size = prod(result.shape) * result.dtype.itemsize
        for device, below in zip(self.devices, [*self.devices[1:], "disk"]):
            available = available_memory(device)
            free = None if available is None else max(available - self._taken.get(device, 0), 0)
            reason = "and was refused that"
            if free is not None and size > free:
                reason = f"but {format_bytes(free)} are free"
            else:
                try:
                    writer = MemoryOutput(device).create(result)
                except (MemoryError, RuntimeError) as error:
                    if not is_refusal(error):
                        raise
                else:
                    self.reserve(device, size)
                    return writer
            warn_caller(
                f"output='auto': the {result.name} takes {format_bytes(size)} {reason} on {device} beside open "
                f"chunks, so it goes to {below}",
            )
        journal = self.disk.journal(result.metadata)
        if journal is not None and result.metadata[0].get("filename_or_obj"):
            check_forgotten(journal, result.overwrite)
            journal.unlink(missing_ok=True)
        return self.disk.create(result)
