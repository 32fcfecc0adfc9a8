"""The classes that MONAI's workflows call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
import torch.distributed as dist
from monai.inferers import SlidingWindowInferer
from monai.transforms import Invertd
from monai.utils import BlendMode, PytorchPadMode

from monai_chunked.api.function import chunked_sliding_window_inference
from monai_chunked.call.bill import plan_inferer
from monai_chunked.call.checks import check_mode, check_same_shape
from monai_chunked.call.observer import Observer
from monai_chunked.call.settings import Background, Device, Folder, PerDimension, Settings, Sizes
from monai_chunked.inputs.lazy.lazy_array import Array
from monai_chunked.inputs.source import check_inputs
from monai_chunked.outputs.base import Output
from monai_chunked.plan.chunk_plan import ChunkPlan
from monai_chunked.transforms.inversion import ImageInverse
from monai_chunked.windows.predictor import BoundNetwork

if TYPE_CHECKING:
    import zarr

__all__ = ["ChunkedSlidingWindowInferer", "Network"]

Network = Callable[..., torch.Tensor | Sequence[torch.Tensor] | dict[Any, torch.Tensor]]


class ChunkedSlidingWindowInferer(SlidingWindowInferer):
    """
    MONAI's ``SlidingWindowInferer`` that never holds the scores of the whole volume.

    The windows are the same, in the same order and batches, and so are blending and, for float32 and float64 inputs on
    a CPU, the bits. Predictions are added to chunks of the result. A chunk is finished (divided by the sum of weights,
    postprocessed, handed to the output) as soon as its last window is in. One object serves any number of calls, also
    at the same time from several threads.

    The first 15 parameters are those of MONAI, the others can only be given by name. ``B`` is the number of images,
    ``C`` of channels, ``*spatial`` one to four sizes in voxels. What is of a dimension is one value for all, or one for
    each. Sizes of memory are in bytes, as a number or as in ``"512MB"`` (10 ** 6) or ``"2GiB"`` (2 ** 30). Where the
    network has several heads (tensors that it returns), ``postprocessing`` and ``background`` are one for all, or a
    tuple or dict of the others to match. There are no gradients with ``postprocessing``, ``inverse``,
    ``process_group``, a limit of memory or a result on disk.

    Args:
        roi_size: spatial size of a window in voxels; where it is 0, negative or ``None``, that of the image.
        sw_batch_size: how many windows the network gets at a time.
        overlap: of neighbouring windows, as a part of ``roi_size``, at least 0 and less than 1.
        mode: weights for blending windows: ``"constant"``, or less towards their borders: ``"gaussian"``, ``"hann"``
            (TorchIO's), ``"nnunet"`` (nnU-Net's, with its rounding to half precision). ``"crop"``: each voxel is what
            the network said of it in the window whose centre is nearest, the first of two.
        sigma_scale: standard deviation of the gaussian weights, as a part of ``roi_size``.
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
            it. Takes less memory where ``plan`` says so; adds up in another order than MONAI, and returns every head.
        buffer_dim: a spatial dimension, from 0 or, counted from the last, from -1.
        with_coord: hand the network the slices of each window as second argument.
        chunk_size: spatial size of a chunk in voxels of the result. By default chunks end where windows start or end,
            which takes the least work.
        preprocessing: applied to the data of each window, ``(C, *window)`` to ``(C', *window)``, before padding (so
            it gets less at the border of the image) and the network. It promises to treat each voxel by itself, as
            ``ScaleIntensityRange`` does: never to look at other voxels, at where a voxel is, or at random numbers.
            MONAI's array transforms that do not are refused; any other callable is taken at its word.
        postprocessing: applied to each finished chunk, ``(C, *chunk)`` to ``(C', *chunk)``: ``"argmax"`` for labels in
            one channel of the smallest unsigned integer type that holds them, or a callable that promises the same as
            ``preprocessing``, and does not keep the chunk, whose memory is used again; or dictionary transforms of one
            key, in a ``Compose`` or a list, as :py:func:`split_postprocessing` returns them, with an ``Invertd`` among
            them. ``None``: scores, as MONAI returns them. Labels are guarded: what would make labels of them once more
            (argmax or softmax of their one channel, sigmoid) raises, and linear interpolation of them warns.
        inverse: bring predictions to the patient's grid before ``postprocessing``, as an ``Invertd`` in it does:
            ``"image"`` undoes what was done to the input, as its ``applied_operations`` say;
            ``ImageInverse(nearest_interp=True)`` with the nearest voxel; or an object of MONAI's ``Invertd``. The
            result has that grid, and MONAI's metadata. What cannot be undone a chunk at a time is undone whole, with a
            warning.
        skip: windows that the network need not see: a callable from what it would get, ``(C, *roi_size)`` on the device
            of the input, to a bool; or a number, for windows with no voxel above it. What was read for it is what goes
            to the network. The windows that are left fill the batches. If all are skipped, the last one is predicted to
            learn what heads the network has, and its prediction is dropped.
        mask: a tensor or an array, ``(*spatial)``, ``(C, *spatial)`` or ``(B, C, *spatial)`` with one image for all or
            each: windows in which all of it is zero are skipped, too, and not read. It is read a window at a time
            before the first one is predicted, and by ``plan``: chunks that only skipped windows touch take nothing.
        background: the scores of skipped windows, as if the network (and ``process_fn``) returned them, and of voxels
            that no window reaches (``border="crop"``): one number or one for each channel.
        output: where finished chunks go: ``"device"``, a tensor there; ``"cpu"``, a tensor in memory; ``"disk"``, a
            tensor over a memory-mapped ``.npy`` file; ``"auto"``, the first of these that has room, with a warning for
            each step down. Or an :py:class:`Output`, such as ``NiftiOutput("folder")`` or ``ZarrOutput("folder")``.
        output_dir: the folder for ``"disk"``, and for ``"auto"`` when it comes to that; created if it is missing. By
            default the file has no name, and is gone with the tensor. Refused with any other output.
        device_memory: the most that open chunks may take on ``sw_device`` if it is an accelerator; 0: none. By default
            what is free there after the first batch, less a margin. Those that do not fit are kept in CPU memory.
        cpu_memory: the most that open chunks may take in CPU memory. By default what is available, less a margin. Those
            that do not fit are kept in a scratch file.
        scratch_dir: the folder of the scratch file, which has no name and vanishes with the process; it must exist. By
            default the one for temporary files. More than 1 GiB of rows of an array are kept there, too.
        overwrite: whether a result on disk that exists may be replaced. If not, a run that was interrupted goes on, and
            one that is finished returns its result with a warning, unless something that it depends on has changed.
            ``"changed"``: then it is replaced. It stays until the new one is complete. What is read is never replaced.
        network_id: the user's name for the network, which vouches for all of it but its weights. Runs that can be
            resumed need it where the network has no ``state_dict``, cannot be described, or changes from run to run.
        run_id: the user's name for the run, which vouches for all that cannot be described, of functions, the network
            and the input. What can be described is compared even so.
        border: what becomes of windows that would reach over the end of the image: ``"edge"`` (the last one is moved
            back, as in MONAI), ``"even"`` (all are spread evenly, as in nnU-Net, whose step size is ``1 - overlap``),
            ``"squeeze"`` (all are moved a little, as in Patchly, whose step in voxels is ``roi_size * (1 - overlap)``),
            ``"adaptive"`` (they are cut, for networks that take any size; images are not padded then), ``"crop"`` (they
            are dropped).
        min_size: with ``"adaptive"``, the least size of a window in voxels, by default 1; smaller images are padded.
        mirror_axes: spatial axes, from 0, along which windows are mirrored; a prediction is the mean over all subsets,
            in ``2 ** len(mirror_axes)`` passes; see :py:class:`Mirrored`.
        mirror_batch: whether all mirrored windows go to the network in one batch.
        fill_batches: fill up short batches with copies of their last window, for networks that know one shape.
        process_group: ``"world"`` or a ``ProcessGroup`` of ``torch.distributed``: its processes share the volume. All
            must be called with the same; each predicts a part of the windows, each window is predicted by one of them
            (of those next to a part of another process by both, with ``inverse``, ``skip`` as a callable, or a limit of
            memory), and all get the same result, with the bits of one process. Rank 0 writes it; results in memory are
            sent to all, results on disk are opened by all, so that all must see their folder. With ``skip`` and
            ``sw_batch_size`` above 1 each reads the input up to the end of its part, else only what it predicts; a
            ``mask`` is read by each. Not with ``process_fn``.
        rounding: ``None``: products and sums are at least float32, whatever the network returns. ``"monai"``: they are
            rounded where MONAI rounds them, which gives its bits for half precision, bfloat16 and autocast; refused
            with ``buffer_steps``.

    Raises:
        ValueError: when ``mode`` is unknown; everything else is checked when the inferer is called.

    Example::

        inferer = ChunkedSlidingWindowInferer(roi_size=(96, 96, 96), mode="gaussian", postprocessing="argmax")
        labels = inferer(image, network)  # (B, 1, *spatial), uint8
    """

    def __init__(
        self,
        roi_size: Sizes,
        sw_batch_size: int = 1,
        overlap: PerDimension = 0.25,
        mode: BlendMode | str = BlendMode.CONSTANT,
        sigma_scale: PerDimension = 0.125,
        padding_mode: PytorchPadMode | str = PytorchPadMode.CONSTANT,
        cval: float = 0.0,
        sw_device: Device | None = None,
        device: Device | None = None,
        progress: bool | Observer = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
        *,
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
    ) -> None:
        is_monais = check_mode(mode) in [blending.value for blending in BlendMode]
        super().__init__(
            roi_size, sw_batch_size, overlap, check_mode(mode) if is_monais else BlendMode.CONSTANT, sigma_scale,
            padding_mode, cval, sw_device, device, bool(progress), cache_roi_weight_map and is_monais, cpu_thresh,
            buffer_steps, buffer_dim, with_coord,
        )  # fmt: skip
        self._cached = self.roi_weight_map
        self.mode: Any = self.mode if is_monais else check_mode(mode)
        self.progress: Any = progress
        self.chunk_size, self.preprocessing = chunk_size, preprocessing
        self.postprocessing, self.inverse = postprocessing, inverse
        self.skip, self.mask, self.background = skip, mask, background
        self.output, self.output_dir = output, output_dir
        self.device_memory, self.cpu_memory, self.scratch_dir = device_memory, cpu_memory, scratch_dir
        self.overwrite, self.network_id, self.run_id = overwrite, network_id, run_id
        self.border, self.min_size = border, min_size
        self.mirror_axes, self.mirror_batch, self.fill_batches = mirror_axes, mirror_batch, fill_batches
        self.process_group, self.rounding = process_group, rounding

    @overload
    def __call__(
        self, inputs: Array, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor: ...

    @overload
    def __call__(
        self, inputs: Array, network: Callable[..., dict[Any, torch.Tensor]], *args: Any, **kwargs: Any
    ) -> dict[Any, torch.Tensor]: ...

    @overload
    def __call__(
        self, inputs: Array, network: Callable[..., Sequence[torch.Tensor]], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, ...]: ...

    @overload
    def __call__(
        self, inputs: Array, network: Network, *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, ...] | dict[Any, torch.Tensor]: ...

    def __call__(
        self, inputs: Array, network: Network, *args: Any, **kwargs: Any
    ) -> torch.Tensor | zarr.Array | list[torch.Tensor] | list[zarr.Array] | tuple[Any, ...] | dict[Any, Any]:
        """
        Args:
            inputs: ``(B, C, *spatial)``, a tensor or an array, see :py:func:`chunked_sliding_window_inference`.
            network: called with windows ``(windows, C, *roi_size)``.
            args: further arguments of the network.
            kwargs: further keyword arguments of the network, but for ``device``, ``buffer_steps`` and ``buffer_dim``,
                which take the place of the inferer's, and ``condition``, of the shape of ``inputs``, whose windows go
                to the network along with those of the input.

        Raises:
            ValueError, TypeError, OSError: see :py:func:`chunked_sliding_window_inference`.

        Returns:
            For each head of the network (tensor that it returns), in a tuple or dict where there are several: a tensor
            ``(B, C', *spatial)``. With an :py:class:`Output` it is what that one returns, for ``ZarrOutput`` a
            ``zarr.Array`` and for several images a list with one for each. Type checkers are told of tensors, as they
            do not see the output; ``typing.cast`` tells them of anything else.
        """
        return self._infer(inputs, network, args, kwargs)

    def plan(
        self,
        inputs_or_shape: Array | Sequence[int],
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
        return plan_inferer(self, inputs_or_shape, out_channels, prediction_size=prediction_size, workers=workers)

    def _infer(
        self,
        inputs: Array,
        network: Network,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        call: Callable[..., Any] | None = None,
        **own: Any,
    ) -> Any:
        """Run the network, or ``call`` in its place, with ``own`` settings in place of the inferer's."""
        condition = kwargs.pop("condition", None)
        check_inputs(inputs)
        if condition is not None:
            check_same_shape(condition, inputs)
        if self.roi_weight_map is self._cached and self.mode not in list(BlendMode):  # cached for another mode
            own["roi_weight_map"] = None
        given = Settings.given(self) | own
        given |= {name: kwargs.pop(name) for name in ("device", "buffer_steps", "buffer_dim") if name in kwargs}
        if given["device"] is None and self.cpu_thresh is not None and prod(inputs.shape[2:]) > self.cpu_thresh:
            given["device"] = "cpu"
        bound = BoundNetwork(network, args, kwargs, call, None if call is None else self._wrapper())
        return chunked_sliding_window_inference(inputs, predictor=bound, condition=condition, **given)

    def _wrapper(self) -> object:
        """What is done with the network beside calling it, in a form that can be compared."""
        return None
