"""The loop: windows and predictions go in, finished chunks come out and are written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from monai_chunked.plan.window_grid import Window
from monai_chunked.run.assembly import Stitching
from monai_chunked.windows.predictions import OfWindow

__all__ = ["run"]


def run(predictions: Iterable[tuple[Window, OfWindow | None]], stitching: Stitching) -> list[Any]:
    """The results of all heads of the network; all are complete, or none is there.

    Args:
        predictions: every window in scan order, with what the network says of it; ``None``: it was not predicted.
        stitching: takes them, and gives results.
    """
    try:
        for window, prediction in predictions:
            stitching.add(window, prediction)
            del prediction  # the network must not find it in memory when it predicts the next one
        return stitching.finish()
    except BaseException as error:
        stitching.abandon()
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
            raise error.__cause__ from None  # of the network, which a generator does not let pass
        raise
