"""The interface that every output keeps. What not every output needs has an empty default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_chunked.plan.boxes import Box

__all__ = ["Metadata", "Output", "OutputWriter", "Result"]


Metadata = Mapping[str, Any]
"""Of one image, as in ``MetaTensor.meta``: ``affine``, ``filename_or_obj``, ``space``, ... ; empty if there is none."""


@dataclass(frozen=True)
class Result:
    """What one output of the network becomes, known before its first chunk is written.

    Attributes:
        name: of the output of the network: ``"prediction"``, or with the key or position if there are several.
        shape: ``(B, C, *spatial)``.
        dtype: of every chunk.
        cuts: for each spatial dimension, where chunks begin, and the size; ascending from 0.
        metadata: of each image; ``affine`` is that of the result, also where the network changes the resolution.
        overwrite: whether results that exist already may be replaced.
        resumable: whether a run that fails may be resumed, so that :py:meth:`OutputWriter.abandon` keeps what it wrote.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    cuts: tuple[tuple[int, ...], ...]
    metadata: tuple[Metadata, ...]
    overwrite: bool = False
    resumable: bool = False


class OutputWriter(ABC):
    """One result of one run. Chunks arrive in any order, from one thread; each voxel is written once."""

    in_memory = False
    """Whether the result can be part of an autograd graph."""

    memory: torch.Tensor | None = None
    """The result, ``(B, C, *spatial)``, if it is in memory: zeros, in which predictions may be added up in place."""

    complete = False
    """Whether a writer that was resumed found its result finished already."""

    @abstractmethod
    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        """Take over one finished chunk.

        Args:
            image: index in the input batch.
            box: the voxels of the chunk.
            chunk: ``(C, *chunk)`` in the dtype of the result, on any device. Its memory is used again afterwards.
        """

    def idle(self) -> bool:
        """No chunk waits to be written at the moment: time for what can wait. Called from the thread that writes.

        Returns:
            Whether nothing is left to do; otherwise it is called again.
        """
        return True

    @abstractmethod
    def finish(self) -> Any:
        """All chunks are written: the result, usually a tensor ``(B, C, *spatial)``."""

    def abandon(self) -> None:  # noqa: B027  nothing to do is a fine default
        """The run failed: leave nothing behind that looks like a result. Safe to call at any time.

        What is written is kept if the result is resumable, else removed.
        """

    def flush(self, last: bool = False) -> Iterable[tuple[int, Box]] | None:
        """Return when what has been written would survive a crash. Asked for only where runs can be resumed.

        Args:
            last: no more chunks will come, so that none is held back any more.

        Returns:
            ``None``: every chunk that was written would survive. An output that holds some back, until it has what it
            writes at once, names those that would, as ``(image, box)``, each of them once.
        """
        return None

    def read(self, image: int, box: Box) -> torch.Tensor:
        """A chunk that was written before a crash, ``(C, *chunk)``. Asked for only where runs can be resumed."""
        raise NotImplementedError


class Output(ABC):
    """Where finished chunks go. Only :py:meth:`create` must be there.

    An output whose runs can be resumed returns a path from :py:meth:`journal`, and has :py:meth:`resume` and
    :py:meth:`load` too.
    """

    in_memory = False
    """Whether results may stay in memory and be differentiated."""

    def check(  # noqa: B027  nothing to do is a fine default
        self,
        least_bytes: int,
        dtype: torch.dtype | None = None,
        metadata: Sequence[Metadata] = (),
        overwrite: bool = True,
    ) -> None:
        """Raise if it is known already that the results of a run are not possible.

        Args:
            least_bytes: a lower limit of their size. It is asked before the network runs, when the number of channels
                is not known, and again after the first batch.
            dtype: of the results, where that is known.
            metadata: of each image.
            overwrite: whether results that exist already may be replaced.
        """

    def reserve(self, device: torch.device, size: int) -> None:  # noqa: B027  nothing to do is a fine default
        """Told before anything is created how many bytes of a device open chunks will take."""

    @abstractmethod
    def create(self, result: Result) -> OutputWriter:
        """Start one result of a run afresh."""

    def journal(self, metadata: Sequence[Metadata]) -> Path | None:
        """The file for the journal of a run over these images, beside its results; ``None``: it cannot be resumed."""
        return None

    def folders(self, metadata: Sequence[Metadata]) -> list[Path]:
        """That a run over these images may make; those that it leaves empty when it fails are removed."""
        return []

    def resume(self, result: Result) -> OutputWriter:
        """Go on with a result that an earlier run left unfinished.

        Raises:
            OSError: when what it left is missing, or has another size.
        """
        raise NotImplementedError

    def load(self, result: Result) -> Any:
        """A result that an earlier run finished, as its :py:meth:`OutputWriter.finish` returned it.

        Raises:
            OSError: when it is missing, or has another size.
        """
        raise NotImplementedError
