"""What is known of a run, as its journal tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai_chunked.outputs.base import Form
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Head, Heads

__all__ = ["Cuts", "Left"]


Cuts = tuple[tuple[int, ...], ...]
"""For each spatial dimension, where chunks begin, and the size."""


class Left:
    """What an earlier run left, at first nothing.

    Attributes:
        heads: of the network, as soon as they are known.
        cuts: for each head and spatial dimension, where chunks begin, and the size.
        results: the forms of the results that have been started, by the number of their head.
        done: CRC-32 of the chunks that are safe.
        complete: when the earlier run finished; ``None``: it did not.
    """

    def __init__(self) -> None:
        self.heads = Heads()
        self.cuts: list[Cuts] = []
        self.results: dict[int, Form] = {}
        self.done: dict[ChunkId, int] = {}
        self.complete: str | None = None

    @property
    def resumed(self) -> bool:
        """Whether anything of an earlier run can be used."""
        return bool(self.results)

    def take(self, record: Mapping[str, Any]) -> None:
        """Add what a record of the journal says."""
        if "heads" in record:
            each = (Head(name, channels, tuple(size)) for name, channels, size in record["heads"])
            self.heads = Heads(tuple(each), None if record["keys"] is None else tuple(record["keys"]))
            self.cuts = [tuple(map(tuple, cuts)) for cuts in record["cuts"]]
        elif "result" in record:
            self.results[record["result"]] = Form(record["channels"], getattr(torch, record["dtype"]))
        elif "chunk" in record:
            image, head, position = record["chunk"]
            self.done[ChunkId(image, head, tuple(position))] = record["crc"]
        elif "complete" in record:
            self.complete = record["complete"]
