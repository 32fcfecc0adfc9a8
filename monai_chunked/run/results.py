"""What a call returns, beside voxels: dtype, metadata, where voxels lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from monai.utils import convert_to_dst_type

from monai_chunked.inputs.source import Source, TensorSource
from monai_chunked.outputs.base import TakesMetadata

__all__ = ["result_dtype_of", "with_metadata"]


def result_dtype_of(source: Source, padding_mode: str = "constant") -> torch.dtype:
    """What MONAI returns; float32 for integer inputs, on which MONAI fails.

    Args:
        source: the input.
        padding_mode: if it is padded, which autocast may do in another dtype.
    """
    if isinstance(source, TensorSource) and source.templates:
        return torch.get_default_dtype()
    if not source.dtype.is_floating_point:
        return torch.float32
    if padding_mode == "constant" or source.dtype.itemsize > 2 or not torch.is_autocast_enabled(source.device.type):
        return source.dtype
    dims = len(source.shape) - 2
    some = torch.zeros((1, 1, *[2] * dims), dtype=source.dtype, device=source.device)
    try:
        return F.pad(some, [1, 1] * dims, mode=padding_mode).dtype
    except (RuntimeError, NotImplementedError):  # who pads the input says so
        return source.dtype


def with_metadata(results: Sequence[Any], templates: Sequence[MetaTensor], template: MetaTensor | None) -> list[Any]:
    """MetaTensors where the input has metadata. As in MONAI only a single result takes it over.

    Args:
        results: of each head of the network.
        templates: for each image a tensor without voxels that has the metadata; empty if there is none.
        template: one that has the metadata of the batch.
    """
    if template is None:
        return list(results)
    if len(results) == 1 and isinstance(results[0], TakesMetadata):
        return [results[0].with_metadata(templates)]
    if not all(isinstance(result, torch.Tensor) for result in results):
        return list(results)
    if len(results) > 1:
        return [MetaTensor(result) for result in results]
    return [convert_to_dst_type(result, template, dtype=result.dtype, device=result.device)[0] for result in results]
