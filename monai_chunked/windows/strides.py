"""Copies that every operator treats as it would treat a view of the whole image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.reader import _dense_layout

__all__ = ["ALIGNMENT", "_copy_with_layout", "_memory_like", "_views"]


ALIGNMENT = 64
"""Bytes (of addresses) and elements (of strides) to which the layout of a copy repeats that of the original."""


def _views(image: torch.Tensor, batch: Sequence[Window]) -> list[torch.Tensor]:
    return [image[(slice(w.image, w.image + 1), slice(None), *w.box)] for w in batch]


def _copy_with_layout(view: torch.Tensor) -> torch.Tensor:
    """A copy that every operator treats as it would treat the view."""
    memory = _memory_like(view, view.data_ptr(), view.device)
    if memory is None:
        return view.clone()
    memory.copy_(view[tuple(slice(size) for size in memory.shape)])
    return memory.expand(view.shape)


def _memory_like(view: torch.Tensor, address: int, device: torch.device) -> torch.Tensor | None:
    """Memory that every operator treats as it would treat the view, little more of it than the window takes.

    MONAI passes a view of the image here, which a network may write to. A contiguous copy would be safe but not
    exact: how PyTorch vectorises and in which order it sums depends on strides, so that ``sigmoid`` or ``mean`` of a
    contiguous copy has other last bits. What matters is the order of strides, which dimensions can be merged, and
    alignment; the distance between rows, most of which belongs to voxels outside the window, does not.

    Args:
        view: of which only shape and strides are used.
        address: of its first element, in bytes.
        device: of the new memory.

    Returns:
        of the shape of the view, but for expanded dimensions, which are of size one; ``None`` where voxels overlap.
    """
    layout = _dense_layout(tuple(view.shape), view.stride())
    if layout is None:
        return None
    shape, strides, span = layout
    memory = torch.empty(span + ALIGNMENT, dtype=view.dtype, device=device)
    offset = (address - memory.data_ptr()) % ALIGNMENT // view.element_size()
    return memory.as_strided(shape, strides, offset)
