"""The stages in which scores become what the user wants of them, each voxel by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from monai_chunked.chunks.stages import Finished
from monai_chunked.plan.boxes import box_text
from monai_chunked.transforms.argmax import argmax
from monai_chunked.transforms.chain import Function

__all__ = ["Argmax", "Cast", "Postprocess"]


class Cast:
    """The stage of a head without postprocessing: scores get the dtype of the result.

    Args:
        dtype: of the result.
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

    def _checked(self, result: Any, shape: tuple[int, ...], where: str) -> torch.Tensor:
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
