"""The worker behind the network: predictions of windows go in, results come out, for a loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Any, NoReturn

import numpy as np
import torch

from monai_chunked.api.sampler import OPTIONS, WindowSampler, tensor_of
from monai_chunked.call.call import Call
from monai_chunked.call.settings import Settings, Sizes
from monai_chunked.outputs.base import Output
from monai_chunked.plan.boxes import sizes
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.window_grid import Window
from monai_chunked.run.assembly import Assembly, Part, assemble
from monai_chunked.run.begun import begun
from monai_chunked.run.run import hand_out, watched
from monai_chunked.windows.errors import windows_text
from monai_chunked.windows.predictor import BoundNetwork, Predictor

__all__ = ["ChunkAggregator"]


NOT_TAKEN = (
    "image_size", "sw_batch_size", "process_fn", "with_coord", "skip", "mirror_axes", "mirror_batch", "fill_batches",
    "network_id", "run_id",
)  # fmt: skip
"""Parameters of the inferer that are for whoever runs the network."""


class ChunkAggregator:
    """
    Blends predictions of windows, and never holds the scores of the whole volume.

    Blending, postprocessing and outputs are those of :py:class:`ChunkedSlidingWindowInferer`, and so are the
    parameters; the result is the same, to the last bit, if the predictions are. A chunk is finished, postprocessed and
    handed to the output as soon as its last window is in. Windows must come in the order of the sampler, each of them
    once. Predictions are not differentiated, and a run that stops starts afresh. Used as a context manager it leaves no
    half of a result behind when the loop fails.

    Args:
        sampler: where the windows come from.
        mode: weights for blending windows.
        postprocessing: applied to each finished chunk, such as ``"argmax"``.
        output: where finished chunks go.
        chunk_size: spatial size of a chunk in voxels of the result.
        parameters: further ones of the inferer: ``sigma_scale``, ``roi_weight_map``, ``sw_device`` (where open chunks
            are), ``device``, ``background``, ``inverse``, ``output_dir``, ``device_memory``, ``cpu_memory``,
            ``scratch_dir``, ``overwrite``, ``progress``.

    Raises:
        ValueError, TypeError, OSError: when a parameter does not fit.

    Example: see :py:class:`WindowSampler`.
    """

    def __init__(
        self,
        sampler: WindowSampler,
        mode: str = "constant",
        postprocessing: Any = None,
        output: str | Output = "auto",
        chunk_size: Sizes | None = None,
        **parameters: Any,
    ) -> None:
        of_windows = {*sampler.parameters, *OPTIONS} - {"scratch_dir"}
        accepted = {setting.name for setting in fields(Settings)} - {*NOT_TAKEN, *of_windows}
        unknown = [name for name in parameters if name not in accepted]
        if unknown:
            of_sampler = "; it is a parameter of the WindowSampler" if unknown[0] in of_windows else ""
            raise TypeError(
                f"ChunkAggregator has no parameter {unknown[0]!r}{of_sampler}; it takes {', '.join(sorted(accepted))}"
            )
        own = {"mode": mode, "postprocessing": postprocessing, "output": output, "chunk_size": chunk_size, **parameters}
        settings, source = Settings.check(sampler.source.shape, **{**sampler.parameters, **own}), sampler.source
        self._call = Call.of(source, BoundNetwork(_no_network, (), {}), settings)
        if reason := self._call.why_whole():
            raise ValueError(
                f"the prediction cannot be brought to the patient's grid a chunk at a time, because {reason}; do it "
                f"whole behind finish(), with MONAI's Invertd, or leave it to ChunkedSlidingWindowInferer"
            )
        self._stack = ExitStack()
        self._run = self._stack.enter_context(begun(self._call, None, sampler.skipped))
        self._predictor = Predictor(
            _no_network, self._call.importance, process_fn=None, device=self._call.device, with_coord=False
        )
        self._assembly: Assembly | None = None
        runs = settings.windows.runs(source.shape[0])
        self._windows: Iterator[Window] = (window for run in runs for window in run)
        self._order = {tuple(tensor_of(window).tolist()): number for number, window in enumerate(sampler.windows)}
        self._expected = sampler.windows
        self._taken = 0
        self._over = ""

    def add_batch(self, predictions: Any, windows: Any) -> None:
        """Add the predictions of the next windows.

        Args:
            predictions: ``(windows, C, *size)``, a tensor or a NumPy array, or several in a list, tuple or dict.
            windows: which windows they are of, ``(windows, 1 + 2 * dims)``, as the sampler says.

        Raises:
            ValueError: when a window is not the next one, or predictions do not fit the windows or each other. All is
                lost then.
            TypeError: when they are no tensors.
        """
        self._check_open()
        try:
            with torch.no_grad():
                self._add(self._batch(windows), predictions)
        except BaseException as error:
            self._abandon(error, f"because {type(error).__name__} was raised")
            raise

    def finish(self) -> Any:
        """The result, as the inferer returns it, when all windows are in.

        Raises:
            ValueError: when windows are missing.
        """
        self._check_open()
        try:
            if self._taken < len(self._expected):
                raise ValueError(
                    f"only {self._taken} of {len(self._expected)} windows were added; the next one is "
                    f"{windows_text([self._expected[self._taken]])}"
                )
            with torch.no_grad():
                assert self._assembly is not None
                for window in self._windows:
                    self._assembly.add(window, None)
                results = self._assembly.finish()
                self._run.record.finish()
                result = hand_out(self._call, results)
        except BaseException as error:
            self._abandon(error, f"because {type(error).__name__} was raised")
            raise
        self._over = "after finish()"
        self._stack.close()
        return result

    def __enter__(self) -> ChunkAggregator:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self._over:
            self._abandon(error or RuntimeError(), "because its block was left before finish()")

    def _add(self, batch: list[Window], predictions: Any) -> None:
        prediction = self._predictor.of(batch, _as_tensors(predictions))
        if self._assembly is None:
            self._assembly = self._assemble(
                prediction.heads.scaled(sizes(batch[0].box), self._call.settings.windows.roi_size)
            )
        for window, of_window in zip(batch, prediction.of_windows()):
            for scanned in self._windows:  # the mask leaves out those before it
                self._assembly.add(scanned, of_window if scanned == window else None)
                if scanned == window:
                    break
        self._taken += len(batch)

    def _assemble(self, heads: Heads) -> Assembly:
        """What predictions of a network with these heads become."""
        part = Part(self._call.windows)
        observer = self._stack.enter_context(watched(self._run, part.numbers))
        layout = self._call.lay_out(heads, skipped=self._run.skipped)
        weights = self._predictor.first_weights
        assembly = assemble(self._run, layout, heads=heads, weights=weights, part=part, observer=observer)
        self._stack.callback(assembly.stitcher.close)
        return assembly

    def _batch(self, windows: Any) -> list[Window]:
        """The windows, which must be the next ones.

        Raises:
            ValueError: when they are not; TypeError: when they are no windows.
        """
        dims = len(self._call.settings.image_size)
        rows = torch.as_tensor(np.asarray(windows) if not isinstance(windows, torch.Tensor) else windows)
        rows = rows[None] if rows.dim() == 1 else rows
        if rows.dim() != 2 or rows.shape[1] != 1 + 2 * dims or rows.dtype.is_floating_point or not len(rows):
            raise ValueError(
                f"windows must be integers of shape (windows, {1 + 2 * dims}), as the sampler gives them, got "
                f"{rows.dtype} of shape {tuple(rows.shape)}"
            )
        batch = []
        for number, row in enumerate(map(tuple, rows.tolist()), start=self._taken):
            place = self._order.get(row)
            if place != number:
                box = ", ".join(f"{start}:{stop}" for start, stop in zip(row[1:], row[1 + dims :]))
                if place is None:
                    reason = "is none of the sampler's"
                else:
                    reason = "came already" if place < number else "came too early"
                following = windows_text([self._expected[number]]) if number < len(self._expected) else "none"
                raise ValueError(
                    f"window image {row[0]} [{box}] {reason}; windows must come in scan order, each of them once (no "
                    f"shuffle), and the next one is {following}"
                )
            batch.append(self._expected[number])
        return batch

    def _check_open(self) -> None:
        if self._over:
            raise RuntimeError(f"this ChunkAggregator is closed, {self._over}; make another one")

    def _abandon(self, error: BaseException, why: str) -> None:
        """Close, and leave no half of a result behind."""
        self._over = why
        if self._assembly is not None:
            self._assembly.finisher.abandon()
        self._stack.__exit__(type(error), error, error.__traceback__)


def _no_network(*args: object) -> NoReturn:
    raise AssertionError("predictions come from outside")


def _as_tensors(predictions: Any) -> Any:
    """NumPy arrays as tensors over their memory; all else as it is."""
    if isinstance(predictions, np.ndarray):
        return torch.from_numpy(predictions if predictions.flags.writeable else predictions.copy())
    if isinstance(predictions, torch.Tensor):
        return predictions.detach()
    if isinstance(predictions, Mapping):
        return {key: _as_tensors(head) for key, head in predictions.items()}
    if isinstance(predictions, (tuple, list)):
        return [_as_tensors(head) for head in predictions]
    return predictions
