"""What the network says of each window, in scan order: the one stream that a run works through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from monai_chunked.plan.boxes import sizes
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.batches import Batch
from monai_chunked.windows.predictor import Prediction, Predictor

__all__ = ["OfWindow", "Predictions"]

OfWindow = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""For each head what the network says, ``(C, *size)``, and the weights to blend it with, ``(1, *size)``."""


class Predictions:
    """Each window in scan order, with what the network says of it, or ``None`` where it is not asked.

    The first batch is predicted at once: it shows what heads the network has.

    Args:
        batches: all windows, as the network gets them.
        predictor: runs the network.

    Attributes:
        first: the first prediction, until it is passed on; ``None`` if no window needs one.
    """

    def __init__(self, batches: Iterable[Batch], predictor: Predictor) -> None:
        self._batches = iter(batches)
        self._predictor = predictor
        self._passed: list[Batch] = []
        self.first: Prediction | None = None
        for batch in self._batches:
            self._passed.append(batch)
            self.first = self._predict(batch)
            if self.first is not None:
                break

    def heads(self, roi_size: tuple[int, ...]) -> Heads | None:
        """The heads of windows that are not cut, shown by the first prediction; ``None`` if no window needs one."""
        if self.first is None:
            return None
        return self.first.heads.scaled(sizes(self._passed[-1].predicted[0].box), roi_size)

    def __iter__(self) -> Iterator[tuple[Window, OfWindow | None]]:
        for batch in self._passed:
            yield from self._of(batch, self._take_first() if batch.predicted else None)
        for batch in self._batches:
            yield from self._of(batch, self._predict(batch))

    def _predict(self, batch: Batch) -> Prediction | None:
        if not batch.predicted:
            return None
        prediction = self._predictor(batch)
        batch.data.clear()
        return prediction

    def _take_first(self) -> Prediction | None:
        first, self.first = self.first, None
        return first

    @staticmethod
    def _of(batch: Batch, prediction: Prediction | None) -> Iterator[tuple[Window, OfWindow | None]]:
        """The windows of a batch. Predictions are let go of as they pass: the network must not find them in memory."""
        predictions: list[OfWindow] = [] if prediction is None else [*prediction.of_windows()]
        del prediction
        predictions.reverse()
        predicted = batch.predicted[::-1] if predictions else []
        for window in batch.windows:
            if predicted and window is predicted[-1]:
                predicted.pop()
                yield window, predictions.pop()
            else:
                yield window, None
