"""The loop: windows and predictions go in, finished chunks come out and are written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from monai_chunked.chunks.finishing import Finisher
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.inference.progress import Observer
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.predictions import OfWindow

__all__ = ["run"]


def run(
    predictions: Iterable[tuple[Window, OfWindow | None]], stitcher: Stitcher, finisher: Finisher, observer: Observer
) -> list[Any]:
    """The results of all heads of the network; all are complete, or none is there.

    Args:
        predictions: every window in scan order, with what the network says of it; ``None``: it was not predicted.
        stitcher: takes them, and gives finished chunks.
        finisher: takes these, and gives results.
        observer: is told what has happened.
    """
    try:
        for window, prediction in predictions:
            for finished in stitcher.add(window, prediction):
                finisher.put(finished)
            finisher.poll()
            observer.window(window, prediction is not None, stitcher)
            del prediction  # the network must not find it in memory when it predicts the next one
        return finisher.finish()
    except BaseException as error:
        finisher.abandon()
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
            raise error.__cause__ from None  # of the network, which a generator does not let pass
        raise
