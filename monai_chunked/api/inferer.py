"""The classes that MONAI's workflows call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import BlendMode, PytorchPadMode

from monai_chunked.api.function import chunked_sliding_window_inference
from monai_chunked.inputs.source import check_inputs
from monai_chunked.outputs.base import Output
from monai_chunked.plan.chunk_plan import ChunkPlan
from monai_chunked.run.checks import check_mode, check_same_shape
from monai_chunked.run.observer import Observer
from monai_chunked.run.plan import plan_inferer
from monai_chunked.run.settings import Settings
from monai_chunked.windows.predictor import BoundNetwork

if TYPE_CHECKING:
    import zarr

__all__ = ["ChunkedSlidingWindowInferer"]


class ChunkedSlidingWindowInferer(SlidingWindowInferer):
    """
    MONAI's ``SlidingWindowInferer`` that never holds the scores of the whole volume.

    One object serves any number of calls, also at the same time from several threads.

    The first 15 parameters are those of MONAI, the others can only be given by name. ``B`` is the number of images,
    ``C`` of channels, ``*spatial`` one to four sizes in voxels. Sizes of memory are in bytes, as a number or as in
    ``"512MB"`` (10 ** 6) or ``"2GiB"`` (2 ** 30).

    Args:
        roi_size: spatial size of a window in voxels, one number or one for each dimension; where it is 0, negative or
            ``None``, the size of the image. Smaller images are padded.
        sw_batch_size: how many windows the network gets at a time.
        overlap: of neighbouring windows, as a part of ``roi_size``, at least 0 and less than 1; one number or one for
            each dimension.
        mode: weights for blending windows: ``"constant"``, or less towards their borders: ``"gaussian"``, ``"hann"``
            (TorchIO's), ``"nnunet"`` (nnU-Net's). ``"crop"``: each voxel is of the window whose centre is nearest.
        sigma_scale: standard deviation of the gaussian weights, as a part of ``roi_size``; one number or one for each
            dimension.
        padding_mode: how images that are smaller than a window are padded: ``"constant"``, ``"reflect"``,
            ``"replicate"`` or ``"circular"``.
        cval: the value for ``"constant"`` padding.
        sw_device: where the network runs and open chunks are; by default the device of the input.
        device: where the result is if it is in memory; by default the device of the input.
        progress: show a bar with windows, finished chunks and the bytes of open ones; or an :py:class:`Observer`,
            which is told of each window.
        cache_roi_weight_map: compute the weights of a window once, for a ``roi_size`` that is positive.
        cpu_thresh: results with more voxels than this are in CPU memory, if ``device`` is ``None``.
        buffer_steps: if positive, windows advance along ``buffer_dim`` last, and a chunk is so many scan steps long in
            it. Takes less memory where ``plan`` says so; adds up in another order than MONAI.
        buffer_dim: a spatial dimension, from 0 or, counted from the last, from -1.
        with_coord: hand the network the slices of each window as second argument.
        chunk_size: spatial size of a chunk in voxels of the result, one number or one for each dimension. By default
            chunks end where windows start or end, which takes the least work.
        preprocessing: applied to the data of each window, ``(C, *window)`` to ``(C', *window)``, before padding and
            the network. It promises to treat each voxel by itself, as ``ScaleIntensityRange`` does: never to look at
            other voxels, at where a voxel is, or at random numbers. MONAI's array transforms that do not are refused;
            any other callable is taken at its word.
        postprocessing: applied to each finished chunk, ``(C, *chunk)`` to ``(C', *chunk)``: ``"argmax"`` for labels in
            one channel of the smallest unsigned integer type that holds them, or a callable that promises the same as
            ``preprocessing``; or dictionary transforms of one key, in a ``Compose`` or a list, as
            :py:func:`split_postprocessing` returns them, with an ``Invertd`` among them. For networks with several
            heads one for all, or a tuple or dict of the others to match. ``None``: scores, as MONAI returns them.
            Labels are guarded: what would make labels of them once more (argmax or softmax of their one channel,
            sigmoid) raises, and linear interpolation of them warns.
        inverse: bring predictions to the patient's grid before ``postprocessing``: ``"image"`` undoes what was done to
            the input, as its ``applied_operations`` say; ``ImageInverse(nearest_interp=True)`` with the nearest voxel;
            or an object of MONAI's ``Invertd``. The result has that grid, and MONAI's metadata.
        skip: windows that the network need not see: a callable from what it would get, ``(C, *roi_size)``, to a bool;
            or a number, for windows with no voxel above it.
        mask: an array of the spatial size of the input: windows in which it is zero are skipped; ``plan`` reads it.
        background: the scores of skipped windows, as if the network returned them, and of voxels that no window reaches
            (``border="crop"``): one number or one for each channel; for several heads a tuple or dict of these.
        output: where finished chunks go: ``"device"``, a tensor there; ``"cpu"``, a tensor in memory; ``"disk"``, a
            tensor over a memory-mapped ``.npy`` file; ``"auto"``, the first of these that has room. Or an
            :py:class:`Output`, such as ``NiftiOutput("folder")`` or ``ZarrOutput("folder")``.
        output_dir: the folder for ``"disk"``, and for ``"auto"`` when it comes to that; created if it is missing. By
            default the file has no name, and is gone with the tensor. Refused with any other output.
        device_memory: the most that open chunks may take on ``sw_device`` if it is an accelerator, in bytes. By default
            what is free there after the first batch. Those that do not fit are kept in CPU memory.
        cpu_memory: the most that open chunks may take in CPU memory, in bytes. By default what is available. Those that
            do not fit are kept in a scratch file.
        scratch_dir: the folder of the scratch file, which must exist; by default the one for temporary files.
        overwrite: whether a result on disk that exists already may be replaced. If not, a run that was interrupted goes
            on, and one that is finished returns its result, unless something that it depends on has changed.
            ``"changed"``: it is replaced if something has.
        network_id: the user's name for the network, which vouches for all of it but its weights; needed for runs that
            can be resumed where the network has no ``state_dict``, or cannot be described.
        run_id: the user's name for all that cannot be described, of functions, the network and the input.
        border: what becomes of windows that would reach over the end of the image, one value or one for each dimension:
            ``"edge"`` (the last one is moved back, as in MONAI), ``"even"`` (all are spread evenly, as in nnU-Net),
            ``"squeeze"`` (as in Patchly), ``"adaptive"`` (they are cut), ``"crop"`` (they are dropped).
        min_size: with ``"adaptive"``, the least size of a window in voxels; smaller images are padded to it.
        mirror_axes: spatial axes, from 0, along which windows are mirrored; a prediction is the mean over all subsets.
        mirror_batch: whether all mirrored windows go to the network in one batch.
        fill_batches: fill up short batches with repeated windows, for networks that know one shape.
        process_group: ``"world"`` or a ``ProcessGroup``: its processes, each called with the same, share the volume.
        rounding: ``None``: products and sums are at least float32, whatever the network returns. ``"monai"``: they are
            rounded where MONAI rounds them, which gives its bits for half precision, bfloat16 and autocast.

    Raises:
        ValueError: when ``mode`` is unknown; everything else is checked when the inferer is called.

    Example::

        inferer = ChunkedSlidingWindowInferer(roi_size=(96, 96, 96), mode="gaussian", postprocessing="argmax")
        labels = inferer(image, network)  # (B, 1, *spatial), uint8
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: BlendMode | str = BlendMode.CONSTANT,
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: PytorchPadMode | str = PytorchPadMode.CONSTANT,
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool | Observer = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
        *,
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
    ) -> None:
        known = check_mode(mode) in [each.value for each in BlendMode]  # to MONAI
        super().__init__(
            roi_size,
            sw_batch_size,
            overlap,
            check_mode(mode) if known else BlendMode.CONSTANT,
            sigma_scale,
            padding_mode,
            cval,
            sw_device,
            device,
            bool(progress),
            cache_roi_weight_map and known,
            cpu_thresh,
            buffer_steps,
            buffer_dim,
            with_coord,
        )
        self._cached = self.roi_weight_map
        self.mode: Any = self.mode if known else check_mode(mode)
        self.progress: Any = progress
        self.chunk_size = chunk_size
        self.preprocessing = preprocessing
        self.postprocessing = postprocessing
        self.inverse = inverse
        self.skip, self.mask, self.background = skip, mask, background
        self.output, self.output_dir = output, output_dir
        self.device_memory, self.cpu_memory, self.scratch_dir = device_memory, cpu_memory, scratch_dir
        self.overwrite = overwrite
        self.network_id, self.run_id = network_id, run_id
        self.border, self.min_size = border, min_size
        self.mirror_axes, self.mirror_batch, self.fill_batches = mirror_axes, mirror_batch, fill_batches
        self.process_group, self.rounding = process_group, rounding

    @overload
    def __call__(
        self, inputs: Any, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor: ...

    @overload
    def __call__(
        self, inputs: Any, network: Callable[..., dict[Any, torch.Tensor]], *args: Any, **kwargs: Any
    ) -> dict[Any, torch.Tensor]: ...

    @overload
    def __call__(
        self, inputs: Any, network: Callable[..., Sequence[torch.Tensor]], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, ...]: ...

    @overload
    def __call__(
        self,
        inputs: Any,
        network: Callable[..., torch.Tensor | Sequence[torch.Tensor] | dict[Any, torch.Tensor]],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, ...] | dict[Any, torch.Tensor]: ...

    def __call__(
        self,
        inputs: Any,
        network: Callable[..., torch.Tensor | Sequence[torch.Tensor] | dict[Any, torch.Tensor]],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor | zarr.Array | list[torch.Tensor] | list[zarr.Array] | tuple[Any, ...] | dict[Any, Any]:
        """
        Args:
            inputs: ``(B, C, *spatial)``, a tensor or an array, see :py:func:`chunked_sliding_window_inference`.
            network: called with windows ``(windows, C, *roi_size)``.
            args: further arguments of the network.
            kwargs: further keyword arguments of the network, but for ``device``, ``buffer_steps`` and ``buffer_dim``,
                which take the place of the inferer's, and ``condition``, of the shape of ``inputs`` whose
                windows go to the network along with those of the input.

        Raises:
            ValueError, TypeError, OSError: see :py:func:`chunked_sliding_window_inference`.

        Returns:
            For each head of the network (tensor that it returns), in a tuple or dict where there are several: a tensor
            ``(B, C', *spatial)``. With an :py:class:`Output` it is what that one returns, for ``ZarrOutput`` a
            ``zarr.Array`` and for several images a list with one for each. Type checkers are told of tensors, as they
            do not see the output; ``typing.cast`` tells them of anything else.
        """
        return self._infer(inputs, network, self.roi_size, self.roi_weight_map, args, kwargs)

    def plan(
        self,
        inputs_or_shape: Any,
        out_channels: int | Sequence[int],
        prediction_size: Sequence[int] | None = None,
        workers: int | None = None,
    ) -> ChunkPlan:
        """What a call would take, without a network, tensors or files.

        Args:
            inputs_or_shape: the input, or its shape ``(B, C, *spatial)``.
            out_channels: number of channels that the network returns; one for each of its heads if there are several.
            prediction_size: spatial size of what the network returns for one window, ``roi_size`` by default.
            workers: how many share the volume, to learn what each part of it takes; ``None``: one process does it.

        Raises:
            ValueError: when a parameter does not fit, or the limits cannot hold the chunks of one window.

        Example::

            print(inferer.plan((1, 1, 512, 512, 1000), out_channels=105))
        """
        return plan_inferer(self, inputs_or_shape, out_channels, prediction_size, workers)

    def _infer(
        self,
        inputs: Any,
        network: Callable[..., Any],
        roi_size: Sequence[int] | int,
        roi_weight_map: torch.Tensor | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        call: Callable[..., Any] | None = None,
    ) -> Any:
        device = kwargs.pop("device", self.device)
        buffer_steps = kwargs.pop("buffer_steps", self.buffer_steps)
        buffer_dim = kwargs.pop("buffer_dim", self.buffer_dim)
        condition = kwargs.pop("condition", None)
        check_inputs(inputs)
        if condition is not None:
            check_same_shape(condition, inputs)
        if device is None and self.cpu_thresh is not None and prod(inputs.shape[2:]) > self.cpu_thresh:
            device = "cpu"

        if self.roi_weight_map is self._cached and self.mode not in list(BlendMode):  # set later; MONAI has no such
            roi_weight_map = None
        given = Settings.given(self) | {
            "roi_size": roi_size,
            "roi_weight_map": roi_weight_map,
            "device": device,
            "buffer_steps": buffer_steps,
            "buffer_dim": buffer_dim,
        }
        bound = BoundNetwork(network, args, kwargs, call, None if call is None else self._wrapper())
        return chunked_sliding_window_inference(inputs, predictor=bound, condition=condition, **given)

    def _wrapper(self) -> Any:
        """What is done with the network beside calling it, in a form that can be compared."""
        return None
