"""One call, with what is known of it before the network runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from monai_chunked.inference.results import at_resolution
from monai_chunked.inference.settings import Settings
from monai_chunked.inputs.source import Source
from monai_chunked.outputs.base import Metadata, Output, Result
from monai_chunked.outputs.recovery.recovery import NoRecovery, Recovery
from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.plan.heads import Head
from monai_chunked.plan.skipped import Skipped
from monai_chunked.windows.importance import Importance

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """One call, with what is known before the network runs.

    Attributes:
        settings: what it is asked to do.
        source: where windows are read from.
        device: where the network runs, and where predictions are.
        sum_dtype: float32 or float64.
        result_dtype: of what is not postprocessed.
        importance: makes importance maps of windows.
        output: where finished chunks go.
        recovery: what an earlier run left.
        metadata: of each image, with a name where the result must have one.
        skipped: the windows that are known to be skipped.
    """

    settings: Settings
    source: Source
    device: torch.device
    sum_dtype: torch.dtype
    result_dtype: torch.dtype
    importance: Importance
    output: Output
    recovery: Recovery | NoRecovery
    metadata: tuple[Metadata, ...]
    skipped: Skipped | None

    def result(self, head: Head, grid: ChunkGrid, channels: int, dtype: torch.dtype) -> Result:
        """What one head becomes."""
        shape = (len(self.metadata), channels, *grid.size)
        metadata = tuple(at_resolution(each, self.settings.image_size, grid.size) for each in self.metadata)
        overwrite, resumable = bool(self.settings.overwrite), self.recovery.journal is not None
        return Result(head.name, shape, dtype, grid.cuts, metadata, overwrite, resumable)
