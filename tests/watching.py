"""An observer that keeps what tests ask about a run."""

from __future__ import annotations

from monai_chunked import Observer
from monai_chunked.chunks.levels import Levels
from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.plan.window_grid import Window


class Watching(Observer):
    """
    Attributes:
        held: bytes on each level, for each window and head.
        levels: of the last run.
        runs: the levels of all runs.
        predicted: the windows that the network saw.
    """

    def __init__(self) -> None:
        self.held: list[tuple[int, ...]] = []
        self.runs: list[Levels] = []
        self.predicted: list[Window] = []

    @property
    def levels(self) -> Levels:
        return self.runs[-1]

    def opened(self, open_bytes: tuple[int, ...]) -> None:
        self.held.append(open_bytes)

    def window(self, window: Window, predicted: bool, stitcher: Stitcher) -> None:
        if stitcher.open_chunks.levels not in self.runs:
            self.runs.append(stitcher.open_chunks.levels)
        if predicted:
            self.predicted.append(window)
