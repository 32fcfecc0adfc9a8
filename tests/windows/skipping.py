"""A network that counts the windows it sees, whose answer depends on neither batch nor layout; a helper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai_chunked.plan.heads import Heads


class Boom(Exception):
    pass


class Network:
    """
    Args:
        channels: of each head.
        fails_at: the call that fails.
    """

    def __init__(self, channels: Sequence[int], fails_at: int | None = None) -> None:
        self.channels = channels
        self.fails_at = fails_at
        self.calls = self.seen = 0

    def __call__(self, windows: torch.Tensor) -> Any:
        self.calls += 1
        if self.calls == self.fails_at:
            raise Boom
        self.seen += len(windows)
        heads = [
            torch.cat([windows * (k + c + 0.3) + 0.1 - c for c in range(channels)], 1)
            for k, channels in enumerate(self.channels)
        ]
        return heads[0] if len(heads) == 1 else tuple(heads)


def flat(result: Any) -> list[Any]:
    """The result of each head."""
    return list(result) if isinstance(result, tuple) else [result]


def heads_of(channels: Sequence[int], size: tuple[int, ...]) -> Heads:
    return Heads.of([(c, *size) for c in channels])
