"""Reading the next windows while the network predicts those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from monai_chunked.machine.accelerator import Uploads
from monai_chunked.plan.window_grid import Window

__all__ = ["ReadAhead"]


Batch = Sequence[Window]


Data = list[torch.Tensor]


class ReadAhead:
    """Reads batches of windows, in order, the next one in a thread.

    To an accelerator they are copied beside what the network does there.

    Args:
        read: a batch of windows to tensors on ``device``; never called from two threads at a time.
        device: where the network runs.
    """

    def __init__(self, read: Callable[[Batch], Data], device: torch.device) -> None:
        self.read = read
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
        self._next: Future[Data] | None = None
        self._uploads = Uploads(device)

    def get(self, batch: Batch, following: Batch | None) -> Data:
        """Read a batch, or take what was read ahead, and begin to read the one that is asked for next.

        Args:
            batch: what was ``following`` before, if anything was.
            following: the next batch; ``None`` if it is not known.
        """
        if self._next is None:
            data = self.read(batch)
        else:
            data = self._next.result()
            self._uploads.take(data)
        self._next = None if following is None else self._thread.submit(self._ahead, following)
        return data

    def close(self) -> None:
        """The run is over, well or not."""
        self._thread.shutdown(cancel_futures=True)

    def _ahead(self, batch: Batch) -> Data:
        return self._uploads.run(lambda: self.read(batch))
