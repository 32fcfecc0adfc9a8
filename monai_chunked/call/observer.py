"""Who watches a run: nobody, a progress bar, or whatever the caller passes as ``progress``."""

from __future__ import annotations

from typing import Protocol

from tqdm import tqdm

from monai_chunked.plan.sizes import format_bytes
from monai_chunked.plan.window_grid import Window

__all__ = ["Observer", "Progress", "ProgressBar", "observer_of"]


class Progress(Protocol):
    """How far a run is, on whatever process its chunks are.

    Attributes:
        finished: number of chunks that are finished, those of an earlier run included.
        total: number of chunks in all.
        open_bytes: bytes of open chunks, in all places; 0 where other processes have them.
    """

    finished: int
    total: int

    @property
    def open_bytes(self) -> int: ...


class Observer:
    """Watches a run, and does nothing here. Another one is passed as ``progress``."""

    def start(self, windows: int) -> None:
        """The run begins; so many windows are in all images."""

    def skips(self, windows: int) -> None:
        """So many of them are known to be skipped, because no voxel of the mask is in them."""

    def opened(self, open_bytes: tuple[int, ...]) -> None:
        """What the next window touches is in place: bytes of open chunks on the device, in CPU memory, on scratch.

        Called once for each head of the network, and not at all where other processes have the chunks.
        """

    def window(self, window: Window, predicted: bool, stitcher: Progress) -> None:
        """A window is done.

        Args:
            window: which one.
            predicted: whether the network saw it.
            stitcher: how many chunks are ``finished``, of how many in ``total``, and the ``open_bytes``.
        """

    def close(self) -> None:
        """The run is over, well or not."""


class ProgressBar(Observer):
    """A bar of tqdm, as in MONAI, with the chunks that are finished and what is open."""

    def start(self, windows: int) -> None:
        self._bar = tqdm(total=windows, unit="window")

    def skips(self, windows: int) -> None:
        self._bar.set_description(f"{windows:,} skipped", refresh=False)

    def window(self, window: Window, predicted: bool, stitcher: Progress) -> None:
        if not predicted:
            self._bar.initial += 1  # so that it does not count for the rate
        self._bar.update()
        chunks = f"{stitcher.finished}/{stitcher.total}"
        self._bar.set_postfix(chunks=chunks, open=format_bytes(stitcher.open_bytes), refresh=False)

    def close(self) -> None:
        self._bar.close()


def observer_of(progress: bool | Observer) -> Observer:
    """For the parameter ``progress``: a bool as in MONAI, or an observer."""
    if isinstance(progress, Observer):
        return progress
    return ProgressBar() if progress else Observer()
