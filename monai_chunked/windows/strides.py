"""Copies that every operator treats as it would treat a view of the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from monai_chunked.plan.boxes import sizes
from monai_chunked.plan.window_grid import Window

__all__ = ["copy_with_layout", "memory_like", "views_of"]


ALIGNMENT = 64
"""Bytes (of addresses) and elements (of strides) to which the layout of a copy repeats that of the original."""


def views_of(image: torch.Tensor, batch: Sequence[Window]) -> list[torch.Tensor]:
    """A view of each window, ``(1, C, *roi_size)``, by strides: one call, where slices take one for each dimension."""
    strides = image.stride()
    shape = (1, image.shape[1], *sizes(batch[0].box))
    views = []
    for window in batch:
        start = image.storage_offset() + window.image * strides[0]
        for side, stride in zip(window.box, strides[2:]):
            start += side.start * stride
        views.append(image.as_strided(shape, strides, start))
    return views


def copy_with_layout(view: torch.Tensor) -> torch.Tensor:
    """A copy that every operator treats as it would treat the view."""
    memory = memory_like(view, view.data_ptr(), view.device)
    if memory is None:
        return view.clone()
    if memory.shape == view.shape:
        return memory.copy_(view)
    memory.copy_(view[tuple(slice(size) for size in memory.shape)])
    return memory.expand(view.shape)


def memory_like(view: torch.Tensor, address: int, device: torch.device) -> torch.Tensor | None:
    """Memory that every operator treats as it would treat the view, little more of it than the window takes.

    MONAI passes a view of the image here, which a network may write to. A contiguous copy would be safe but not
    exact: how PyTorch vectorises and in which order it sums depends on strides, so that ``sigmoid`` or ``mean`` of a
    contiguous copy has other last bits. What matters is the order of strides, which dimensions can be merged, and
    alignment; the distance between rows, most of which belongs to voxels outside the window, does not.

    Args:
        view: only its shape and strides are used.
        address: of its first element, in bytes.
        device: of the new memory.

    Returns:
        memory of the shape of the view, but of size one along expanded dimensions; ``None``: voxels overlap.
    """
    layout = _dense_layout(tuple(view.shape), view.stride())
    if layout is None:
        return None
    shape, strides, span = layout
    memory = torch.empty(span + ALIGNMENT, dtype=view.dtype, device=device)
    offset = (address - memory.data_ptr()) % ALIGNMENT // view.element_size()
    return memory.as_strided(shape, strides, offset)


@lru_cache
def _dense_layout(
    view_shape: tuple[int, ...], view_strides: tuple[int, ...]
) -> tuple[list[int], list[int], int] | None:
    """Shape, strides and elements of :py:func:`memory_like`, which are the same for nearly all windows."""
    strides = [0] * len(view_shape)
    borders = [(1, 1)]  # where dimensions begin and end, in the view and in the copy
    reach = [1, 1]  # how far the voxels go, in both
    for d in sorted(range(len(view_shape)), key=lambda d: (view_strides[d], view_shape[d] == 1, -d)):
        stride, size = view_strides[d], view_shape[d]
        if stride == 0:  # an expanded dimension: copied once, expanded again
            continue
        if size > 1 and stride < reach[0]:  # one element is several voxels, as after unfold
            return None
        before, packed = max(border for border in borders if border[0] <= stride)
        strides[d] = (
            packed if stride == before else _apart(packed + 1 + (stride - packed - 1) % ALIGNMENT, reach, borders)
        )
        borders += [(stride, strides[d]), (stride * size, strides[d] * size)]
        reach = [reach[0] + (size - 1) * stride, reach[1] + (size - 1) * strides[d]]
    shape = [1 if stride == 0 else size for size, stride in zip(view_shape, strides)]
    return shape, strides, reach[1]


def _apart(stride: int, reach: Sequence[int], borders: Sequence[tuple[int, int]]) -> int:
    """A stride with which voxels of the copy do not overlap, and a dimension begins where no other one ends.

    Where rows hold every other voxel, one may begin before the last one ends in memory.
    """
    ends = {packed for _, packed in borders}
    while stride < reach[1] or stride in ends:
        stride += ALIGNMENT
    return stride
