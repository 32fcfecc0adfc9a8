"""The classes that MONAI's workflows call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.utils import BlendMode, PytorchPadMode, ensure_tuple

from monai_chunked.checks import check_inputs, check_mode
from monai_chunked.chunk_plan import ChunkPlan, plan_inferer
from monai_chunked.inference import chunked_sliding_window_inference
from monai_chunked.outputs import Output
from monai_chunked.predictions import BoundNetwork

__all__ = ["ChunkedSliceInferer", "ChunkedSlidingWindowInferer"]


class ChunkedSlidingWindowInferer(SlidingWindowInferer):
    """
    MONAI's ``SlidingWindowInferer`` that never holds the scores of the whole volume.

    One object serves any number of calls, also at the same time from several threads.

    Args:
        roi_size, sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval, sw_device, device, progress,
            cache_roi_weight_map, cpu_thresh, with_coord: as in ``monai.inferers.SlidingWindowInferer``.
        buffer_steps, buffer_dim, chunk_size, preprocessing, postprocessing, output, output_dir, device_memory,
            cpu_memory, scratch_dir, overwrite, network_id, run_id: as in
            :py:func:`chunked_sliding_window_inference`.

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
        progress: bool = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
        *,
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
    ) -> None:
        super().__init__(
            roi_size,
            sw_batch_size,
            overlap,
            check_mode(mode),
            sigma_scale,
            padding_mode,
            cval,
            sw_device,
            device,
            progress,
            cache_roi_weight_map,
            cpu_thresh,
            buffer_steps,
            buffer_dim,
            with_coord,
        )
        self.chunk_size = chunk_size
        self.preprocessing = preprocessing
        self.postprocessing = postprocessing
        self.output = output
        self.output_dir = output_dir
        self.device_memory = device_memory
        self.cpu_memory = cpu_memory
        self.scratch_dir = scratch_dir
        self.overwrite = overwrite
        self.network_id = network_id
        self.run_id = run_id

    def __call__(
        self,
        inputs: Any,
        network: Callable[..., torch.Tensor | Sequence[torch.Tensor] | dict[Any, torch.Tensor]],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, ...] | dict[Any, torch.Tensor]:
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
            ``(B, C', *spatial)`` for each output of the network, in the structure that it returns.
        """
        return self._infer(inputs, network, self.roi_size, self.roi_weight_map, args, kwargs)

    def plan(
        self, inputs_or_shape: Any, out_channels: int | Sequence[int], prediction_size: Sequence[int] | None = None
    ) -> ChunkPlan:
        """What a call would take, without a network, tensors or files.

        Args:
            inputs_or_shape: the input, or its shape ``(B, C, *spatial)``.
            out_channels: number of channels that the network returns; one for each of its outputs if there are several.
            prediction_size: spatial size of what the network returns for one window, ``roi_size`` by default.

        Raises:
            ValueError: when a parameter does not fit, or the limits cannot hold the chunks of one window.

        Example::

            print(inferer.plan((1, 1, 512, 512, 1000), out_channels=105))
        """
        return plan_inferer(self, inputs_or_shape, out_channels, prediction_size)

    def _infer(
        self,
        inputs: Any,
        network: Callable[..., Any],
        roi_size: Sequence[int] | int,
        roi_weight_map: torch.Tensor | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        call: Callable[..., Any] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...] | dict[Any, torch.Tensor]:
        device = kwargs.pop("device", self.device)
        buffer_steps = kwargs.pop("buffer_steps", self.buffer_steps)
        buffer_dim = kwargs.pop("buffer_dim", self.buffer_dim)
        condition = kwargs.pop("condition", None)
        check_inputs(inputs)
        if condition is not None:
            check_inputs(condition, "condition")
            if tuple(condition.shape) != tuple(inputs.shape):
                raise ValueError(
                    f"condition of shape {tuple(condition.shape)} must have the shape of inputs, {tuple(inputs.shape)}"
                )
        if device is None and self.cpu_thresh is not None and prod(inputs.shape[2:]) > self.cpu_thresh:
            device = "cpu"

        return chunked_sliding_window_inference(
            inputs,
            roi_size,
            self.sw_batch_size,
            BoundNetwork(network, args, kwargs, call, None if call is None else self._wrapper()),
            self.overlap,
            self.mode,
            self.sigma_scale,
            self.padding_mode,
            self.cval,
            self.sw_device,
            device,
            self.progress,
            roi_weight_map,
            None,
            buffer_steps,
            buffer_dim,
            self.with_coord,
            chunk_size=self.chunk_size,
            preprocessing=self.preprocessing,
            postprocessing=self.postprocessing,
            output=self.output,
            output_dir=self.output_dir,
            device_memory=self.device_memory,
            cpu_memory=self.cpu_memory,
            scratch_dir=self.scratch_dir,
            overwrite=self.overwrite,
            network_id=self.network_id,
            run_id=self.run_id,
            condition=condition,
        )

    def _wrapper(self) -> Any:
        """What is done with the network beside calling it, in a form that can be compared."""
        return None


class ChunkedSliceInferer(SliceInferer, ChunkedSlidingWindowInferer):
    """
    MONAI's ``SliceInferer``, a 2D network over the slices of a volume, that never holds the scores of the whole volume.

    Unlike MONAI's it hands further arguments to the network.

    Args:
        spatial_dim: the dimension over which slices are taken: 0, 1 or 2.
        args, kwargs: of :py:class:`ChunkedSlidingWindowInferer`, with a 2D ``roi_size``.

    Example::

        inferer = ChunkedSliceInferer(spatial_dim=2, roi_size=(256, 256), postprocessing="argmax")
        labels = inferer(volume, network_2d)
    """

    def __call__(
        self,
        inputs: Any,
        network: Callable[..., torch.Tensor | Sequence[torch.Tensor] | dict[Any, torch.Tensor]],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, ...] | dict[Any, torch.Tensor]:
        """
        Args:
            inputs: ``(B, C, H, W, D)``.
            network: called with slices ``(windows, C, *roi_size)``.
            args, kwargs: as in :py:class:`ChunkedSlidingWindowInferer`.

        Raises:
            ValueError: when ``spatial_dim``, ``roi_size`` and ``inputs`` do not match.
        """
        check_inputs(inputs)
        roi_size = list(ensure_tuple(self.orig_roi_size))
        if self.spatial_dim not in (0, 1, 2) or len(roi_size) != 2 or len(inputs.shape) != 5:
            raise ValueError(
                f"spatial_dim={self.spatial_dim} must be 0, 1 or 2, roi_size={tuple(roi_size)} must have 2 dimensions, "
                f"and inputs must have shape (B, C, H, W, D), got {tuple(inputs.shape)}"
            )
        roi_size.insert(self.spatial_dim, 1)
        weights = self.roi_weight_map
        if weights is not None and weights.dim() == 2:
            weights = weights.unsqueeze(self.spatial_dim)

        def slices(windows: torch.Tensor, *args: Any, condition: torch.Tensor | None = None, **kwargs: Any) -> Any:
            return self.network_wrapper(network, windows, condition, *args, **kwargs)

        return self._infer(inputs, network, roi_size, weights, args, kwargs, slices)

    def _wrapper(self) -> Any:
        return type(self).network_wrapper, self.spatial_dim
