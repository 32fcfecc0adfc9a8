"""
Chunks that several workers add to: what each keeps, hands on and gets.

A voxel's sum is added up in scan order, so who goes on with a chunk that an earlier part has opened needs the sums of
that part before it can add anything. It keeps its products, prediction times weight, until they are there, and adds
them in the order in which it made them: the additions are those of one process.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import torch

from monai_chunked.chunks.levels import Memory
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.chunks.stages import Finished
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId

__all__ = ["Exchange", "HandingOn", "Products"]


NOTHING: Mapping[ChunkId, int] = MappingProxyType({})


Products = dict[ChunkId, list[tuple[Box, torch.Tensor]]]
"""For each chunk that others have opened: where to add, and what, ``(C, *size)``, in the order of the additions."""


class Exchange(Protocol):
    """Brings sums from one part to another. Between two parts they arrive in the order in which they were sent."""

    def send(self, part: int, sums: torch.Tensor) -> None:
        """Send sums, ``(C, *chunk)``, which nobody changes afterwards. Returns at once."""
        ...

    def receive(self, part: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The next sums from a part, ``(C, *chunk)``, in memory that belongs to the caller."""
        ...


class HandingOn:
    """Which chunks others finish, and which are handed on from part to part.

    Args:
        written: the chunks that an earlier run has finished, or that others finish by themselves.
        inherited: the chunks that others have opened; from which part their sums come.
        handed_on: the chunks that others go on with; to which part their sums go.
        exchange: brings sums from one part to another; ``None``: whoever adds to a chunk adds all of it.
        device: where sums are added up.
        takes: whether what others have opened is taken over here; if not, what is kept for it waits.
        gives: whether what was opened here is handed on.
        products: what was kept already.

    Attributes:
        inherited: the chunks that others have opened; what is to be added to them is kept.
        products: that are kept.
        kept_bytes: bytes of all products that were kept.
        sent_bytes: bytes of all sums that were handed on.
    """

    def __init__(
        self,
        written: Container[ChunkId],
        *,
        inherited: Mapping[ChunkId, int] = NOTHING,
        handed_on: Mapping[ChunkId, int] = NOTHING,
        exchange: Exchange | None = None,
        device: torch.device | None = None,
        takes: bool = True,
        gives: bool = True,
        products: Products | None = None,
    ) -> None:
        self.written = written
        self.inherited = {chunk: part for chunk, part in inherited.items() if chunk not in written}
        self.handed_on = {chunk: part for chunk, part in handed_on.items() if chunk not in written}
        self.exchange = exchange
        self.device = device
        self.takes = takes
        self.gives = gives
        self.kept_bytes = self.sent_bytes = 0
        self.products: Products = {} if products is None else products

    def __contains__(self, chunk: object) -> bool:
        """Whether a chunk is not opened here."""
        return chunk in self.written or chunk in self.inherited

    def keep(self, chunk: ChunkId, in_chunk: Box, product: torch.Tensor) -> torch.Tensor:
        """Keep memory for a product that is to be added to a chunk.

        Args:
            chunk: which one.
            in_chunk: where.
            product: ``(C, *size)``, which is filled in by the caller.
        """
        self.products.setdefault(chunk, []).append((in_chunk, product))
        self.kept_bytes += product.nbytes
        return product

    def settle(self, grids: Sequence[ChunkGrid], open_chunks: OpenChunks) -> Iterator[Finished]:
        """All windows are in: hand on what others go on with, and finish what others have begun."""
        if self.gives:
            self._hand_on(open_chunks)
        if self.takes:
            yield from self._take_over(grids)

    def _hand_on(self, open_chunks: OpenChunks) -> None:
        """Send the sums of the chunks that were opened here and that others go on with."""
        for chunk, part in self.handed_on.items():
            if chunk not in self.inherited:
                closed = open_chunks.close_chunk(chunk)
                assert closed is not None  # or nobody would wait for it
                self._send(part, closed[0])

    def _take_over(self, grids: Sequence[ChunkGrid]) -> Iterator[Finished]:
        """Add what was kept to the sums of the chunks that others have opened: they are finished, or handed on."""
        for chunk, part in self.inherited.items():
            assert self.exchange is not None
            grid = grids[chunk.head]
            sums = self.exchange.receive(part, grid.chunk_size(chunk.position)).to(self.device)
            with torch.no_grad():
                for in_chunk, product in self.products.pop(chunk, ()):
                    sums[(slice(None), *in_chunk)].add_(product.to(self.device))
            if chunk in self.handed_on:
                self._send(self.handed_on[chunk], sums)
            else:
                yield Finished(chunk, grid.box(chunk.position), sums, Memory(sums))

    def _send(self, part: int, sums: torch.Tensor) -> None:
        assert self.exchange is not None
        self.sent_bytes += sums.nbytes
        self.exchange.send(part, sums.cpu())  # its memory is not used again: all windows are in
