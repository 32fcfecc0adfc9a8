"""What can be known to be wrong with where windows lie, how the network sees them and which of them it need not see."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.utils import convert_data_type, ensure_tuple, ensure_tuple_rep

from monai_chunked.call.checks import check_choice
from monai_chunked.inputs.lazy.image_array import ImageArray
from monai_chunked.inputs.lazy.lazy_array import Array, storage_chunks
from monai_chunked.inputs.source import check_inputs
from monai_chunked.plan.borders import BORDERS
from monai_chunked.plan.sizes import check_positive, per_dimension
from monai_chunked.windows.skipping import AtMost, Skip

__all__ = [
    "check_background",
    "check_border",
    "check_fill_batches",
    "check_mask",
    "check_min_size",
    "check_mirror_axes",
    "check_process_fn",
    "check_roi_weight_map",
    "check_rounding",
    "check_skip",
]


def check_border(border: object, dims: int) -> tuple[str, ...]:
    if not isinstance(border, str) and len(ensure_tuple(border)) != dims:
        raise ValueError(f"border={border!r} must be one value, or one for each of {dims} spatial dimensions")
    return tuple(check_choice("border", value, list(BORDERS)) for value in ensure_tuple_rep(border, dims))


def check_min_size(min_size: object, border: Sequence[str], roi_size: Sequence[int]) -> tuple[int, ...] | None:
    """The least size of a window that is cut, for each dimension."""
    if min_size is None:
        return None
    if "adaptive" not in border:
        raise ValueError(f"min_size={min_size} is for windows that are cut: set border='adaptive', or remove min_size")
    values = tuple(check_positive("min_size", m, min_size) for m in per_dimension("min_size", min_size, len(border)))
    if any(b == "adaptive" and m > r for b, m, r in zip(border, values, roi_size)):
        raise ValueError(f"min_size={min_size} must not be more than roi_size={tuple(roi_size)} in any dimension")
    return values


def check_roi_weight_map(roi_weight_map: torch.Tensor | None, border: Sequence[str]) -> torch.Tensor | None:
    if roi_weight_map is not None and "adaptive" in border:
        raise ValueError(
            f"roi_weight_map of shape {tuple(roi_weight_map.shape)} is of one size, but border='adaptive' cuts "
            f"windows; set mode instead of it (and cache_roi_weight_map=False), or another border"
        )
    return roi_weight_map


def check_fill_batches(fill_batches: object, border: Sequence[str]) -> bool:
    if fill_batches and "adaptive" in border:
        raise ValueError(
            f"fill_batches={fill_batches} is for networks that know one shape, but border='adaptive' cuts windows; set "
            f"another border, or fill_batches=False"
        )
    return bool(fill_batches)


def check_process_fn(process_fn: Any, border: Sequence[str], skips: bool) -> Any:
    """Refused where windows of several sizes are skipped: it says the weights of predicted ones alone."""
    if process_fn is not None and skips and "adaptive" in border:
        raise ValueError(
            f"process_fn={process_fn!r} may change the weights of windows, of which border='adaptive' has several "
            f"sizes, so those of skipped windows are not known; set another border, or remove process_fn, or skip and "
            f"mask"
        )
    return process_fn


def check_mirror_axes(mirror_axes: object, dims: int) -> tuple[int, ...]:
    """Spatial axes, each of them once; none for ``None``."""
    axes = () if mirror_axes is None else ensure_tuple(mirror_axes)
    if not all(isinstance(axis, (int, np.integer)) and 0 <= axis < dims for axis in axes) or len(set(axes)) < len(axes):
        raise ValueError(
            f"mirror_axes={mirror_axes!r} must be spatial axes from 0 to {dims - 1}, each of them once, as in "
            f"{tuple(range(dims))}"
        )
    return tuple(int(axis) for axis in axes)


def check_skip(skip: Any) -> Skip | None:
    """The callable that skips windows, made of a number if that was given."""
    if isinstance(skip, numbers.Real) and not isinstance(skip, (bool, np.bool_)):
        return AtMost(float(skip))
    if not (skip is None or callable(skip)) or isinstance(skip, type):
        raise TypeError(
            f"skip={skip!r} must be a callable that maps what the network would get of a window, (C, *roi_size), to a "
            f"bool, a number (windows with no voxel above it are skipped), or None"
        )
    return skip


def check_mask(mask: Any, shape: Sequence[int]) -> Array | None:
    """A mask of the spatial size of the input ``(B, C, *spatial)``; dimensions that it lacks in front are added."""
    if mask is None:
        return None
    own, dtype, size = getattr(mask, "shape", None), getattr(mask, "dtype", None), tuple(shape[2:])
    if own is None or dtype is None or not hasattr(mask, "__getitem__"):
        raise TypeError(
            f"mask must be a tensor, or an array with shape, dtype and slicing, of spatial size {size}, got "
            f"{type(mask).__name__}"
        )
    batch = "1" if shape[0] == 1 else f"1 or {shape[0]}"
    own, missing = tuple(map(int, own)), len(shape) - len(own)
    if not 0 <= missing <= 2 or own[-len(size) :] != size or (missing == 0 and own[0] not in (1, shape[0])):
        raise ValueError(
            f"mask of shape {own} does not match inputs of shape {tuple(shape)}; it must have shape {size}, with the "
            f"dimension of channels before it if you like, and the batch ({batch}) before that"
        )
    full: Any = mask
    if isinstance(mask, (torch.Tensor, np.ndarray)):
        full = convert_data_type(mask, torch.Tensor)[0] if isinstance(mask, torch.Tensor) else mask
        full = full[(None,) * missing]
    elif missing:
        chunks: Any = storage_chunks(mask)
        regular = chunks if chunks and all(isinstance(length, int) for length in chunks) else None
        full = ImageArray(mask, (*[None] * missing, *range(len(own))), {}, regular)
    check_inputs(full, "mask")
    return full


def check_background(background: Any) -> Any:
    """A number, or several: which channels they are for is only known with the heads of the network."""
    if isinstance(background, dict):
        parts = list(background.values())
    else:
        parts = list(background) if isinstance(background, (tuple, list)) else [background]
    for part in parts or [()]:
        channels = list(part) if isinstance(part, (tuple, list)) else [part]
        array = isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim < 2 and 0 not in part.shape
        if not channels or not (array or all(isinstance(n, numbers.Real) for n in channels)):
            raise TypeError(
                f"background={background!r} must be a number, or one for each channel; for several heads a tuple or "
                f"dict of these"
            )
    return background


def check_rounding(rounding: object, buffer_steps: int | None, background: Any, skips: bool) -> Literal["monai"] | None:
    """``None``, or ``"monai"`` where there is something that MONAI rounds."""
    if rounding is None:
        return None
    if not isinstance(rounding, str) or rounding != "monai":
        raise ValueError(
            f"rounding={rounding!r} must be 'monai' (products and sums are rounded as MONAI rounds them), or None "
            f"(they are not rounded to half precision)"
        )
    if buffer_steps is not None and buffer_steps > 0:
        raise ValueError(
            f"rounding='monai' goes with MONAI's order of windows, but buffer_steps={buffer_steps} adds up in another; "
            f"leave one of them out"
        )
    parts = background.values() if isinstance(background, dict) else ensure_tuple(background)
    if skips and any(np.any(np.asarray(part)) for part in parts):
        raise ValueError(
            f"rounding='monai' is for what a network returns, but background={background!r} stands for it in windows "
            f"that are skipped, and has no precision to round to; set background=0, or leave out rounding"
        )
    return "monai"
