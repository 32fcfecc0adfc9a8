"""Reading the next windows while the network predicts those before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from monai_chunked.machine.accelerator import Uploads
from monai_chunked.windows.batches import Batch

__all__ = ["ReadAhead"]


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
