"""What an earlier run left, as its journal tells it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_chunked.outputs.base import Form
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Head, Heads

__all__ = ["NOTHING_LEFT", "Cuts", "Left"]


Cuts = tuple[tuple[int, ...], ...]
"""For each spatial dimension, where chunks begin, and the size."""


@dataclass(frozen=True)
class Left:
    """What an earlier run left, or what workers are told of the run that they take part in. By default nothing.

    Attributes:
        heads: of the network; ``None``: nothing was left.
        cuts: of each head.
        results: of the heads whose results have been started, by their number.
        written: the chunks that are there, with their CRC-32; what workers are told may have any number instead.
        complete: when the earlier run finished; ``None``: it did not.
    """

    heads: Heads | None = None
    cuts: tuple[Cuts, ...] = ()
    results: Mapping[int, Form] = field(default_factory=dict)
    written: Mapping[ChunkId, int] = field(default_factory=dict)
    complete: str | None = None

    @classmethod
    def of_records(cls, records: Iterable[Mapping[str, Any]]) -> Left:
        """What the records behind the header of a journal say. If no result was started, nothing was left."""
        heads: Heads | None = None
        cuts: tuple[Cuts, ...] = ()
        results: dict[int, Form] = {}
        written: dict[ChunkId, int] = {}
        complete = None
        for record in records:
            if "heads" in record:
                heads, cuts = _heads(record["keys"], record["heads"]), tuple(_cuts(head) for head in record["cuts"])
            elif "result" in record:
                results[record["result"]] = Form(record["channels"], getattr(torch, record["dtype"]))
            elif "chunk" in record:
                image, head, position = record["chunk"]
                written[ChunkId(image, head, tuple(position))] = record["crc"]
            elif "complete" in record:
                complete = record["complete"]
        return cls(heads, cuts, results, written, complete) if results else cls()


NOTHING_LEFT = Left()


def _heads(keys: list[Hashable] | None, heads: list[list[Any]]) -> Heads:
    left = tuple(Head(name, channels, tuple(size)) for name, channels, size in heads)
    return Heads(left, None if keys is None else tuple(keys))


def _cuts(cuts: list[list[int]]) -> Cuts:
    return tuple(tuple(side) for side in cuts)
