"""What can be known to be wrong before a window is predicted, where several processes share a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from monai_chunked.call.call import Call
from monai_chunked.outputs.auto import AutoOutput
from monai_chunked.outputs.base import ResumableOutput
from monai_chunked.outputs.memory_output import MemoryOutput
from monai_chunked.recovery.differences import differences, remedy

__all__ = ["check_shared", "differing"]


def check_shared(call: Call) -> None:
    """Refuse what cannot be shared.

    Args:
        call: what is asked for.

    Raises:
        ValueError: when it needs what several processes cannot do.
        TypeError: when the output is none that all processes can have.
    """
    if call.settings.process_fn is not None:
        raise ValueError(
            "process_group does not go with process_fn, which may make other weights of each batch, and MONAI divides "
            "by those of the first one; leave one of them out"
        )
    output = call.output
    if torch.is_grad_enabled() and call.differentiable:
        raise ValueError(
            "process_group gives scores without gradients; call the inferer within torch.no_grad() or "
            "torch.inference_mode(), or leave process_group out"
        )
    if not isinstance(output, (MemoryOutput, AutoOutput, ResumableOutput)):
        raise TypeError(
            f"output={type(output).__name__} cannot be opened by other processes than the one that writes it, as "
            f"process_group needs; accepted are 'auto', 'device', 'cpu', 'disk', and each ResumableOutput"
        )


def differing(own: Mapping[str, str], others: Mapping[int, Mapping[str, str]]) -> str:
    """What differs between what the processes were called with; empty: nothing does.

    Args:
        own: a text for each part that the result depends on, of the first process.
        others: the same texts of the other processes, by their ranks.

    >>> differing({"overlap": "0.25"}, {1: {"overlap": "0.25"}, 2: {"overlap": "0.5"}}).split("but ")[1]
    'rank 2 differs from rank 0 in overlap (0.25 on rank 0, 0.5 on rank 2)'
    """
    reports = []
    for rank, texts in others.items():
        parts = differences(own, texts, "on rank 0", f"on rank {rank}")
        if parts:
            reports.append(f"rank {rank} differs from rank 0 in {', '.join(parts)}{remedy(own, texts)}")
    return f"process_group: every process must be called with the same, but {'; '.join(reports)}" if reports else ""
