"""
The loop: predict a batch of windows, add the predictions to open chunks, finish chunks, write them.

Where windows and chunks lie is the business of ``plan``, how predictions come about that of ``predictions``, how sums
are kept that of ``chunks``, and where finished chunks go that of ``outputs``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from math import prod
from typing import Any, Literal

import monai
import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils import BlendMode, PytorchPadMode, convert_to_dst_type
from tqdm import tqdm

from monai_chunked.chunks.postprocessing import match_postprocessing
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.inference.interruption import interruptible
from monai_chunked.inference.labels import mark_labels
from monai_chunked.inference.loop import _run
from monai_chunked.inference.settings import (
    _device,
    _output,
    _result_dtype,
    check_buffer,
    check_condition,
    check_inputs,
    check_mode,
    check_overlap,
    check_overwrite,
    check_padding_mode,
    check_postprocessing,
    check_preprocessing,
    check_roi_size,
    check_sigma_scale,
    check_sw_batch_size,
)
from monai_chunked.inputs.source import _is_far, device_of, dtype_of, template_of, templates_of
from monai_chunked.outputs.base import Output
from monai_chunked.outputs.recovery.recovery import recovering
from monai_chunked.plan.sizes import check_chunk_size, parse_bytes
from monai_chunked.plan.window_grid import window_grid
from monai_chunked.windows.importance import importance_map
from monai_chunked.windows.predictor import BoundNetwork, Predictor, pack
from monai_chunked.windows.reader import image_of

__all__ = ["chunked_sliding_window_inference"]


def chunked_sliding_window_inference(
    inputs: Any,
    roi_size: Sequence[int] | int,
    sw_batch_size: int,
    predictor: Callable[..., torch.Tensor | Sequence[torch.Tensor] | dict[Any, torch.Tensor]],
    overlap: Sequence[float] | float = 0.25,
    mode: BlendMode | str = BlendMode.CONSTANT,
    sigma_scale: Sequence[float] | float = 0.125,
    padding_mode: PytorchPadMode | str = PytorchPadMode.CONSTANT,
    cval: float = 0.0,
    sw_device: torch.device | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    roi_weight_map: torch.Tensor | None = None,
    process_fn: Callable | None = None,
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
    with_coord: bool = False,
    *args: Any,
    chunk_size: Sequence[int] | int | None = None,
    preprocessing: Callable[..., Any] | None = None,
    postprocessing: Any = None,
    output: str | Output = "auto",
    output_dir: str | os.PathLike[str] | None = None,
    device_memory: int | str | None = None,
    cpu_memory: int | str | None = None,
    scratch_dir: str | os.PathLike[str] | None = None,
    overwrite: bool | Literal["changed"] = False,
    network_id: str | None = None,
    run_id: str | None = None,
    **kwargs: Any,
) -> torch.Tensor | tuple[torch.Tensor, ...] | dict[Any, torch.Tensor]:
    """
    Sliding window inference that never holds the scores of the whole volume.

    MONAI's ``sliding_window_inference`` with the same windows in the same order and batches, the same blending and,
    for float32 and float64 inputs on a CPU, the same bits. Predictions are added to chunks of the output; a chunk is
    finished (divided by the sum of weights, postprocessed, handed to the output) as soon as its last window is in.

    Args:
        inputs: ``(B, C, *spatial)``, a tensor, or anything with ``shape``, ``dtype`` and slicing: ``numpy.memmap``,
            ``zarr.Array``, ``h5py.Dataset``, ``dask.array``, what :py:func:`open_image` returns. An array is never read
            as a whole: rows of it that the current windows need are kept, so that each voxel is read once, and those of
            the next batch are read by a thread while the network runs. Integers become float32. Never written to.
        roi_size, sw_batch_size, predictor, overlap, mode, sigma_scale, padding_mode, cval, sw_device, device, progress,
            roi_weight_map, process_fn, with_coord, args, kwargs: as in ``monai.inferers.sliding_window_inference``.
            Open chunks are on ``sw_device``.
        buffer_steps: if positive, windows advance along ``buffer_dim`` last, and a chunk is so many scan steps long in
            it. Unlike MONAI's buffered mode this returns every output of the predictor.
        buffer_dim: a spatial dimension.
        chunk_size: spatial size of a chunk in output voxels. By default chunks end where windows start or end.
        preprocessing: applied to the data of each window, ``(C, *window)`` to ``(C', *window)``, before it is padded
            and goes to the network. It promises to treat each voxel by itself: never to look at other voxels, at where
            a voxel is, or at random numbers. MONAI's array transforms that do not are refused, any other callable is
            taken at its word. Where a window reaches over the border of the image it gets less than a window.
        postprocessing: applied to each finished chunk, ``(C, *chunk)`` to ``(C', *chunk)``: a callable that promises
            the same, or ``"argmax"`` for one channel of the smallest unsigned integer type that holds the labels. The
            memory of the chunk is used again after the call. With several outputs of the predictor: one for all, or a
            tuple or dict to match. Inference runs without gradients then. Results that are labels raise when a softmax
            or an argmax of their one channel, or a sigmoid, would destroy them.
        output: where finished chunks go: an :py:class:`Output`, or one of these names. ``"device"``: a tensor on
            ``device``. ``"cpu"``: a tensor in memory.
            ``"disk"``: a memory-mapped ``.npy`` file, returned as a tensor over the map; inference runs without
            gradients then. ``"auto"``: the first of these that has room, with a warning for each step down.
        output_dir: the folder for ``"disk"``, created if it is missing, and for ``"auto"`` when it comes to that; by
            default the file has no name, and is gone with the tensor. Refused with any other output.
        device_memory: the most that open chunks may take on ``sw_device`` if that is an accelerator, in bytes or as in
            ``"512MB"`` or ``"2GiB"``. ``None``: what is free after the first batch, less a margin. 0: none. Chunks that
            do not fit are kept in CPU memory. With this or the next limit inference runs without gradients.
        cpu_memory: the most that open chunks may take in CPU memory. ``None``: what is available, less a margin. Chunks
            that do not fit go to a scratch file.
        scratch_dir: the folder of the scratch file, which has no name and vanishes with the process; by default the one
            for temporary files. More than 1 GiB of rows of an array are kept there too.
        overwrite: whether a result on disk that exists already may be replaced. Without it a run that was interrupted
            goes on, and one that is finished returns its result with a warning, if nothing that the result depends on
            has changed. ``"changed"``: so it is, and what has changed is replaced.
        network_id: the user's name for the network, which is known by this and its weights then, instead of by its code
            and attributes. Needed where these cannot be compared, or change from run to run.
        run_id: the user's name for the run, who vouches with it for all that cannot be compared in the network, in
            functions and in the input. What can be compared still is.

    Raises:
        ValueError: when a parameter does not fit, before the first window; when ``cpu_memory`` cannot hold the chunks
            that one window touches, which the first batch shows; when predictions do not fit the windows or each
            other; when preprocessing or postprocessing changes the spatial size.
        TypeError: when a parameter is of a wrong type, such as a dictionary transform, or the output cannot hold the
            dtype of the result.
        FileExistsError: when a result on disk exists and something that it depends on has changed, or is not known.
        BlockingIOError: when another run is writing the same result.
        OSError: when ``output_dir`` or ``scratch_dir`` cannot be written to, or has too little space.

    Returns:
        ``(B, C', *spatial)`` for each output of the predictor, in the structure that it returns; with an
        :py:class:`Output` what that one returns, such as a ``zarr.Array``, or a list with one for each image.

    Example::

        labels = chunked_sliding_window_inference(image, 96, 1, network, mode="gaussian", postprocessing="argmax")
    """
    condition = kwargs.pop("condition", None)
    check_inputs(inputs)
    dims = len(inputs.shape) - 2
    roi = check_roi_size(roi_size, inputs.shape)
    sw_batch_size = check_sw_batch_size(sw_batch_size)
    chunk_size = check_chunk_size(chunk_size, dims)
    check_buffer(buffer_steps, buffer_dim, dims)
    mode, padding_mode = check_mode(mode), check_padding_mode(padding_mode)
    check_sigma_scale(sigma_scale, dims, mode)
    check_condition(condition, inputs)
    check_preprocessing(preprocessing)
    check_postprocessing(postprocessing)
    check_overwrite(overwrite)
    limits = parse_bytes("device_memory", device_memory), parse_bytes("cpu_memory", cpu_memory)
    windows = window_grid(inputs.shape[2:], roi, check_overlap(overlap, dims), buffer_steps, buffer_dim)

    network_device = _device(sw_device or device_of(inputs))
    sum_dtype = torch.float64 if dtype_of(inputs) == torch.float64 else torch.float32
    result_dtype = _result_dtype(inputs)
    target = _output(output, _device(device or device_of(inputs)), output_dir)
    least_itemsize = result_dtype.itemsize if postprocessing is None else 1
    known_dtype = result_dtype if postprocessing is None else None
    target.check(0, known_dtype)
    importance = importance_map(roi_weight_map, roi, mode, sigma_scale, network_device, sum_dtype)
    bound = predictor if isinstance(predictor, BoundNetwork) else BoundNetwork(predictor, (), {})
    settings = {
        "roi_size": roi,
        "sw_batch_size": sw_batch_size,
        "overlap": tuple(overlap) if isinstance(overlap, Sequence) else overlap,
        "importance map": importance,
        "padding": (padding_mode, cval),
        "buffer": (buffer_steps, buffer_dim) if buffer_steps else None,
        "with_coord": with_coord,
        "condition": condition,
        "preprocessing": preprocessing,
        "process_fn": process_fn,
        "postprocessing": postprocessing,
        "network arguments": (args, kwargs, bound.args, bound.kwargs),
        "network wrapper": bound.wrapper,
        "sw_device": network_device.type,
        "autocast": torch.is_autocast_enabled(network_device.type) and torch.get_autocast_dtype(network_device.type),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "dtype": result_dtype,
        "torch": torch.__version__,
        "monai": monai.__version__,
    }
    with recovering(target, inputs, bound.network, (network_id, run_id), settings, overwrite) as (recovery, metadata):
        if recovery is None or not recovery.resumed:
            size = inputs.shape[0] * prod(inputs.shape[2:]) * least_itemsize
            target.check(size, known_dtype, metadata, bool(overwrite))
        stitcher = Stitcher(
            windows=windows,
            image_size=tuple(inputs.shape[2:]),
            metadata=metadata,
            chunk_size=chunk_size,
            device=network_device,
            sum_dtype=sum_dtype,
            result_dtype=result_dtype,
            postprocessing=postprocessing,
            output=target,
            overwrite=bool(overwrite),
            recovery=recovery,
            device_memory=limits[0],
            cpu_memory=limits[1],
            scratch_dir=scratch_dir,
        )
        results = stitcher.load()
        differentiable = postprocessing is None and target.in_memory and limits == (None, None)
        with torch.set_grad_enabled(torch.is_grad_enabled() and differentiable):
            if results is None:
                read = partial(image_of, windows, padding_mode, cval, network_device, sw_batch_size > 1, scratch_dir)
                predict = Predictor(
                    predictor,
                    image=read(inputs, preprocessing),
                    condition=None if condition is None else read(condition),
                    importance=importance,
                    process_fn=process_fn,
                    ahead=not torch.is_grad_enabled() and _is_far(inputs, network_device),
                    device=network_device,
                    with_coord=with_coord,
                    args=args,
                    kwargs=kwargs,
                )
                bar = tqdm(total=inputs.shape[0] * len(windows), unit="window", disable=not progress)
                on_disk = output_dir is not None or not target.in_memory
                journal = None if recovery is None else recovery.path
                with bar, interruptible(journal) if on_disk else nullcontext():
                    results = _run(windows.batches(inputs.shape[0], sw_batch_size), predict, stitcher, bar)
    each = match_postprocessing(postprocessing, stitcher.keys, len(results))
    return pack(stitcher.keys, mark_labels(_with_metadata(results, inputs), each))


def _with_metadata(results: Sequence[torch.Tensor], inputs: Any) -> list[torch.Tensor]:
    """MetaTensors where the input has metadata. As in MONAI only a single result takes it over."""
    metadata = template_of(inputs)
    if metadata is None:
        return list(results)
    if len(results) == 1 and hasattr(results[0], "with_metadata"):  # what is in several files, or in a store
        return [results[0].with_metadata(templates_of(inputs))]
    if not all(isinstance(result, torch.Tensor) for result in results):
        return list(results)
    if len(results) > 1:
        return [MetaTensor(result) for result in results]
    return [convert_to_dst_type(result, metadata, dtype=result.dtype, device=result.device)[0] for result in results]
