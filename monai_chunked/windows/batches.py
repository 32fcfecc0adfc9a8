"""Batches of windows, which are read while the network predicts those before. Not all windows need be predicted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from monai_chunked.machine.accelerator import Uploads, send
from monai_chunked.plan.window_grid import Skipped, Window, batches_without
from monai_chunked.windows.errors import name_windows
from monai_chunked.windows.reader import Image
from monai_chunked.windows.skipping import Skip, is_skipped

__all__ = ["Batch", "Batches", "ReadAhead", "SkippingBatches"]


@dataclass
class Batch:
    """Windows that are passed on together, and those of them that the network gets.

    Attributes:
        windows: in scan order.
        predicted: those that the network gets; none if nobody needs what it would say.
        data: what it gets of the image, and of the condition if there is one, ``(windows, C, *roi_size)``.
    """

    windows: list[Window] = field(default_factory=list)
    predicted: list[Window] = field(default_factory=list)
    data: list[torch.Tensor] = field(default_factory=list)


@dataclass(kw_only=True)
class Batches:
    """Reads all windows, batch after batch.

    If windows are needed, but all of them are skipped, the last one goes to the network nevertheless, in a batch with
    no windows to pass on: what the network says of it shows what heads it has.

    Attributes:
        runs: all windows in scan order, in the runs that no batch runs across.
        sw_batch_size: how many windows the network gets at a time.
        skipped: the windows that are known to be skipped.
        needs: whether any of these windows touches a chunk that no earlier run has finished.
        images: where windows are read from: the image, and the condition if there is one.
    """

    runs: Iterable[Iterable[Window]]
    sw_batch_size: int
    skipped: Skipped | None
    needs: Callable[[Sequence[Window]], bool]
    images: Sequence[Image]

    def __iter__(self) -> Generator[Batch, None, None]:
        unseen: list[Window] = []
        predicted = False
        for run in self.runs:
            for batch in self._of_run(run):
                predicted = predicted or bool(batch.predicted)
                if not predicted and self.needs(batch.windows):
                    unseen = batch.windows
                yield batch
        if unseen and not predicted:
            yield self._only([window for window in unseen if self.needs([window])][-1])

    def _of_run(self, run: Iterable[Window]) -> Iterator[Batch]:
        for windows, predicted in batches_without(run, self.skipped, self.sw_batch_size):
            needed = bool(predicted) and self.needs(predicted)
            yield Batch(windows, predicted, self._read(predicted)) if needed else Batch(windows)

    def _only(self, window: Window) -> Batch:
        """A window that is not passed on."""
        return Batch([], [window], self._read([window]))

    def _read(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        with name_windows(windows, "reading"):
            return [image.read(windows) for image in self.images]


@dataclass(kw_only=True)
class SkippingBatches(Batches):
    """Reads all windows and asks of each whether it is skipped: windows that are not fill the batches.

    What was read goes to the network, so that nothing is read twice. Windows of the image, the first of the images,
    come where they are looked at.

    Attributes:
        skip: is asked.
        device: where the network wants windows.
        coming: how many windows are still passed on. Those behind them do no more than fill the last batch.
    """

    skip: Skip
    device: torch.device
    coming: int
    _last: tuple[Window, torch.Tensor] | None = field(default=None, init=False)

    def _of_run(self, run: Iterable[Window]) -> Iterator[Batch]:
        windows: list[Window] = []
        predicted: list[Window] = []
        parts: list[torch.Tensor] = []
        for window in run:
            if self.coming:
                windows.append(window)
                self.coming -= 1
            elif not predicted:
                break
            data = self._look(window)
            if data is not None:
                predicted.append(window)
                parts.append(data)
            del data
            if len(predicted) == self.sw_batch_size:
                yield self._batch(windows, predicted, parts)
                windows, predicted, parts = [], [], []
        if windows:
            yield self._batch(windows, predicted, parts)

    def _look(self, window: Window) -> torch.Tensor | None:
        """What the network gets of a window, ``(1, C, *roi_size)``; ``None`` if it is skipped."""
        masked = self.skipped is not None and self.skipped.window(window.image, window.position)
        # which windows share a batch depends on all that were looked at before
        if masked or (self.sw_batch_size == 1 and not self.needs([window])):
            return None
        with name_windows([window], "reading"):
            data = self.images[0].read([window])
        self._last = window, data
        with name_windows([window], "asking whether to skip"):
            return None if is_skipped(self.skip, data[0]) else data

    def _batch(self, windows: list[Window], predicted: list[Window], parts: list[torch.Tensor]) -> Batch:
        if not (predicted and self.needs(predicted)):
            return Batch(windows)
        with name_windows(predicted, "reading"):
            return Batch(windows, predicted, self._with_condition(predicted, parts))

    def _only(self, window: Window) -> Batch:
        if self._last is None:
            return super()._only(window)
        window, data = self._last  # reading another one might be reading it twice
        return Batch([], [window], self._with_condition([window], [data]))

    def _with_condition(self, windows: Sequence[Window], parts: list[torch.Tensor]) -> list[torch.Tensor]:
        data = parts[0] if len(parts) == 1 else torch.cat(parts)
        parts.clear()  # the network must not find them in memory beside what it gets
        return [send(data, self.device), *(image.read(windows) for image in self.images[1:])]


class ReadAhead:
    """Takes batches of windows from where they are read, the next one in a thread.

    To an accelerator they are copied beside what the network does there.

    Args:
        batches: read when they are asked for; never from two threads at a time.
        device: where the network runs.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self.batches = batches
        autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in {"cpu", device.type}
        ]

        def begin() -> None:
            """Preprocessing must not notice that it runs in another thread."""
            torch.set_grad_enabled(False)
            for kind, enabled, dtype in autocast:  # leaving torch.autocast would empty the cache of the network, too
                torch.set_autocast_enabled(kind, enabled)
                torch.set_autocast_dtype(kind, dtype)

        self._thread = ThreadPoolExecutor(1, "monai_chunked-read", begin)
        self._uploads = Uploads(device)

    def __iter__(self) -> Iterator[Batch]:
        batch = next(self.batches, None)
        while batch is not None:
            following = self._thread.submit(self._uploads.run, self._read)
            yield batch
            del batch  # the network must not find it in memory when it predicts the next one
            batch = following.result()
            if batch is not None:
                self._uploads.take(batch.data)

    def _read(self) -> Batch | None:
        return next(self.batches, None)

    def close(self) -> None:
        """The run is over, well or not."""
        self._thread.shutdown(cancel_futures=True)
