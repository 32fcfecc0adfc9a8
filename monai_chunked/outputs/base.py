"""The interface that every output keeps. What not every output needs has an empty default."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from monai_chunked.plan import Box

__all__ = ["Output", "OutputWriter"]


class OutputWriter(ABC):
    """One output of one run. Chunks arrive in any order; each voxel is written once."""

    in_memory: bool
    """Whether the result can be part of an autograd graph."""

    @abstractmethod
    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        """Take over one finished chunk.

        Args:
            image: index in the input batch.
            box: the voxels of the chunk.
            chunk: ``(C, *chunk)`` in the dtype of the output, on any device. Its memory is used again afterwards.
        """

    @abstractmethod
    def finish(self) -> torch.Tensor:
        """All chunks are written: the result, ``(B, C, *spatial)``."""

    def abandon(self) -> None:  # noqa: B027
        """The run failed: leave nothing behind that looks like a result. Safe to call at any time."""


class Output(ABC):
    """Where finished chunks go."""

    def check(self, least_bytes: int, dtype: torch.dtype | None = None) -> None:  # noqa: B027
        """Raise if it is known already that the outputs of a run are not possible.

        Args:
            least_bytes: a lower limit of their size. It is asked before the network runs, when the number of channels
                is not known, and again after the first batch.
            dtype: of the result, where that is known.
        """

    def reserve(self, device: torch.device, size: int) -> None:  # noqa: B027
        """Told before anything is created how many bytes of a device open chunks will take."""

    @abstractmethod
    def create(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> OutputWriter:
        """Start one output of a run.

        Args:
            name: of the output of the network: ``"prediction"``, or with the key or position if there are several.
            shape: ``(B, C, *spatial)``.
            dtype: of the result.
        """
