"""The inferer that works in chunks in the place of one of MONAI's."""

from __future__ import annotations

from copy import copy
from typing import Any

from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt

from monai_chunked.inference.adapt_inferer import ChunkedSlidingWindowInfererAdapt
from monai_chunked.inference.inferer import ChunkedSlidingWindowInferer
from monai_chunked.inference.slice_inferer import ChunkedSliceInferer

__all__ = ["chunked_inferer"]


PARAMETERS = (
    "roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_device", "device",
    "progress", "cpu_thresh", "buffer_steps", "buffer_dim", "with_coord",
)  # fmt: skip
"""Of MONAI's inferers, but for the importance map that they may have computed already."""


OURS = (ChunkedSlidingWindowInferer, ChunkedSlidingWindowInfererAdapt, ChunkedSliceInferer)


def chunked_inferer(inferer: Any) -> ChunkedSlidingWindowInferer | str:
    """An inferer of its own that gives what another one gives, in chunks.

    Args:
        inferer: MONAI's, or one that works in chunks already.

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
    if kind is SlidingWindowInfererAdapt:  # it buffers when memory runs out, not when it is told to
        given["buffer_steps"] = None
    result: ChunkedSlidingWindowInferer
    if kind is SliceInferer:
        given["roi_size"] = inferer.orig_roi_size  # a call changes the other one
        result = ChunkedSliceInferer(inferer.spatial_dim, **given)
    else:
        adapts = kind is SlidingWindowInfererAdapt
        result = (ChunkedSlidingWindowInfererAdapt if adapts else ChunkedSlidingWindowInferer)(**given)
    result.roi_weight_map = inferer.roi_weight_map
    return result
