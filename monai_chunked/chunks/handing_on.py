"""
Chunks that several workers add to: what each keeps, hands on and gets.

A voxel's sum is added up in scan order, so who goes on with a chunk that an earlier part has opened needs the sums of
that part before it can add anything. It keeps its products, prediction times weight, until they are there, and adds
them in the order in which it made them: the additions are those of one process.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Protocol

import torch

from monai_chunked.chunks.levels import Memory
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.chunks.stages import Finished
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.parts.parts import Parts

__all__ = ["Alone", "Exchange", "Heir", "Neighbours", "Opener", "Products"]


Products = dict[ChunkId, list[tuple[Box, torch.Tensor]]]
"""For each chunk that others have opened what is to be added to it, ``(C, *size)``, and where, in that order."""


class Exchange(Protocol):
    """Brings sums from one part to another. Between two parts they arrive in the order in which they were sent."""

    def send(self, part: int, sums: torch.Tensor) -> None:
        """Send sums, ``(C, *chunk)``, which nobody changes afterwards. Returns at once."""
        ...

    def receive(self, part: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The next sums from a part, ``(C, *chunk)``, in memory that belongs to the caller."""
        ...


class Alone:
    """Whoever adds to a chunk adds all of it.

    Args:
        done: the chunks that an earlier run has finished, or that others finish by themselves.

    Attributes:
        done: as above; nothing is added to them.
        inherited: the chunks that others have opened; what is to be added to them is kept.
        elsewhere: the chunks that do not open here: both.
    """

    def __init__(self, done: Container[ChunkId]) -> None:
        self.done = done
        self.inherited: Container[ChunkId] = ()
        self.elsewhere = done

    def keep(self, chunk: ChunkId, in_chunk: Box, product: torch.Tensor) -> torch.Tensor:
        """Keep memory for a product that is to be added to a chunk.

        Args:
            chunk: which one.
            in_chunk: where.
            product: ``(C, *size)``, which is filled in by the caller.
        """
        raise AssertionError(f"{chunk} was opened here")

    def settle(self, grids: Sequence[ChunkGrid], open_chunks: OpenChunks) -> Iterator[Finished]:
        """All windows are in: hand on what others go on with, and finish what others have begun."""
        return iter(())


class Neighbours(Alone):
    """Chunks are handed on from part to part.

    Args:
        parts: who adds to which chunk.
        part: which one this is.
        done: the chunks that an earlier run has finished.
        exchange: brings sums from one part to another.
        device: where sums are added up.

    Attributes:
        products: that are kept.
        kept_bytes: of all that was kept.
        sent_bytes: of sums that were handed on.
    """

    def __init__(
        self, parts: Parts, part: int, done: Container[ChunkId], exchange: Exchange, device: torch.device
    ) -> None:
        super().__init__(done)
        self._from = {chunk: other for chunk, other in parts.inherited(part).items() if chunk not in done}
        self._to = {chunk: other for chunk, other in parts.handed_on(part).items() if chunk not in done}
        self.inherited = self._from
        self.elsewhere = _Either(done, self._from)
        self.exchange = exchange
        self.device = device
        self.kept_bytes = self.sent_bytes = 0
        self.products: Products = {}

    def keep(self, chunk: ChunkId, in_chunk: Box, product: torch.Tensor) -> torch.Tensor:
        self.products.setdefault(chunk, []).append((in_chunk, product))
        self.kept_bytes += product.nbytes
        return product

    def settle(self, grids: Sequence[ChunkGrid], open_chunks: OpenChunks) -> Iterator[Finished]:
        self.hand_on(open_chunks)
        yield from self.take_over(grids)

    def hand_on(self, open_chunks: OpenChunks) -> None:
        """Send the sums of the chunks that were opened here and that others go on with."""
        for chunk, part in self._to.items():
            if chunk not in self._from:
                closed = open_chunks.close_chunk(chunk)
                assert closed is not None  # or nobody would wait for it
                self._send(part, closed[0])

    def take_over(self, grids: Sequence[ChunkGrid]) -> Iterator[Finished]:
        """Add what was kept to the sums of the chunks that others have opened: they are finished, or handed on."""
        for chunk, part in self._from.items():
            grid = grids[chunk.head]
            sums = self.exchange.receive(part, grid.chunk_size(chunk.position)).to(self.device)
            with torch.no_grad():
                for in_chunk, product in self.products.pop(chunk, ()):
                    sums[(slice(None), *in_chunk)].add_(product.to(self.device))
            if chunk in self._to:
                self._send(self._to[chunk], sums)
            else:
                yield Finished(chunk, grid.box(chunk.position), sums, Memory(sums))

    def _send(self, part: int, sums: torch.Tensor) -> None:
        self.sent_bytes += sums.nbytes
        self.exchange.send(part, sums.cpu())  # its memory is not used again: all windows are in


class Opener(Neighbours):
    """The first half of a part: all that can be done before the sums of others are there."""

    def settle(self, grids: Sequence[ChunkGrid], open_chunks: OpenChunks) -> Iterator[Finished]:
        self.hand_on(open_chunks)
        return iter(())


class Heir(Neighbours):
    """The second half of a part, with what its first half has kept, which may have been in another process."""

    def settle(self, grids: Sequence[ChunkGrid], open_chunks: OpenChunks) -> Iterator[Finished]:
        return self.take_over(grids)


class _Either:
    """What is in one or in another."""

    def __init__(self, *each: Container[ChunkId]) -> None:
        self._each = each

    def __contains__(self, chunk: object) -> bool:
        return any(chunk in one for one in self._each)
