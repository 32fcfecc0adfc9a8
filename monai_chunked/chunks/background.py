"""What stands for the predictions of windows that are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch

from monai_chunked.plan.chunk_grid import ChunkGrid, Overlap
from monai_chunked.plan.heads import Head, Heads

__all__ = ["Background", "backgrounds_of"]


Weights = Callable[[tuple[int, ...]], torch.Tensor]
"""From the size of a window to its importance map."""


class Background:
    """The scores of one head for windows that are skipped: one number for each channel, the same in every voxel.

    They go through the operations of predictions in the same order, so that the bits are those of a network that
    returns them. But channels with the same number have the same sums, which are computed once for all of them.

    Args:
        values: one for each channel, ``(C,)``, of the dtype of the sums, on the device of predictions.
        grid: where chunks are and which windows touch them.
        weights: to blend them with: from the size of a window to ``(1, *size)``, of the dtype of the sums. They are
            asked for when something is added.

    Attributes:
        values: one for each channel, ``(C, 1, ...)``.
    """

    def __init__(self, values: torch.Tensor, grid: ChunkGrid, weights: Weights) -> None:
        self.grid = grid
        self.weights = weights
        self.values = values.reshape(-1, *[1] * len(grid.size))
        distinct, self._number = torch.unique(values, return_inverse=True)
        self._distinct = distinct.reshape(-1, *[1] * len(grid.size))

    @cached_property
    def adds(self) -> bool:
        """Whether adding it makes a difference: sums begin with zero, and adding zero leaves them as they are."""
        # weights that are not finite are set by the user, for all windows, which are of one size then
        return bool(self.values.any()) or not bool(self.weights(self.grid.windows.roi_size).isfinite().all())

    def of_window(self, size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """What stands for the prediction of a window, ``(C, *size)``, every voxel the same memory, and its weights."""
        weights = self.weights(size)
        return self.values.expand(-1, *weights.shape[1:]), weights

    def sums(
        self, chunk: tuple[int, ...], pieces: Iterable[tuple[Overlap, tuple[int, ...]]] | None = None
    ) -> torch.Tensor:
        """What skipped windows add up to in a chunk, ``(C, *chunk)``, in new memory that channels may share.

        Args:
            chunk: position in the chunk grid.
            pieces: what it shares with the skipped windows, and their sizes, in scan order; ``None``: all windows are
                skipped.
        """
        size = self.grid.chunk_size(chunk)
        total = torch.zeros((len(self._distinct), *size), dtype=self._distinct.dtype, device=self._distinct.device)
        if pieces is None:
            pieces = zip(self.grid.windows_of(chunk), self.grid.window_sizes_of(chunk))
        for (_, in_window, in_chunk), window in pieces if self.adds else ():
            total[(slice(None), *in_chunk)].add_(self._distinct * self.weights(window)[(slice(None), *in_window)])
        return total.expand(len(self._number), *size) if len(total) == 1 else total[self._number]


def backgrounds_of(heads: Heads, background: Any) -> list[torch.Tensor]:
    """One number for each channel of each head, ``(C,)`` in float64.

    Args:
        heads: of the network.
        background: what the user gave: a number for all, or for each head a number or one for each channel.

    Raises:
        ValueError: when it does not fit the heads.
    """
    values = heads.match("background", background, numbers=True)
    return [_of_channels(value, head) for value, head in zip(values, heads)]


def _of_channels(value: Any, head: Head) -> torch.Tensor:
    values = torch.as_tensor(value, dtype=torch.float64, device="cpu").flatten()
    if len(values) not in (1, head.channels):
        raise ValueError(
            f"background={value!r} has {len(values)} numbers but the {head.name} has {head.channels} channels; give "
            f"one number, or one for each channel"
        )
    return values.expand(head.channels)
