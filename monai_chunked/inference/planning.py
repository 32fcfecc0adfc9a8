"""From an inferer to its plan."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple

from monai_chunked.chunks.postprocessing import is_argmax, label_dtype
from monai_chunked.inference.settings import check_buffer, check_overlap, check_roi_size, check_sw_batch_size
from monai_chunked.inputs.source import device_of, dtype_of, rows_of
from monai_chunked.outputs.write_behind import DEPTH
from monai_chunked.plan.chunk_plan import ChunkPlan, _finished_bytes, _result_device
from monai_chunked.plan.layout import lay_out, least_peak
from monai_chunked.plan.schedule import CPU, DEVICE, SCRATCH
from monai_chunked.plan.sizes import check_chunk_size, check_positive, format_bytes, parse_bytes
from monai_chunked.plan.window_grid import window_grid

__all__ = ["plan_inferer"]


A_LOT = 0.75
"""Scanning along another dimension is mentioned if it brings the peak of open chunks below this fraction."""


def plan_inferer(
    inferer: SlidingWindowInferer,
    inputs_or_shape: Any,
    out_channels: int | Sequence[int],
    prediction_size: Sequence[int] | None = None,
) -> ChunkPlan:
    """The plan of :py:class:`ChunkedSlidingWindowInferer`, or of what would take the place of one of MONAI's.

    Args:
        inferer: the inferer.
        inputs_or_shape: the input, or its shape ``(B, C, *spatial)``.
        out_channels: number of channels that the network returns; one for each of its outputs if there are several.
        prediction_size: spatial size of what the network returns for one window, ``roi_size`` by default.

    Raises:
        ValueError: when a parameter does not fit, or the limits cannot hold the chunks of one window.
    """
    shape = tuple(int(n) for n in getattr(inputs_or_shape, "shape", inputs_or_shape))
    if len(shape) < 3 or min(shape) < 1:
        raise ValueError(f"inputs must have shape (B, C, *spatial), got {shape}")
    images, _, *image_size = shape
    dims = len(image_size)
    roi_size = check_roi_size(inferer.roi_size, shape)
    sw_batch_size = check_sw_batch_size(inferer.sw_batch_size)
    overlap = check_overlap(inferer.overlap, dims)
    check_buffer(inferer.buffer_steps, inferer.buffer_dim, dims)
    chunk_size = check_chunk_size(getattr(inferer, "chunk_size", None), dims)
    device_limit = parse_bytes("device_memory", getattr(inferer, "device_memory", None))
    cpu_limit = parse_bytes("cpu_memory", getattr(inferer, "cpu_memory", None))
    given = hasattr(inputs_or_shape, "dtype")
    likely = "cpu" if device_limit is None else "cuda"
    device = inferer.sw_device or (device_of(inputs_or_shape) if given else likely)
    itemsize = 8 if given and dtype_of(inputs_or_shape) == torch.float64 else 4
    channels = [check_positive("out_channels", c) for c in ensure_tuple(out_channels)]

    outputs = [(c, tuple(prediction_size or roi_size)) for c in channels]
    network_device = torch.device(device)
    on_cpu = network_device.type == "cpu"
    limits = (0 if on_cpu else device_limit, cpu_limit)
    windows = window_grid(image_size, roi_size, overlap, inferer.buffer_steps, inferer.buffer_dim)
    postprocessing = getattr(inferer, "postprocessing", None)
    labels_on_cpu = on_cpu and is_argmax(postprocessing)
    chosen = lay_out(windows, image_size, outputs, itemsize, chunk_size, *limits, labels_on_cpu=labels_on_cpu)
    least = {
        d: least_peak(window_grid(image_size, roi_size, overlap, 1, d), image_size, outputs, itemsize)
        for d in range(dims)
    }
    best = min(least, key=lambda d: least[d])
    advice = None
    if least[best] < A_LOT * least[windows.order[0]]:
        advice = (
            f"with buffer_steps=1 and buffer_dim={best} open chunks fit in {format_bytes(least[best])} instead of "
            f"{format_bytes(least[windows.order[0]])}, if that is the limit (other order than MONAI's, other last bits)"
        )
    voxels = [images * prod(grid.size) for grid in chosen.grids]
    output_bytes: int | None = None
    if postprocessing is None:
        output_bytes = sum(v * c * itemsize for v, c in zip(voxels, channels))
    elif postprocessing == "argmax":
        output_bytes = sum(v * label_dtype(c).itemsize for v, c in zip(voxels, channels))
    forecast = chosen.forecast
    kept = rows_of(inputs_or_shape, windows) if given else None
    source = device_of(inputs_or_shape) if given else torch.device(likely)
    result_device = _result_device(inferer, source)
    in_memory = result_device is not None
    in_place = postprocessing is None and result_device == network_device and not forecast.moved
    finished_bytes = _finished_bytes(chosen, itemsize, postprocessing, 0 if on_cpu and in_memory else DEPTH)
    far = source.type != network_device.type or (given and not isinstance(inputs_or_shape, torch.Tensor))
    window_bytes = shape[1] * prod(roi_size) * (dtype_of(inputs_or_shape).itemsize if given else 4)
    predicted = sum(prod(size) * each for (_, size), each in zip(outputs, chosen.voxel_bytes))
    batch_bytes = sw_batch_size * ((2 if far else 1) * window_bytes + predicted) + prod(roi_size) * itemsize
    in_all = [0 if in_place else forecast.peak[DEVICE], 0 if in_place else forecast.peak[CPU]]
    in_all[CPU if on_cpu else DEVICE] += finished_bytes + batch_bytes
    if result_device is not None:
        in_all[CPU if result_device.type == "cpu" else DEVICE] += output_bytes or 0
    if kept is not None and kept.in_memory:
        in_all[CPU] += kept.nbytes
    return ChunkPlan(
        image_size=tuple(image_size),
        roi_size=windows.roi_size,
        windows=images * len(windows),
        batches=windows.batch_count(images, sw_batch_size),
        chunks=images * sum(map(len, chosen.grids)),
        chunk_size=tuple(max(int(np.diff(g.cuts[d]).max()) for g in chosen.grids) for d in range(dims)),
        scan_order=windows.order,
        device_peak=forecast.peak[DEVICE],
        cpu_peak=forecast.peak[CPU],
        scratch_peak=forecast.peak[SCRATCH],
        device_limit=None if on_cpu else device_limit,
        cpu_limit=cpu_limit,
        scratch_written=images * forecast.written,
        scratch_read=images * forecast.read,
        output_bytes=output_bytes,
        monai_bytes=sum((images * c + 1) * prod(windows.image_size) * itemsize for c in channels),
        advice=advice,
        curve=forecast.curve,
        input_bytes=kept.nbytes if kept else 0,
        input_in_memory=kept is None or kept.in_memory,
        finished_bytes=finished_bytes,
        batch_bytes=batch_bytes,
        device_bytes=in_all[DEVICE],
        cpu_bytes=in_all[CPU],
    )
