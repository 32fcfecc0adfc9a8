"""The function, a drop-in for ``monai.inferers.sliding_window_inference``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from monai.utils import BlendMode, PytorchPadMode

from monai_chunked.inputs.source import check_inputs, source_of
from monai_chunked.outputs.base import Output
from monai_chunked.run.call import Call
from monai_chunked.run.checks import check_condition, check_process_group
from monai_chunked.run.observer import Observer
from monai_chunked.run.run import Here, infer
from monai_chunked.run.settings import Settings
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.torchrun.peers import together
from monai_chunked.workers.torchrun.run import infer_together

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
    progress: bool | Observer = False,
    roi_weight_map: torch.Tensor | None = None,
    process_fn: Callable | None = None,
    buffer_steps: int | None = None,
    buffer_dim: int = -1,
    with_coord: bool = False,
    *args: Any,
    chunk_size: Sequence[int] | int | None = None,
    preprocessing: Callable[..., Any] | None = None,
    postprocessing: Any = None,
    inverse: Any = None,
    skip: Callable[[torch.Tensor], Any] | float | None = None,
    mask: Any = None,
    background: Any = 0,
    output: str | Output = "auto",
    output_dir: str | os.PathLike[str] | None = None,
    device_memory: int | str | None = None,
    cpu_memory: int | str | None = None,
    scratch_dir: str | os.PathLike[str] | None = None,
    overwrite: bool | Literal["changed"] = False,
    network_id: str | None = None,
    run_id: str | None = None,
    border: Sequence[str] | str = "edge",
    min_size: Sequence[int] | int | None = None,
    mirror_axes: Sequence[int] | int | None = None,
    mirror_batch: bool = False,
    fill_batches: bool = False,
    process_group: Any = None,
    rounding: Literal["monai"] | None = None,
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
            memory of the chunk is used again after the call. Or dictionary transforms of one key, in a ``Compose`` or a
            list. With several heads of the predictor: one for all, or a tuple or dict of the others to match. Inference
            runs without gradients then. Results that are labels raise when a softmax or an argmax of their one channel,
            or a sigmoid, would destroy them.
        inverse: bring predictions to the patient's grid before they are postprocessed: ``"image"`` undoes what was done
            to the input, as its ``applied_operations`` say; an :py:class:`ImageInverse` does, with the nearest voxel
            if asked to; or an object of MONAI's ``Invertd``. The same as an ``Invertd`` among dictionary transforms in
            ``postprocessing``. What cannot be undone a chunk at a time is undone whole, with a warning.
        skip: which windows the network need not see: a callable that is asked with what the network would get of each
            window, ``(C, *roi_size)``, preprocessed and padded, where it was read (on the device of the input); or a
            number, for windows with no voxel above it. What was read is what goes to the network: nothing is read
            twice. ``background`` stands for what the network would say (and for what ``process_fn`` would make of
            it, which is not called): the result is that of a network that returns it for these windows. The windows
            that are left fill the batches. If all are skipped, the last one is predicted to learn what heads the
            network has, and its prediction dropped.
        mask: a tensor, or an array as for ``inputs``, ``(*spatial)``, ``(C, *spatial)`` or ``(B, C, *spatial)`` with
            one image for all or each: windows in which all of it is zero are skipped, and not read. It is read a
            window at a time before the first one is predicted, so that chunks that only skipped windows touch are
            planned away. With ``skip`` too, a window is skipped if either says so.
        background: the scores of skipped windows, and of voxels that no window reaches (``border="crop"``): one number
            or one for each channel. With several heads of the predictor: one number for all, or a tuple or dict to
            match, with a number, or one for each channel.
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
            has changed. ``"changed"``: so it is, and what has changed is replaced. A result that is replaced stays
            until the new one is complete, and what the run reads is never replaced.
        network_id: the user's name for the network, which is known by this and its weights then, instead of by its code
            and attributes. Needed where these cannot be compared, or change from run to run.
        run_id: the user's name for the run, who vouches with it for all that cannot be compared in the network, in
            functions and in the input. What can be compared still is.
        border: where windows lie that would reach over the end of the image, one value or one for each dimension.
            ``"edge"``: the last one is moved back to the end, as in MONAI. ``"even"``: all are spread evenly, as in
            nnU-Net, whose step size is ``1 - overlap``. ``"squeeze"``: all are moved a little, as in Patchly, whose
            step in voxels is ``roi_size * (1 - overlap)``. ``"adaptive"``: they are cut, for networks that take any
            size; images are not padded then. ``"crop"``: they are dropped, and the voxels that no window reaches get
            ``background``. Besides these values ``mode`` may be ``"hann"`` (TorchIO's weights), ``"nnunet"``
            (nnU-Net's, with its rounding to half precision) or ``"crop"``: each voxel is of the window whose centre is
            nearest, of the first of two, and is what the network said of it.
        min_size: where windows are cut, the least size of one; smaller images are padded to it. By default 1.
        mirror_axes: spatial axes, from 0. The prediction of a window is the mean of the network's output over it,
            mirrored along all subsets of them, in ``2 ** len(mirror_axes)`` passes; see :py:class:`Mirrored`.
        mirror_batch: run these passes as one batch.
        fill_batches: fill up batches that are shorter than ``sw_batch_size`` with their last window, for networks that
            know one shape; what the network says of these windows is dropped.
        process_group: ``"world"`` or a ``ProcessGroup`` of ``torch.distributed``: its processes share the volume. All
            must be called with the same; each predicts a part of the windows, each window is predicted by one of
            them (of those next to a part of another process by both, with ``inverse``, ``skip`` as a callable, or a
            limit of memory), and all get the same result, with the bits of one process. Rank 0 writes it; results in
            memory are sent to all, results on disk are opened by all, so that all must see their folder. With ``skip``
            and ``sw_batch_size`` above 1 each reads the input up to the end of its part, else only what it predicts; a
            ``mask`` is read by each. Without gradients, and without ``process_fn``.
        rounding: ``"monai"``: products, sums and weights have the dtypes that MONAI's have, so that half precision,
            bfloat16 and autocast give its bits, too; refused with ``buffer_steps``. ``None``: at least float32.

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
        return infer_together(peers, source, bound, settings, condition)
