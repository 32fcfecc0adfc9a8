"""Every parameter of a call, checked once. The plan, the command and the run share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from monai.transforms import Invertd

from monai_chunked.call import checks, window_checks
from monai_chunked.call.observer import Observer
from monai_chunked.inputs.lazy.lazy_array import Array
from monai_chunked.inputs.source import source_of
from monai_chunked.machine.accelerator import with_index
from monai_chunked.outputs.auto import AutoOutput
from monai_chunked.outputs.base import Output
from monai_chunked.outputs.memory_output import MemoryOutput
from monai_chunked.outputs.numpy import NumpyOutput
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.schedule import Limits
from monai_chunked.plan.sizes import check_chunk_size, parse_bytes
from monai_chunked.plan.window_grid import Skipped, WindowGrid, window_grid
from monai_chunked.transforms.argmax import check_classes
from monai_chunked.transforms.chain import Chain, Chains, all_of
from monai_chunked.transforms.inversion import ImageInverse
from monai_chunked.windows.importance import CROP
from monai_chunked.windows.mirrored import Mirrored
from monai_chunked.windows.predictor import FullBatches
from monai_chunked.windows.skipping import Skip, outside_mask

__all__ = ["Background", "Device", "Folder", "PerDimension", "Settings", "Sizes"]

PerDimension = float | Sequence[float]
Sizes = int | Sequence[int]
Device = torch.device | str
Folder = str | os.PathLike[str]
PerChannel = float | Sequence[float] | np.ndarray | torch.Tensor
Background = PerChannel | Sequence[PerChannel] | Mapping[Any, PerChannel]


def checked(default: Any, check: Callable[..., Any], *others: str) -> Any:
    """A parameter that is checked.

    Args:
        default: what it is if the user gives nothing; checked, too.
        check: makes its value of what the user gave, and of the others.
        others: names of parameters, whose values are checked already if they stand above; of ``shape`` or ``dims`` of
            the input; or of ``skips``, whether windows may be skipped.
    """
    return field(default=default, metadata={"check": check, "others": others})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a call is asked to do. All attributes are those of :py:func:`chunked_sliding_window_inference`, checked.

    Attributes:
        image_size: spatial size of an image in voxels.
    """

    image_size: tuple[int, ...]
    roi_size: tuple[int, ...] = checked(MISSING, checks.check_roi_size, "shape")
    sw_batch_size: int = checked(1, checks.check_sw_batch_size)
    overlap: tuple[float, ...] = checked(0.25, checks.check_overlap, "dims")
    mode: str = checked("constant", checks.check_mode)
    sigma_scale: PerDimension = checked(0.125, checks.check_sigma_scale, "dims", "mode")
    padding_mode: str = checked("constant", checks.check_padding_mode)
    cval: float = 0.0
    sw_device: Device | None = None
    device: Device | None = None
    progress: bool | Observer = False
    buffer_dim: int = -1
    buffer_steps: int | None = checked(None, checks.check_buffer, "buffer_dim", "dims")
    with_coord: bool = False
    chunk_size: tuple[int, ...] | None = checked(None, check_chunk_size, "dims")
    preprocessing: Callable[..., Any] | None = checked(None, checks.check_preprocessing)
    inverse: ImageInverse | Invertd | None = checked(None, checks.check_inverse)
    postprocessing: Chains = checked(None, checks.check_postprocessing, "inverse")
    skip: Skip | None = checked(None, window_checks.check_skip)
    mask: Array | None = checked(None, window_checks.check_mask, "shape")
    background: Background = checked(0, window_checks.check_background)
    output: str | Output = checked("auto", checks.check_output)
    output_dir: Folder | None = checked(None, checks.check_output_dir, "output")
    device_memory: int | None = checked(None, partial(parse_bytes, "device_memory"))
    cpu_memory: int | None = checked(None, partial(parse_bytes, "cpu_memory"))
    scratch_dir: Folder | None = None
    overwrite: bool | Literal["changed"] = checked(False, checks.check_overwrite)
    network_id: str | None = None
    run_id: str | None = None
    # where windows lie, and how the network sees them
    border: tuple[str, ...] = checked("edge", window_checks.check_border, "dims")
    min_size: tuple[int, ...] | None = checked(None, window_checks.check_min_size, "border", "roi_size")
    mirror_axes: tuple[int, ...] = checked(None, window_checks.check_mirror_axes, "dims")
    mirror_batch: bool = checked(False, bool)
    roi_weight_map: torch.Tensor | None = checked(None, window_checks.check_roi_weight_map, "border")
    fill_batches: bool = checked(False, window_checks.check_fill_batches, "border")
    process_fn: Callable[..., Any] | None = checked(None, window_checks.check_process_fn, "border", "skips")
    process_group: dist.ProcessGroup | Literal["world"] | None = None
    rounding: Literal["monai"] | None = checked(
        None, window_checks.check_rounding, "buffer_steps", "background", "skips"
    )

    @classmethod
    def check(cls, shape: Sequence[int], **given: Any) -> Settings:
        """Check what the user gave; a parameter that is missing has its default.

        Args:
            shape: of the input, ``(B, C, *spatial)``.
            given: parameters by name.

        Raises:
            ValueError, TypeError: when a parameter does not fit; the message says what would.
        """
        parameters = [parameter for parameter in fields(cls) if parameter.name != "image_size"]
        values: dict[str, Any] = {parameter.name: parameter.default for parameter in parameters} | given
        skips = values["skip"] is not None or values["mask"] is not None
        of_input = {"shape": shape, "dims": len(shape) - 2, "skips": skips}
        for parameter in parameters:
            if "check" in parameter.metadata:
                others = [(of_input | values)[name] for name in parameter.metadata["others"]]
                values[parameter.name] = parameter.metadata["check"](values[parameter.name], *others)
        return cls(image_size=tuple(shape[2:]), **values)

    @classmethod
    def of_inferer(cls, inferer: object, shape: Sequence[int]) -> Settings:
        """The settings of an inferer, also of one of MONAI's, which lacks what we add."""
        return cls.check(shape, **cls.given(inferer))

    @classmethod
    def given(cls, inferer: object) -> dict[str, Any]:
        """The parameters of an inferer, by name."""
        names = (parameter.name for parameter in fields(cls) if parameter.name != "image_size")
        return {name: getattr(inferer, name) for name in names if hasattr(inferer, name)}

    @cached_property
    def windows(self) -> WindowGrid:
        """The windows over an image."""
        return window_grid(
            self.image_size,
            self.roi_size,
            self.overlap,
            buffer_steps=self.buffer_steps,
            buffer_dim=self.buffer_dim,
            border=self.border,
            min_size=self.min_size,
            nearest_only=self.mode == CROP and self.roi_weight_map is None,
        )

    @property
    def passes(self) -> int:
        """How often the network sees each window."""
        return 2 ** len(self.mirror_axes)

    def seen_by(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """The network, as windows are brought to it: mirrored, in batches of one size."""
        if self.mirror_axes:
            network = Mirrored(network, self.mirror_axes, self.mirror_batch)
        return FullBatches(network, self.sw_batch_size) if self.fill_batches else network

    @property
    def chains(self) -> list[Chain]:
        """The chains of all heads, or the one that is for all of them."""
        return all_of(self.postprocessing)

    def chains_of(self, heads: Heads) -> list[Chain]:
        """The chain of each head of the network. A warning says where MONAI's argmax or softmax gets one channel.

        Raises:
            ValueError: when they do not fit the heads, or choose a class where there is only one.
        """
        chains = heads.match("postprocessing", self.postprocessing)
        for chain, head in zip(chains, heads):
            if chain.is_argmax:
                check_classes(head.channels, head.name)
        for chain, head in zip(chains, heads):
            chain.warn_of_one_channel(head)
        return chains

    @property
    def uses_background(self) -> bool:
        """Whether there may be voxels that the network says nothing of."""
        return self.skip is not None or self.mask is not None or "crop" in self.border

    def skipped(self) -> Skipped | None:
        """The windows that the mask skips, which is read for it; ``None``: there is none."""
        return None if self.mask is None else outside_mask(source_of(self.mask), self.windows, self.scratch_dir)

    @property
    def limited(self) -> bool:
        """Whether the user set a limit."""
        return (self.device_memory, self.cpu_memory) != (None, None)

    def limits(self, device: torch.device) -> Limits:
        """The limits of what open chunks take, where predictions are on this device."""
        return Limits(0 if device.type == "cpu" else self.device_memory, self.cpu_memory)

    def labels_on_cpu(self, device: torch.device) -> bool:
        """Whether predictions are in CPU memory, and only labels are written."""
        return device.type == "cpu" and all(chain.reduces for chain in self.chains)

    @property
    def names_results(self) -> bool:
        """Whether results may be in files that have names."""
        return self.output_dir is not None or (isinstance(self.output, Output) and not self.output.in_memory)

    def target(self, inputs_device: torch.device) -> Output:
        """Where finished chunks go."""
        if isinstance(self.output, Output):
            return self.output
        device = with_index(self.device or inputs_device)
        if self.output == "disk":
            return NumpyOutput(self.output_dir)
        if self.output == "auto":
            return AutoOutput(device, self.output_dir)
        return MemoryOutput(device if self.output == "device" else "cpu")
