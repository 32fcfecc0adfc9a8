"""What works in chunks in the place of MONAI's inferers, where that gives what they give."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.transforms.utils import fall_back_tuple

from monai_chunked.api.adapt_inferer import ChunkedSlidingWindowInfererAdapt
from monai_chunked.api.as_monai import why_not_alike
from monai_chunked.api.inferer import ChunkedSlidingWindowInferer
from monai_chunked.api.slice_inferer import ChunkedSliceInferer

__all__ = ["blends_alike", "chunked_inferer"]


PARAMETERS = (
    "roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_device", "device",
    "progress", "cpu_thresh", "buffer_steps", "buffer_dim", "with_coord",
)  # fmt: skip
"""The parameters of MONAI's inferers, but for the importance map that they may have computed already."""


OURS = (ChunkedSlidingWindowInferer, ChunkedSlidingWindowInfererAdapt, ChunkedSliceInferer)


def chunked_inferer(inferer: Any, has_more: bool = False) -> ChunkedSlidingWindowInferer | str:
    """A new inferer that gives in chunks what another one gives.

    Args:
        inferer: MONAI's, or one that works in chunks already.
        has_more: whether it is called with further arguments for the network.

    Returns:
        the inferer; or why there is none.

    >>> chunked_inferer(SlidingWindowInferer(96, overlap=0.5)).overlap
    0.5
    >>> chunked_inferer(None)
    'the inferer is SimpleInferer, not a sliding window'
    """
    kind = type(inferer)
    if isinstance(inferer, ChunkedSlidingWindowInferer):
        if inferer.postprocessing is not None:
            return "the inferer has a postprocessing of its own"
        return copy(inferer) if kind in OURS else f"the inferer is {kind.__name__}, which may need scores itself"
    if kind not in (SlidingWindowInferer, SlidingWindowInfererAdapt, SliceInferer):
        name = "SimpleInferer" if inferer is None else kind.__name__
        return f"the inferer is {name}, not a sliding window"
    given = {name: getattr(inferer, name) for name in PARAMETERS}
    if kind is SlidingWindowInfererAdapt and inferer.device is None:  # it buffers when memory runs out, not before
        given["buffer_steps"] = None
    if not given["buffer_steps"] or given["buffer_steps"] < 0:  # else it adds up in another order anyway
        given["rounding"] = "monai"
    result: ChunkedSlidingWindowInferer
    if kind is SliceInferer:
        if has_more:
            return "MONAI's SliceInferer may keep further arguments from the network"
        given["roi_size"] = inferer.orig_roi_size  # MONAI's calls change roi_size
        result = ChunkedSliceInferer(inferer.spatial_dim, **given)
    else:
        adapts = kind is SlidingWindowInfererAdapt
        result = (ChunkedSlidingWindowInfererAdapt if adapts else ChunkedSlidingWindowInferer)(**given)
    result.roi_weight_map = inferer.roi_weight_map
    return result


def blends_alike(inferer: Any, inputs: Any) -> bool:
    """Whether scores blended in chunks have the bits, and the place in memory, of those that one of MONAI's blends.

    Args:
        inferer: MONAI's.
        inputs: ``(B, C, *spatial)``.
    """
    if isinstance(inferer, ChunkedSlidingWindowInferer):
        return False
    buffer_steps, roi_size = inferer.buffer_steps, inferer.roi_size
    if isinstance(inferer, SlidingWindowInfererAdapt) and inferer.device is None:
        buffer_steps = 1 if inferer.cpu_thresh is not None and getattr(inputs, "is_cuda", False) else None
    if isinstance(inferer, SliceInferer):
        roi_size = list(inferer.orig_roi_size)
        roi_size.insert(inferer.spatial_dim, 1)
    if torch.is_grad_enabled() or why_not_alike(inputs, buffer_steps) is not None:
        return False
    size = tuple(inputs.shape[2:])  # what is padded leaves gaps between the scores in memory
    return all(n >= roi for n, roi in zip(size, fall_back_tuple(roi_size, size)))
