"""What is asked for, with what the input says of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from monai.transforms import Invertd

from monai_chunked.call.settings import Settings
from monai_chunked.chunks.ending import Ending, ending_of
from monai_chunked.inputs.lazy.files_under import files_of_metadata, files_under
from monai_chunked.inputs.source import Source, TensorSource
from monai_chunked.machine.accelerator import with_index
from monai_chunked.machine.mapped import MappedFiles
from monai_chunked.machine.memory import available_memory
from monai_chunked.outputs.base import Output, UsedFile
from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout, Volume, lay_out
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.recovery.left import Cuts
from monai_chunked.transforms.chain import inside
from monai_chunked.transforms.inversion import Images, Inversion, Undo, by_invertd
from monai_chunked.transforms.reasons import stays_in_memory
from monai_chunked.windows.importance import Importance
from monai_chunked.windows.predictor import BoundNetwork

__all__ = ["Call", "Fingerprint", "inversion_of", "sum_dtype_of"]


Fingerprint = tuple[Mapping[str, str], Sequence[str]]
"""A text for each part that a result depends on, and what of them cannot be described."""

MARGIN = 0.9
"""The part of free memory that open chunks may take if nobody sets a limit."""


def sum_dtype_of(source: Source, settings: Settings) -> torch.dtype:
    """The dtype of weights, and of the sums of predictions."""
    as_input = source.dtype.is_floating_point and settings.rounding is not None
    return source.dtype if as_input or source.dtype == torch.float64 else torch.float32


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
    sample = torch.zeros((1, 1, *[2] * dims), dtype=source.dtype, device=source.device)
    try:
        return F.pad(sample, [1, 1] * dims, mode=padding_mode).dtype
    except (RuntimeError, NotImplementedError):  # padding the input will raise it
        return source.dtype


def inversion_of(settings: Settings, source: Source) -> Inversion | None:
    """What ``inverse`` or an ``Invertd`` in ``postprocessing`` asks for; ``None`` if there is neither.

    Raises:
        ValueError: when the input does not say what was done to it.
    """
    undo: Undo | Invertd | None = settings.inverse
    template = source.template
    images = Images(source.templates, template is not None and template.is_batch)
    for chain in settings.chains:
        if chain.invert is None:
            continue
        undo, images = by_invertd(chain.invert, chain.key), chain.images or images
        if len(images.templates) not in (0, source.shape[0]):
            raise ValueError(
                f"postprocessing has an Invertd that was split for a batch of {len(images.templates)} image(s), but "
                f"the input has {source.shape[0]}; call split_postprocessing(..., batch=) for each batch"
            )
    if undo is None:
        return None
    if isinstance(undo, Invertd):
        undo = by_invertd(undo, undo.keys[0])
    size = padded = settings.image_size
    before = (inside(function) for chain in settings.chains for function in chain.before)
    if all(map(stays_in_memory, before)):  # a prediction that was cut from a larger one lies with gaps in between
        padded = tuple(map(max, size, settings.roi_size))
    return Inversion(images, undo, (size, padded))


@dataclass(frozen=True)
class Call:
    """What is asked for, and what the input says of it. Nothing has been begun.

    Attributes:
        settings: what is asked for.
        network: with its further arguments.
        source: where windows are read from.
        condition: where windows of the condition are read from, if there is one.
        device: where the network runs, and where predictions are.
        sum_dtype: of weights, and of what predictions are added up in.
        result_dtype: of what is not postprocessed.
        importance: makes importance maps of windows.
        output: where finished chunks go.
        inversion: how predictions are brought to the patients' grids; ``None``: they stay where they are.
    """

    settings: Settings
    network: BoundNetwork
    source: Source
    condition: Source | None
    device: torch.device
    sum_dtype: torch.dtype
    result_dtype: torch.dtype
    importance: Importance
    output: Output
    inversion: Inversion | None

    @classmethod
    def of(cls, source: Source, network: BoundNetwork, settings: Settings, condition: Source | None = None) -> Call:
        """What these settings ask for.

        Raises:
            ValueError: when an inverse is asked for, and the input does not say what was done to it.
        """
        return cls.inverting(source, network, settings, condition, inversion=inversion_of(settings, source))

    @classmethod
    def inverting(
        cls,
        source: Source,
        network: BoundNetwork,
        settings: Settings,
        condition: Source | None = None,
        *,
        inversion: Inversion | None,
    ) -> Call:
        """What these settings ask for, with an inversion that is known already."""
        device, sum_dtype = with_index(settings.sw_device or source.device), sum_dtype_of(source, settings)
        padded = tuple(settings.windows.image_size) != tuple(settings.image_size)
        return cls(
            settings=settings,
            network=network,
            source=source,
            condition=condition,
            device=device,
            sum_dtype=sum_dtype,
            result_dtype=result_dtype_of(source, settings.padding_mode if padded else "constant"),
            importance=Importance(settings.roi_weight_map, settings.mode, settings.sigma_scale, device, sum_dtype),
            output=settings.target(source.device),
            inversion=inversion,
        )

    def why_whole(self) -> str | None:
        """Why predictions cannot be brought to the patients' grids a chunk at a time; ``None`` if they can."""
        return None if self.inversion is None else self.inversion.why_whole(self.settings.image_size, self.sum_dtype)

    @property
    def images(self) -> int:
        """Number of images in the input batch."""
        return self.source.shape[0]

    @property
    def windows(self) -> range:
        """All windows, by their number in scan order over all images."""
        return range(self.images * len(self.settings.windows))

    @property
    def differentiable(self) -> bool:
        """Whether results can be differentiated, if the caller wants it."""
        return self.keeps_scores and self.output.in_memory and not self.settings.limited

    @property
    def keeps_scores(self) -> bool:
        """Whether results are the blended predictions as they are."""
        return not self.settings.postprocessing and self.inversion is None

    @property
    def writes_files(self) -> bool:
        """Whether the result, or a part of it, may be on disk."""
        return self.settings.output_dir is not None or not self.output.in_memory

    @property
    def parts_hand_on(self) -> bool:
        """Whether chunks go from part to part, where several workers share the run; else parts are independent."""
        return self.inversion is None and self.settings.skip is None and not self.settings.limited

    @property
    def known_dtype(self) -> torch.dtype | None:
        """The dtype of the result, where it is known before a chunk is finished."""
        return self.result_dtype if self.keeps_scores else None

    def used(self) -> tuple[UsedFile, ...]:
        """The files that are read, if the result may be in files that have names."""
        if not self.settings.names_results:
            return ()
        return used_files(self.settings, self.source, {"condition": self.condition, "network": self.network})

    def ending(self, grid: ChunkGrid) -> Ending:
        """The grid on which the chunks of a head end."""
        return ending_of(grid, self.inversion)

    def volume(self, heads: Heads, skipped: Skipped | None = None) -> Volume:
        """What there is to lay out."""
        return Volume(self.settings.windows, self.settings.image_size, heads, self.sum_dtype.itemsize, skipped)

    def lay_out(self, heads: Heads, cuts: Sequence[Cuts] | None = None, skipped: Skipped | None = None) -> Layout:
        """The chunks, within the limits that the user set, and within what is free where there is none.

        Args:
            heads: of the network.
            cuts: of each head, where an earlier run has made them.
            skipped: the windows that are known to be skipped.

        Raises:
            ValueError: when the limits cannot hold the chunks of one window.
        """
        settings = self.settings
        labels_on_cpu = settings.labels_on_cpu(self.device)
        within = partial(lay_out, chunk_size=settings.chunk_size, cuts=cuts, labels_on_cpu=labels_on_cpu)
        volume, limits = self.volume(heads, skipped), settings.limits(self.device)
        layout = within(volume, limits)
        for level, memory in enumerate((self.device, torch.device("cpu"))):
            if torch.is_grad_enabled():
                break  # a chunk that moves is cut off from what autograd knows
            free = available_memory(memory)
            if limits[level] is None and free is not None and layout.forecast.peak[level] > MARGIN * free:
                limits = limits._replace(**{limits._fields[level]: int(MARGIN * free)})
                layout = within(volume, limits)
        return layout


def used_files(settings: Settings, source: Source, reads: Mapping[str, object]) -> tuple[UsedFile, ...]:
    """The files of a call that are there, each once, also those that are read already: to lose them is a loss, too.

    Args:
        settings: what is asked for.
        source: where windows are read from.
        reads: what else is read, by the name of the parameter: a source, or a network with its further arguments.
    """
    mapped = MappedFiles()
    always: dict[str, object] = {"inputs": source, "mask": settings.mask, "roi_weight_map": settings.roi_weight_map}
    names = {file: name for name, value in reversed({**always, **reads}.items()) for file in _files_of(value, mapped)}
    return tuple(UsedFile(file, name) for file, name in names.items() if "://" in file or os.path.exists(file))


def _files_of(value: object, mapped: MappedFiles) -> Iterator[str]:
    if isinstance(value, Source):
        yield from files_of_metadata(value.metadata)
        yield from files_under(value.origin, mapped)
    elif isinstance(value, BoundNetwork):
        network = value.network
        weights = [*network.parameters(), *network.buffers()] if isinstance(network, torch.nn.Module) else []
        for held in itertools.chain(weights, value.args, value.kwargs.values()):
            yield from files_under(held, mapped)
    else:
        yield from files_under(value, mapped)
