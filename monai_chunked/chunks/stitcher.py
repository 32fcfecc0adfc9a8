"""From predictions to results: predictions go into open chunks, finished chunks to the output."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from monai.transforms.utils import scale_affine

from monai_chunked.chunks.blending import OpenChunks
from monai_chunked.chunks.finishing import ResultStitching, known_result
from monai_chunked.chunks.open_chunks import Placement
from monai_chunked.chunks.postprocessing import Postprocessing, is_argmax, match_postprocessing
from monai_chunked.machine.memory import FreedMemory, available_memory
from monai_chunked.outputs.base import Metadata, Output, OutputWriter, Result
from monai_chunked.outputs.recovery.recovery import Recovery
from monai_chunked.plan.boxes import Corner
from monai_chunked.plan.chunk_grid import ChunkGrid
from monai_chunked.plan.heads import RecordedOutput
from monai_chunked.plan.layout import Layout, lay_out
from monai_chunked.plan.schedule import CPU, Key
from monai_chunked.plan.window_grid import Window, WindowGrid
from monai_chunked.windows.predictor import Prediction

__all__ = ["Stitcher"]


logger = logging.getLogger(__name__)


MARGIN = 0.9
"""Of the memory that is free, the part that open chunks may take if nobody sets a limit."""


GROWTH = 1 / 16
"""Of what open chunks and results take, the part by which the process may grow before it gives back what is free."""


@dataclass
class Stitcher:
    """Stitches all outputs of the network.

    Args:
        windows: the windows.
        image_size: spatial size of an image in voxels.
        metadata: of each image in the input batch.
        chunk_size: spatial size of a chunk in voxels, or ``None``.
        device: where predictions are.
        sum_dtype: float32 or float64.
        result_dtype: of what is not postprocessed.
        postprocessing: as the user gave it.
        output: where finished chunks go.
        overwrite: whether results that exist already may be replaced.
        recovery: what an earlier run left, or ``None``.
        device_memory, cpu_memory: the most bytes that open chunks may take there; ``None``: what is free.
        scratch_dir: the folder of the scratch file.

    Attributes:
        images: number of images in the input batch.
        keys: of the outputs where the network returns a dict, when the first prediction is in.
    """

    windows: WindowGrid
    image_size: tuple[int, ...]
    metadata: tuple[Metadata, ...]
    chunk_size: tuple[int, ...] | None
    device: torch.device
    sum_dtype: torch.dtype
    result_dtype: torch.dtype
    postprocessing: Any
    output: Output
    overwrite: bool
    recovery: Recovery | None
    device_memory: int | None
    cpu_memory: int | None
    scratch_dir: str | os.PathLike[str] | None

    def __post_init__(self) -> None:
        self.images = len(self.metadata)
        self._placement: Placement | None = None
        self._workers = ThreadPoolExecutor(torch.get_num_threads(), "monai_chunked-add")
        self._outputs: list[ResultStitching] = []
        self._passed: list[Window] = []
        self.keys = self.recovery.keys if self.recovery is not None else None
        self._recorded: Layout | None = None
        if self.recovery is not None and self.recovery.resumed:
            outputs = self.recovery.outputs
            sizes = [(output.channels, output.prediction_size) for output in outputs]
            self._recorded = self._lay_out(sizes, [output.cuts for output in outputs])

    def needs(self, batch: Sequence[Window]) -> bool:
        """Whether any window of a batch touches a chunk that no earlier run has finished."""
        return any(map(self._needs, batch))

    def add(self, batch: Sequence[Window], prediction: Prediction) -> None:
        """Add the predictions of a batch of windows, and write the chunks that they finish."""
        placement = self._placement or self._start(prediction)
        self._freed.passed(sum(tensor.nbytes for tensor in prediction.tensors))
        for window, *tensors in zip(batch, *prediction.tensors):
            if not self._needs(window):
                self._pass(window, placement)
                continue
            for stitching, tensor, weights in zip(self._outputs, tensors, prediction.weights):
                placement.wait()
                stitching.add(window, tensor, weights)
                placement.prepare()

    def skip(self, batch: Sequence[Window]) -> None:
        """These windows touch only chunks that an earlier run has finished."""
        if self._placement is None:
            self._passed.extend(batch)
        else:
            for window in batch:
                self._pass(window, self._placement)

    def finish(self) -> list[Any]:
        """The results, when all windows are in."""
        if self._placement is None:  # an earlier run finished all chunks
            results = [writer.finish() for writer in self._recorded_writers()]
        else:
            results = [stitching.finish() for stitching in self._outputs]
        if self.recovery is not None:
            self.recovery.finish()
        self._close()
        return results

    def load(self) -> list[Any] | None:
        """The results, if an earlier run finished them and nobody has removed them since."""
        if self.recovery is None or not self.recovery.complete:
            return None
        try:
            results = [self.output.load(result) for result in self._recorded_results()]
        except FileNotFoundError:
            self.recovery.start_afresh()
            self._recorded = None
            return None
        result = self.recovery.path.with_name(self.recovery.path.name.removesuffix(".journal"))
        warnings.warn(
            f"{result} is returned as an earlier run finished it on {self.recovery.complete}, without running the "
            f"network: nothing that it depends on has changed; overwrite=True starts afresh",
            stacklevel=5,
        )
        self._close()
        return results

    def abandon(self) -> None:
        """The run failed: leave nothing behind."""
        self._close()
        for stitching in self._outputs:
            stitching.abandon()

    @property
    def in_memory(self) -> bool:
        """Whether a result stays in memory, so that it can be differentiated."""
        return not self._outputs or any(stitching.in_memory for stitching in self._outputs)

    @property
    def chunks(self) -> tuple[int, int]:
        """How many chunks are finished, and how many there are in all."""
        total = self.images * sum(len(stitching.chunks.grid) for stitching in self._outputs)
        return sum(stitching.finished for stitching in self._outputs), total

    @property
    def open_bytes(self) -> int:
        """Bytes of open chunks, on all levels."""
        return sum(self._placement.open_bytes) if self._placement else 0

    def _needs(self, window: Window) -> bool:
        if self._recorded is None or self.recovery is None:
            return True
        return any(
            (window.image, *grid.corner(chunk)) not in self.recovery.done.get(k, ())
            for k, grid in enumerate(self._recorded.grids)
            for chunk in grid.touched_by(window.position)
        )

    def _pass(self, window: Window, placement: Placement) -> None:
        """Keep to the schedule, without a prediction."""
        for stitching in self._outputs:
            placement.wait()
            stitching.finish_chunks(window)
            placement.prepare()

    def _start(self, prediction: Prediction) -> Placement:
        layout = self._recorded or self._lay_out([(t.shape[1], tuple(t.shape[2:])) for t in prediction.tensors])
        self.keys = prediction.keys
        self._record(prediction, layout)
        for device, peak in zip((self.device, torch.device("cpu")), layout.forecast.peak):
            self.output.reserve(device, peak)
        differentiable = torch.is_grad_enabled()
        done = [self._done_keys(image, layout) for image in range(self.images)]
        placement = Placement(layout, done, self.device, self.sum_dtype, not differentiable, self.scratch_dir)
        self._placement = placement
        functions = match_postprocessing(self.postprocessing, prediction.keys, len(prediction.tensors))
        result_bytes = sum(map(self._known_bytes, layout.grids, prediction.tensors, functions))
        if self._recorded is None:  # else its space is taken already
            self.output.check(result_bytes)
        self._freed = FreedMemory(int(GROWTH * (sum(layout.forecast.peak[: CPU + 1]) + result_bytes)))
        for k, (name, function) in enumerate(zip(prediction.names(), functions)):
            channels, weights = prediction.tensors[k].shape[1], prediction.weights[k]
            grid, workers = layout.grids[k], self._workers
            chunks = OpenChunks(k, grid, channels, weights, self._done(k), placement, workers, differentiable)
            create = partial(self._create, k, name, grid)
            known = self._recorded_result(k) or known_result(channels, self.result_dtype, function)
            stitching = ResultStitching(name, chunks, self.images, function, self.result_dtype, create, known)
            self._outputs.append(stitching)
            if not layout.forecast.moved and stitching.add_in_place():
                placement.in_place.add(k)
        placement.prepare()
        for window in self._passed:
            self._pass(window, placement)
        return placement

    def _record(self, prediction: Prediction, layout: Layout) -> None:
        """What the outputs of the network are, or that they are what they were."""
        if self.recovery is None:
            return
        parts = zip(prediction.names(), prediction.tensors, layout.grids)
        outputs = [RecordedOutput(name, t.shape[1], tuple(t.shape[2:]), grid.cuts) for name, t, grid in parts]
        if self._recorded is None:
            self.recovery.begin(prediction.keys, outputs)
        elif outputs != self.recovery.outputs:
            raise ValueError(
                f"the network returns {outputs} but returned {self.recovery.outputs} in the run that is resumed; "
                f"overwrite=True starts afresh"
            )

    def _recorded_result(self, output: int) -> tuple[int, torch.dtype] | None:
        return self.recovery.results.get(output) if self.recovery is not None else None

    def _done(self, output: int) -> Mapping[Corner, int]:
        return {} if self.recovery is None else self.recovery.done.get(output, {})

    def _done_keys(self, image: int, layout: Layout) -> set[Key]:
        """The chunks of an image that an earlier run has finished."""
        return {
            (k, position)
            for k, grid in enumerate(layout.grids)
            if (done := self._done(k))
            for position in itertools.product(*map(range, grid.shape))
            if (image, *grid.corner(position)) in done
        }

    def _create(self, output: int, name: str, grid: ChunkGrid, channels: int, dtype: torch.dtype) -> OutputWriter:
        """Start a result, or go on with one that an earlier run left."""
        result = self._result(name, grid, channels, dtype)
        if self.recovery is None:
            return self.output.create(result)
        return self.recovery.writer(output, self.output, result)

    def _result(self, name: str, grid: ChunkGrid, channels: int, dtype: torch.dtype) -> Result:
        shape = (self.images, channels, *grid.size)
        metadata = tuple(_at_resolution(each, self.image_size, grid.size) for each in self.metadata)
        return Result(name, shape, dtype, grid.cuts, metadata, self.overwrite, self.recovery is not None)

    def _recorded_results(self) -> list[Result]:
        assert self.recovery is not None
        assert self._recorded is not None
        parts = zip(self.recovery.outputs, self._recorded.grids)
        return [self._result(o.name, grid, *self.recovery.results[k]) for k, (o, grid) in enumerate(parts)]

    def _recorded_writers(self) -> list[OutputWriter]:
        assert self.recovery is not None
        return [self.recovery.writer(k, self.output, result) for k, result in enumerate(self._recorded_results())]

    def _known_bytes(self, grid: ChunkGrid, prediction: torch.Tensor, function: Postprocessing | None) -> int:
        """Of one result; 0 if only the first finished chunk will tell."""
        known = known_result(prediction.shape[1], self.result_dtype, function)
        return 0 if known is None else self.images * prod(grid.size) * known[0] * known[1].itemsize

    def _lay_out(self, outputs: list[tuple[int, tuple[int, ...]]], cuts: list[Any] | None = None) -> Layout:
        """Within the limits that the user set, and within what is free where there is none."""
        sizes = (self.windows, self.image_size, outputs, self.sum_dtype.itemsize, self.chunk_size)
        on_cpu = self.device.type == "cpu"
        limits = [0 if on_cpu else self.device_memory, self.cpu_memory]
        labels_on_cpu = on_cpu and is_argmax(self.postprocessing)
        layout = lay_out(*sizes, limits[0], limits[1], cuts, labels_on_cpu)
        for level, device in enumerate((self.device, torch.device("cpu"))):
            if torch.is_grad_enabled():
                break  # a chunk that moves is cut off from what autograd knows
            free = available_memory(device)
            if limits[level] is None and free is not None and layout.forecast.peak[level] > MARGIN * free:
                limits[level] = int(MARGIN * free)
                layout = lay_out(*sizes, limits[0], limits[1], cuts, labels_on_cpu)
        return layout

    def _close(self) -> None:
        self._workers.shutdown()
        if self._placement is not None:
            self._placement.close()


def _at_resolution(metadata: Metadata, image_size: tuple[int, ...], size: tuple[int, ...]) -> Metadata:
    """Of a result: where the network changes the resolution its voxels lie elsewhere, over the same volume."""
    affine = metadata.get("affine")
    if affine is None or size == image_size:
        return metadata
    affine = torch.as_tensor(affine, dtype=torch.float64)
    dims = affine.shape[-1] - 1
    scale = scale_affine((*image_size, *[1] * dims)[:dims], (*size, *[1] * dims)[:dims])
    return {**metadata, "affine": affine @ torch.as_tensor(scale, dtype=torch.float64)}
