"""The loop: predict a batch of windows, add the predictions, finish chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, tee, zip_longest
from typing import Any

import torch
from tqdm import tqdm

from monai_chunked.chunks.stitcher import Stitcher
from monai_chunked.plan.sizes import format_bytes
from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.predictor import Predictor

__all__ = ["_run"]


def _run(batches: Iterable[Sequence[Window]], predict: Predictor, stitcher: Stitcher, bar: tqdm) -> list[Any]:
    """The results of all outputs of the network; all are complete, or none is there."""
    try:
        for batch, needed, following in _steps(batches, stitcher.needs):
            if needed:
                with torch.set_grad_enabled(torch.is_grad_enabled() and stitcher.in_memory):
                    prediction = predict(batch, following)
                    stitcher.add(batch, prediction)
                del prediction  # the network must not find it in memory when it predicts the next one
            else:
                stitcher.skip(batch)
                if not bar.disable:
                    bar.initial += len(batch)  # so that they do not count for the rate
            bar.update(len(batch))
            if not bar.disable:
                finished, total = stitcher.chunks
                bar.set_postfix(chunks=f"{finished}/{total}", open=format_bytes(stitcher.open_bytes), refresh=False)
        return stitcher.finish()
    except BaseException:
        stitcher.abandon()
        raise
    finally:
        predict.close()


def _steps(
    batches: Iterable[Sequence[Window]], needs: Callable[[Sequence[Window]], bool]
) -> Iterator[tuple[Sequence[Window], bool, Sequence[Window] | None]]:
    """Each batch, whether it must be predicted, and the batch after it if that one must be."""
    this, after = tee((batch, needs(batch)) for batch in batches)
    for (batch, needed), (following, next_needed) in zip_longest(this, islice(after, 1, None), fillvalue=([], False)):
        yield batch, needed, following if next_needed else None
