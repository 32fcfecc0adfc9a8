"""How the heads of a network are cut into chunks in a run: within the limits, and within what is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai_chunked.machine.memory import available_memory
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout, lay_out
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.run.settings import Settings

__all__ = ["lay_out_call"]


MARGIN = 0.9
"""Of the memory that is free, the part that open chunks may take if nobody sets a limit."""


def lay_out_call(
    settings: Settings,
    heads: Heads,
    device: torch.device,
    sum_dtype: torch.dtype,
    cuts: Sequence[Any] | None = None,
    skipped: Skipped | None = None,
) -> Layout:
    """Within the limits that the user set, and within what is free where there is none.

    Args:
        settings: what is asked for.
        heads: of the network.
        device: where predictions are.
        sum_dtype: of the sums.
        cuts: of each head, where an earlier run has made them.
        skipped: the windows that are known to be skipped.

    Raises:
        ValueError: when the limits cannot hold the chunks of one window.
    """
    sizes = (settings.windows, settings.image_size, heads, sum_dtype.itemsize, settings.chunk_size)
    limits = list(settings.limits(device))
    labels_on_cpu = settings.labels_on_cpu(device)
    layout = lay_out(*sizes, limits[0], limits[1], cuts, labels_on_cpu, skipped)
    for level, memory in enumerate((device, torch.device("cpu"))):
        if torch.is_grad_enabled():
            break  # a chunk that moves is cut off from what autograd knows
        free = available_memory(memory)
        if limits[level] is None and free is not None and layout.forecast.peak[level] > MARGIN * free:
            limits[level] = int(MARGIN * free)
            layout = lay_out(*sizes, limits[0], limits[1], cuts, labels_on_cpu, skipped)
    return layout
