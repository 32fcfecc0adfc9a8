"""One call, with what is known before the network runs, and what that says of its results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch

from monai_chunked.chunks.background import Weights
from monai_chunked.chunks.ending import Ending, ending_of, form_of, stages_of
from monai_chunked.chunks.finisher import Division, Finisher, HeadFinisher, Uncovered
from monai_chunked.chunks.postprocessing import Cast
from monai_chunked.chunks.stages import Stage
from monai_chunked.inputs.source import Source
from monai_chunked.outputs.base import Expected, Form, Metadata, Output, OutputWriter, Result, UsedFile
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.heads import Head, Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.recovery.record import NoRecovery, Recovery
from monai_chunked.run.one_channel import warn_of_one_channel
from monai_chunked.run.settings import Settings
from monai_chunked.run.sharing import Unshared
from monai_chunked.transforms.inversion import Inversion
from monai_chunked.windows.importance import Importance

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """One call, with what is known before the network runs.

    Attributes:
        settings: what it is asked to do.
        source: where windows are read from.
        device: where the network runs, and where predictions are.
        sum_dtype: of weights, and of what predictions are added up in.
        result_dtype: of what is not postprocessed.
        importance: makes importance maps of windows.
        output: where finished chunks go.
        recovery: what an earlier run left.
        metadata: of each image, with a name where the result must have one.
        inversion: how predictions are brought to the patients' grids; ``None``: they stay where they are.
        skipped: the windows that are known to be skipped.
        share: what this process does of the run.
        used: the files that it reads, if it writes some.
    """

    settings: Settings
    source: Source
    device: torch.device
    sum_dtype: torch.dtype
    result_dtype: torch.dtype
    importance: Importance
    output: Output
    recovery: Recovery | NoRecovery
    metadata: tuple[Metadata, ...]
    inversion: Inversion | None
    skipped: Skipped | None
    share: Unshared = field(default_factory=Unshared)
    used: tuple[UsedFile, ...] = ()

    @property
    def numbers(self) -> range:
        """The windows that come, by their number in scan order over all images."""
        return self.share.numbers(len(self.metadata) * len(self.settings.windows))

    @property
    def hands_on(self) -> bool:
        """Whether chunks go from part to part, where several workers share the run; else parts are independent."""
        return self.inversion is None and self.settings.skip is None and not self.settings.limited

    def ending(self, grid: ChunkGrid) -> Ending:
        """The grid on which the chunks of a head end."""
        return ending_of(grid, self.inversion)

    def result(self, head: Head, ending: Ending, form: Form) -> Result:
        """What one head becomes."""
        shape = (len(self.metadata), form.channels, *ending.size)
        metadata = ending.metadata(self.metadata, self.settings.image_size)
        resumable = self.recovery.journal is not None
        return Result(head.name, shape, form.dtype, ending.cuts, metadata, self.replaces, resumable)

    @property
    def replaces(self) -> bool:
        """Whether results that exist already may be replaced: this call says so, or the one that it goes on with."""
        return bool(self.settings.overwrite) or self.recovery.replaces

    def check_results(self, heads: Heads, known_bytes: int) -> None:
        """Raise if the results of these heads are not possible; nothing is written yet.

        Args:
            heads: of the network.
            known_bytes: a lower limit of their size.
        """
        names = tuple(head.name for head in heads)
        self.output.check(Expected(0, None, self.metadata, True, self.used, names))
        if not self.recovery.resumed:  # else its space is taken already
            self.output.check(Expected(known_bytes))

    def done(self, layout: Layout | None) -> frozenset[ChunkId]:
        """The chunks that need not come once more, because an earlier run has written what becomes of them.

        Args:
            layout: the chunks of that run; ``None``: there was none.
        """
        if layout is None:
            return frozenset()
        images, written = len(self.metadata), self.recovery.done
        each = (self.ending(grid).finished(written, images, head) for head, grid in enumerate(layout.grids))
        return frozenset(itertools.chain.from_iterable(each))

    def _full(self, head: Head) -> tuple[int, ...]:
        """Spatial size of the scores of an image, where it is smaller than a window with what was added to it."""
        windows = self.settings.windows
        zooms = [size / float(roi) for size, roi in zip(head.size, windows.roi_size)]
        return tuple(int(n * zoom) for n, zoom in zip(windows.image_size, zooms))

    def finisher(
        self,
        heads: Heads,
        layout: Layout,
        weights: Sequence[Weights],
        background: Sequence[torch.Tensor],
        functions: Sequence[Any],
        differentiable: bool,
    ) -> Finisher:
        """What makes results of finished chunks. The results that can be started are.

        Args:
            heads: of the network.
            layout: their chunks.
            weights: of each head.
            background: of each head, ``(C,)``: the scores of voxels that no window reaches.
            functions: the postprocessing of each head.
            differentiable: keep what autograd needs.
        """
        for device, peak in zip((self.device, torch.device("cpu")), layout.forecast.peak):
            self.output.reserve(device, peak)
        warn_of_one_channel(functions, heads)
        endings = [self.ending(grid) for grid in layout.grids]
        parts = list(zip(endings, heads, functions))
        forms = [form_of(*part, self.result_dtype) for part in parts]
        sizes = [prod(ending.size) * form.voxel_bytes for ending, form in zip(endings, forms) if form]
        known_bytes = len(self.metadata) * sum(sizes)
        self.check_results(heads, known_bytes)

        def threaded(writer: OutputWriter) -> bool:
            return (self.device.type != "cpu" or not writer.in_memory) and not differentiable

        finishers: list[HeadFinisher] = []
        try:
            for k, part in enumerate(parts):
                division = Division(layout.grids[k], weights[k], differentiable)
                uncovered = Uncovered(layout.grids[k], background[k])
                stages: list[Stage] = [division, uncovered]
                if self.settings.rounding is not None:  # as behind MONAI's inferer
                    stages.append(Cast(self.result_dtype))
                full = [self._full(heads[k])] * len(self.metadata)
                stages += stages_of(*part, self.result_dtype, self.recovery.done, full)
                create = self.share.creating(k, partial(self._create, k, heads[k], endings[k]))
                form = self.recovery.results.get(k, forms[k])
                finishers.append(HeadFinisher(heads[k].name, stages, create, form, threaded))
        except BaseException:
            Finisher(finishers).abandon()
            raise
        return Finisher(finishers, known_bytes)

    def _create(self, number: int, head: Head, ending: Ending, form: Form) -> OutputWriter:
        """Start a result, or go on with one that an earlier run left."""
        return self.recovery.writer(number, self.output, self.result(head, ending, form))
