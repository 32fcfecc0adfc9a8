"""Every parameter of a call, checked once. The plan, the command and the run share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any, Literal

import torch

from monai_chunked.chunks.postprocessing import is_argmax
from monai_chunked.inputs.source import source_of
from monai_chunked.machine.accelerator import with_index
from monai_chunked.outputs.auto import AutoOutput
from monai_chunked.outputs.base import Output
from monai_chunked.outputs.memory import MemoryOutput
from monai_chunked.outputs.numpy import NumpyOutput
from monai_chunked.plan.sizes import check_chunk_size, parse_bytes
from monai_chunked.plan.window_grid import Skipped, WindowGrid, window_grid
from monai_chunked.run import checks, window_checks
from monai_chunked.transforms.chain import Chain, chain_of
from monai_chunked.windows.full_batches import FullBatches
from monai_chunked.windows.importance import CROP
from monai_chunked.windows.mirrored import Mirrored
from monai_chunked.windows.skipping import Skip, outside_mask

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a call is asked to do. All attributes are those of :py:func:`chunked_sliding_window_inference`, checked.

    Attributes:
        image_size: spatial size of an image in voxels.
    """

    image_size: tuple[int, ...]
    roi_size: tuple[int, ...]
    sw_batch_size: int = 1
    overlap: Any = 0.25
    mode: str = "constant"
    sigma_scale: Any = 0.125
    padding_mode: str = "constant"
    cval: float = 0.0
    sw_device: torch.device | str | None = None
    device: torch.device | str | None = None
    progress: bool | Any = False
    roi_weight_map: torch.Tensor | None = None
    process_fn: Callable[..., Any] | None = None
    buffer_steps: int | None = None
    buffer_dim: int = -1
    with_coord: bool = False
    chunk_size: tuple[int, ...] | None = None
    preprocessing: Callable[..., Any] | None = None
    postprocessing: Any = None
    inverse: Any = None
    skip: Skip | None = None
    mask: Any = None
    background: Any = 0
    output: str | Output = "auto"
    output_dir: str | os.PathLike[str] | None = None
    device_memory: int | None = None
    cpu_memory: int | None = None
    scratch_dir: str | os.PathLike[str] | None = None
    overwrite: bool | Literal["changed"] = False
    network_id: str | None = None
    run_id: str | None = None
    # where windows lie, and how the network sees them
    border: Any = "edge"
    min_size: tuple[int, ...] | None = None
    mirror_axes: tuple[int, ...] | None = None
    mirror_batch: bool = False
    fill_batches: bool = False
    process_group: Any = None
    rounding: Literal["monai"] | None = None

    @classmethod
    def check(cls, shape: Sequence[int], **given: Any) -> Settings:
        """Check what the user gave; a parameter that is missing has its default.

        Args:
            shape: of the input, ``(B, C, *spatial)``.
            given: parameters by name.

        Raises:
            ValueError, TypeError: when a parameter does not fit; the message says what would.
        """
        values = {each.name: each.default for each in fields(cls) if each.default is not MISSING} | given
        dims = len(shape) - 2
        mode = checks.check_mode(values["mode"])
        checks.check_sigma_scale(values["sigma_scale"], dims, mode)
        checks.check_buffer(values["buffer_steps"], values["buffer_dim"], dims)
        checks.check_preprocessing(values["preprocessing"])
        checks.check_postprocessing(values["postprocessing"])
        window_checks.check_background(values["background"])
        skips = values["skip"] is not None or values["mask"] is not None
        window_checks.check_rounding(values["rounding"], values["buffer_steps"], values["background"] if skips else 0)
        checks.check_overwrite(values["overwrite"])
        output = values["output"] if isinstance(values["output"], Output) else checks.check_output(values["output"])
        checks.check_output_dir(values["output_dir"], output if isinstance(output, str) else type(output))
        border = window_checks.check_border(values["border"], dims)
        roi_size = checks.check_roi_size(values["roi_size"], shape)
        window_checks.check_fixed_size(
            border, values["roi_weight_map"], values["fill_batches"], values["process_fn"] if skips else None
        )
        values.update(
            border=border,
            min_size=window_checks.check_min_size(values["min_size"], border, roi_size),
            mirror_axes=window_checks.check_mirror_axes(values["mirror_axes"], dims),
            mirror_batch=bool(values["mirror_batch"]),
            fill_batches=bool(values["fill_batches"]),
        )
        values.update(
            skip=window_checks.check_skip(values["skip"]),
            mask=window_checks.check_mask(values["mask"], shape),
            output=output,
            image_size=tuple(shape[2:]),
            roi_size=roi_size,
            sw_batch_size=checks.check_sw_batch_size(values["sw_batch_size"]),
            overlap=checks.check_overlap(values["overlap"], dims),
            postprocessing=chain_of(values["postprocessing"]) or values["postprocessing"],
            inverse=checks.check_inverse(values["inverse"], values["postprocessing"]),
            mode=mode,
            padding_mode=checks.check_padding_mode(values["padding_mode"]),
            chunk_size=check_chunk_size(values["chunk_size"], dims),
            device_memory=parse_bytes("device_memory", values["device_memory"]),
            cpu_memory=parse_bytes("cpu_memory", values["cpu_memory"]),
        )
        return cls(**values)

    @classmethod
    def of_inferer(cls, inferer: Any, shape: Sequence[int]) -> Settings:
        """Those of an inferer, also of one of MONAI's, which lacks what we add."""
        return cls.check(shape, **cls.given(inferer))

    @classmethod
    def given(cls, inferer: Any) -> dict[str, Any]:
        """The parameters of an inferer, by name."""
        names = (each.name for each in fields(cls) if each.name != "image_size")
        return {name: getattr(inferer, name) for name in names if hasattr(inferer, name)}

    @cached_property
    def windows(self) -> WindowGrid:
        """The windows over an image."""
        nearest_only = self.mode == CROP and self.roi_weight_map is None
        scan = (self.overlap, self.buffer_steps, self.buffer_dim)
        return window_grid(self.image_size, self.roi_size, *scan, self.border, self.min_size, nearest_only)

    @property
    def passes(self) -> int:
        """How often the network sees each window."""
        return 2 ** len(self.mirror_axes or ())

    def seen_by(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """The network, as windows are brought to it: mirrored, in batches of one size."""
        if self.mirror_axes:
            network = Mirrored(network, self.mirror_axes, self.mirror_batch)
        return FullBatches(network, self.sw_batch_size) if self.fill_batches else network

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

    def limits(self, device: torch.device) -> tuple[int | None, int | None]:
        """The most bytes of open chunks on the device that predictions are on, 0 for a CPU, and in CPU memory."""
        return (0 if device.type == "cpu" else self.device_memory), self.cpu_memory

    def labels_on_cpu(self, device: torch.device) -> bool:
        """Whether predictions are in CPU memory, and only labels are written."""
        one = self.postprocessing
        return device.type == "cpu" and (one.reduces if isinstance(one, Chain) else is_argmax(one))

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
