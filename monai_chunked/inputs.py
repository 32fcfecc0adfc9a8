"""Reading windows from the input, without ever handing the network memory that belongs to the caller."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_chunked.plan import Window

__all__ = ["read_windows"]

ALIGNMENT = 64
"""Bytes (of addresses) and elements (of strides) to which the layout of a copy repeats that of the original."""


def read_windows(image: torch.Tensor, batch: Sequence[Window], device: torch.device, gather: bool) -> torch.Tensor:
    """A batch of windows on ``device``, shape ``(windows, C, *roi_size)``.

    Args:
        image: ``(B, C, *spatial)``, padded where it is smaller than a window.
        batch: the windows to read.
        device: where the network wants them.
        gather: whether MONAI would concatenate the windows (``sw_batch_size`` > 1) or pass a view of the image.
    """
    views = [image[(slice(w.image, w.image + 1), slice(None), *w.box)] for w in batch]
    if gather:
        return torch.cat(views).to(device)
    (view,) = views
    return _copy_with_layout(view) if view.device == device else view.to(device)


def _copy_with_layout(view: torch.Tensor) -> torch.Tensor:
    """A copy that every operator treats as it would treat the view, in little more memory than the window takes.

    MONAI passes a view of the image here, which a network may write to. A contiguous copy would be safe but not
    exact: how PyTorch vectorises and in which order it sums depends on strides, so that ``sigmoid`` or ``mean`` of a
    contiguous copy has other last bits. What matters is the order of strides, which dimensions can be merged, and
    alignment; the distance between rows, most of which belongs to voxels outside the window, does not.
    """
    strides = [0] * view.dim()
    borders = [(1, 1)]  # where dimensions begin and end, in the view and in the copy
    for d in sorted(range(view.dim()), key=lambda d: (view.stride(d), view.shape[d] == 1, -d)):
        stride, size = view.stride(d), view.shape[d]
        if stride == 0:  # an expanded dimension: copied once, expanded again
            continue
        if size > 1 and stride < max(borders)[0]:  # one element is several voxels, as after unfold
            return view.clone()
        before, packed = max(border for border in borders if border[0] <= stride)
        strides[d] = packed if stride == before else packed + 1 + (stride - packed - 1) % ALIGNMENT
        borders += [(stride, strides[d]), (stride * size, strides[d] * size)]
    shape = [1 if stride == 0 else size for size, stride in zip(view.shape, strides)]
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
    memory = view.new_empty(span + ALIGNMENT)
    offset = (view.data_ptr() - memory.data_ptr()) % ALIGNMENT // view.element_size()
    copy = memory.as_strided(shape, strides, offset)
    copy.copy_(view[tuple(slice(size) for size in shape)])
    return copy.expand(view.shape)
