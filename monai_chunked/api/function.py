"""The function, a drop-in for ``monai.inferers.sliding_window_inference``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from monai.transforms import Invertd
from monai.utils import BlendMode, PytorchPadMode

from monai_chunked.call.call import Call
from monai_chunked.call.checks import check_condition, check_process_group
from monai_chunked.call.observer import Observer
from monai_chunked.call.settings import Background, Device, Folder, PerDimension, Settings, Sizes
from monai_chunked.inputs.lazy.lazy_array import Array
from monai_chunked.inputs.source import check_inputs, source_of
from monai_chunked.outputs.base import Output
from monai_chunked.run.run import Here, infer
from monai_chunked.transforms.inversion import ImageInverse
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.torchrun.peers import together
from monai_chunked.workers.torchrun.together import infer_together

__all__ = ["chunked_sliding_window_inference"]


def chunked_sliding_window_inference(
    inputs: Array,
    roi_size: Sizes,
    sw_batch_size: int,
    predictor: Callable[..., torch.Tensor | Sequence[torch.Tensor] | dict[Any, torch.Tensor]],
    overlap: PerDimension = 0.25,
    mode: BlendMode | str = BlendMode.CONSTANT,
    sigma_scale: PerDimension = 0.125,
    padding_mode: PytorchPadMode | str = PytorchPadMode.CONSTANT,
    cval: float = 0.0,
    sw_device: Device | None = None,
    device: Device | None = None,
    progress: bool | Observer = False,
    roi_weight_map: torch.Tensor | None = None,
    process_fn: Callable | None = None,
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
    with_coord: bool = False,
    *args: Any,
    chunk_size: Sizes | None = None,
    preprocessing: Callable[..., Any] | None = None,
    postprocessing: Any = None,
    inverse: ImageInverse | Invertd | Literal["image"] | None = None,
    skip: Callable[[torch.Tensor], Any] | float | None = None,
    mask: Array | None = None,
    background: Background = 0,
    output: str | Output = "auto",
    output_dir: Folder | None = None,
    device_memory: int | str | None = None,
    cpu_memory: int | str | None = None,
    scratch_dir: Folder | None = None,
    overwrite: bool | Literal["changed"] = False,
    network_id: str | None = None,
    run_id: str | None = None,
    border: Sequence[str] | str = "edge",
    min_size: Sizes | None = None,
    mirror_axes: Sizes | None = None,
    mirror_batch: bool = False,
    fill_batches: bool = False,
    process_group: dist.ProcessGroup | Literal["world"] | None = None,
    rounding: Literal["monai"] | None = None,
    **kwargs: Any,
) -> torch.Tensor | tuple[torch.Tensor, ...] | dict[Any, torch.Tensor]:
    """
    Sliding window inference that never holds the scores of the whole volume.

    MONAI's ``sliding_window_inference``, as :py:class:`ChunkedSlidingWindowInferer` is MONAI's
    ``SlidingWindowInferer``. Parameters that are not named here are those of the class, and its help explains them.

    Args:
        inputs: ``(B, C, *spatial)``, a tensor, or anything with ``shape``, ``dtype`` and slicing: ``numpy.memmap``,
            ``zarr.Array``, ``h5py.Dataset``, ``dask.array``, what :py:func:`open_image` returns. An array is never read
            as a whole: rows of it that the current windows need are kept, so that each voxel is read once, and those of
            the next batch are read by a thread while the network runs. Integers become float32. Never written to.
        predictor: the network, or what else is called with windows ``(windows, C, *roi_size)``.
        roi_weight_map: the weights of a window, ``roi_size``, in place of those of ``mode``.
        process_fn: as in MONAI, called with predictions, windows and their weights, returns predictions and weights.
        args, kwargs: further arguments of the predictor; but ``condition``, of the batch and spatial size of
            ``inputs``, whose windows go to it along with those of the input.

    Raises:
        ValueError: when a parameter does not fit, before the first window; when ``cpu_memory`` cannot hold the chunks
            that one window touches, which the first batch shows; when predictions do not fit the windows or each
            other, or ``background`` the channels; when preprocessing or postprocessing changes the spatial size.
        TypeError: when a parameter is of a wrong type, such as a dictionary transform, or the output cannot hold the
            dtype of the result; when ``skip`` returns something else than a bool.
        FileExistsError: when a result on disk exists and something that it depends on has changed, or is not known;
            when it would take the place of a file that the run reads, lie around it, or in it.
        RuntimeError: when ``process_group`` is given and ``torch.distributed`` is not initialised, or when another of
            its processes could not go on; the message says which, and why.
        FileNotFoundError: when a process of ``process_group`` does not see the folder that the result is to be in,
            before the first window.
        BlockingIOError: when another run is writing the same result.
        OSError: when ``output_dir`` or ``scratch_dir`` cannot be written to, or has too little space.

    Returns:
        ``(B, C', *spatial)`` for each output of the predictor, in the structure that it returns; with an
        :py:class:`Output` what that one returns, such as a ``zarr.Array``, or a list with one for each image.

    Example::

        labels = chunked_sliding_window_inference(image, 96, 1, network, mode="gaussian", postprocessing="argmax")
    """
    condition = kwargs.pop("condition", None)
    with together(check_process_group(process_group)) as peers:
        check_inputs(inputs)
        check_condition(condition, inputs)
        settings = Settings.check(
            inputs.shape,
            roi_size=roi_size,
            sw_batch_size=sw_batch_size,
            overlap=overlap,
            mode=mode,
            sigma_scale=sigma_scale,
            padding_mode=padding_mode,
            cval=cval,
            sw_device=sw_device,
            device=device,
            progress=progress,
            roi_weight_map=roi_weight_map,
            process_fn=process_fn,
            buffer_steps=buffer_steps,
            buffer_dim=buffer_dim,
            with_coord=with_coord,
            chunk_size=chunk_size,
            preprocessing=preprocessing,
            postprocessing=postprocessing,
            inverse=inverse,
            skip=skip,
            mask=mask,
            background=background,
            output=output,
            output_dir=output_dir,
            device_memory=device_memory,
            cpu_memory=cpu_memory,
            scratch_dir=scratch_dir,
            overwrite=overwrite,
            network_id=network_id,
            run_id=run_id,
            border=border,
            min_size=min_size,
            mirror_axes=mirror_axes,
            mirror_batch=mirror_batch,
            fill_batches=fill_batches,
            process_group=process_group,
            rounding=rounding,
        )
        bound = predictor if isinstance(predictor, BoundNetwork) else BoundNetwork(predictor, args, kwargs)
        source, condition = source_of(inputs), None if condition is None else source_of(condition)
        if peers is None:
            return infer(Call.of(source, bound, settings, condition), Here())
        return infer_together(peers, source, bound, settings, condition=condition)
