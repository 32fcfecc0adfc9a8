"""What the network says of each window, in scan order: the one stream that a run works through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, tee, zip_longest

import torch

from monai_chunked.plan.boxes import sizes
from monai_chunked.plan.heads import Head, head_names
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.predictor import Prediction, Predictor, at_size

__all__ = ["OfWindow", "Predictions", "steps"]

OfWindow = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""For each head what the network says, ``(C, *size)``, and the weights to blend it with, ``(1, *size)``."""

Batch = Sequence[Window]


class Predictions:
    """Each window in scan order, with what the network says of it, or ``None`` where nobody needs it.

    The first batch is predicted at once: it shows what heads the network has.

    Args:
        batches: all windows, as the network gets them.
        needs: whether any window of a batch must be predicted.
        predictor: runs the network.

    Attributes:
        first: the first prediction, until it is passed on; ``None`` if no window needs one.
    """

    def __init__(self, batches: Iterable[Batch], needs: Callable[[Batch], bool], predictor: Predictor) -> None:
        self._steps = steps(batches, needs)
        self._predictor = predictor
        self._passed: list[Batch] = []
        self._first_batch: Batch = ()
        self.first: Prediction | None = None
        for batch, needed, following in self._steps:
            if needed:
                self._first_batch, self.first = batch, predictor(batch, following)
                break
            self._passed.append(batch)

    def heads(self, roi_size: tuple[int, ...]) -> list[Head]:
        """What the first prediction shows of windows that are not cut."""
        if self.first is None:
            return []
        names, window = head_names(self.first.keys, len(self.first.tensors)), sizes(self._first_batch[0].box)
        return [
            Head(name, t.shape[1], at_size(t.shape[2:], window, roi_size)) for name, t in zip(names, self.first.tensors)
        ]

    def __iter__(self) -> Iterator[tuple[Window, OfWindow | None]]:
        for batch in self._passed:
            yield from ((window, None) for window in batch)
        yield from self._of(self._first_batch, self._take_first())
        for batch, needed, following in self._steps:
            yield from self._of(batch, self._predictor(batch, following) if needed else None)

    def close(self) -> None:
        """The run is over, well or not."""
        self._predictor.close()

    def _take_first(self) -> Prediction | None:
        first, self.first = self.first, None
        return first

    @staticmethod
    def _of(batch: Batch, prediction: Prediction | None) -> Iterator[tuple[Window, OfWindow | None]]:
        """Whoever takes the last one has all that is left: the network must not find it in memory next time."""
        each: list[OfWindow | None] = [None] * len(batch) if prediction is None else list(prediction.of_windows())
        del prediction
        each.reverse()
        for window in batch:
            yield window, each.pop()


def steps(batches: Iterable[Batch], needs: Callable[[Batch], bool]) -> Iterator[tuple[Batch, bool, Batch | None]]:
    """Each batch, whether it must be predicted, and the batch after it if that one must be."""
    this, after = tee((batch, needs(batch)) for batch in batches)
    for (batch, needed), (following, next_needed) in zip_longest(this, islice(after, 1, None), fillvalue=([], False)):
        yield batch, needed, following if next_needed else None
