"""What a finished chunk goes through on its way to the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from monai_chunked.chunks.levels import Memory
from monai_chunked.plan.boxes import Box, box_text
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.transforms.argmax import argmax
from monai_chunked.transforms.chain import Function

__all__ = ["Argmax", "Cast", "Finished", "Postprocess", "Stage"]


@dataclass(frozen=True)
class Finished:
    """A chunk that all its windows have been added to.

    Attributes:
        chunk: which one it is.
        box: its voxels.
        values: ``(C, *chunk)``.
        memory: where they are; whoever is the last to need them recycles it.
        borrowed: whether somebody else may use the memory of the values again as soon as the next chunk comes, so that
            who needs them longer must copy them.
    """

    chunk: ChunkId
    box: Box
    values: torch.Tensor
    memory: Memory
    borrowed: bool = False

    def become(self, values: torch.Tensor) -> Finished:
        """Other values in memory of their own take the place of these, whose memory can be used again."""
        self.memory.recycle()
        return replace(self, values=values, memory=Memory(values), borrowed=False)


class Stage(Protocol):
    """One step on the way. It may hold chunks back, and make others of them."""

    def put(self, finished: Finished) -> Iterable[Finished]:
        """What can go on now that this chunk is here."""
        ...

    def finish(self) -> Iterable[Finished]:
        """What was held back, when all chunks are in."""
        ...


class Cast:
    """The stage in which values get another dtype.

    Args:
        dtype: the one that they get.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def put(self, finished: Finished) -> Iterator[Finished]:
        same = finished.values.dtype == self.dtype
        yield finished if same else finished.become(finished.values.to(self.dtype))

    def finish(self) -> Iterable[Finished]:
        return ()


class Argmax:
    """The stage in which the class with the highest score is chosen."""

    def put(self, finished: Finished) -> Iterator[Finished]:
        yield finished.become(argmax(finished.values))

    def finish(self) -> Iterable[Finished]:
        return ()


class Postprocess:
    """The stage in which a function of the user's is applied to each chunk.

    Args:
        function: what it does.
        name: of the head in messages.
    """

    def __init__(self, function: Function, name: str) -> None:
        self.function = function
        self.name = name

    def put(self, finished: Finished) -> Iterator[Finished]:
        shape = tuple(finished.values.shape)
        values = finished.values.contiguous()  # of skipped windows channels may share their memory, which is ours alone
        result = self._checked(self.function(values), shape, f"the {self.name} at {box_text(finished.box)}")
        # it may be a part of what came in, or memory that the function uses every time
        yield replace(finished, values=result, borrowed=True)

    def finish(self) -> Iterable[Finished]:
        return ()

    def _checked(self, result: object, shape: tuple[int, ...], where: str) -> torch.Tensor:
        if not isinstance(result, (torch.Tensor, np.ndarray)):
            raise TypeError(f"postprocessing must return a tensor, got {type(result).__name__} for {where}")
        result = torch.as_tensor(result)
        if isinstance(result, MetaTensor):
            result = result.as_tensor()
        if result.dim() != len(shape) or tuple(result.shape[1:]) != shape[1:]:
            raise ValueError(
                f"postprocessing must keep the spatial size of a chunk: it got {shape} and returned "
                f"{tuple(result.shape)} for {where}"
            )
        return result
