"""
The interface of an output, which is where finished chunks go.

An :py:class:`Output` is asked first (``check``, ``folders``, ``reserve``). Then it makes an :py:class:`OutputWriter`
for each result of a run, which takes its chunks and finishes or abandons it. What not every output needs has an empty
default. Runs with a :py:class:`ResumableOutput` go on where they stopped.
:py:class:`monai_chunked.testing.OutputTests` tests any output for what is said here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from monai.data.meta_tensor import MetaTensor

from monai_chunked.plan.boxes import Box

__all__ = [
    "Expected",
    "Form",
    "Metadata",
    "Output",
    "OutputWriter",
    "Result",
    "ResumableOutput",
    "ResumableWriter",
    "TakesMetadata",
    "UsedFile",
]


Metadata = Mapping[str, Any]
"""Of one image, as in ``MetaTensor.meta``: ``affine``, ``filename_or_obj``, ``space``, ... ; empty if there is none."""


class Form(NamedTuple):
    """What is the same for a result and each chunk of it.

    Attributes:
        channels: how many there are.
        dtype: of every voxel.
    """

    channels: int
    dtype: torch.dtype

    @classmethod
    def of(cls, chunk: torch.Tensor) -> Form:
        """The form of a chunk, ``(C, *size)``."""
        return cls(chunk.shape[0], chunk.dtype)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel with all of its channels."""
        return self.channels * self.dtype.itemsize

    def __str__(self) -> str:
        return f"({self.channels}, {self.dtype})"


@dataclass(frozen=True)
class UsedFile:
    """What a run reads, and must not lose.

    Attributes:
        path: of a file or folder; or a URL.
        name: of the parameter that is read from it.
    """

    path: str
    name: str


@dataclass(frozen=True)
class Expected:
    """What is known of the results of a run so far.

    Attributes:
        least_bytes: a lower limit of their size.
        dtype: of the results; ``None``: it is not known.
        metadata: of each image.
        overwrite: whether results that exist already may be replaced.
        used: what the run reads, which no result may replace, contain, or lie in.
        names: of the heads, as in :py:class:`Result`.
    """

    least_bytes: int
    dtype: torch.dtype | None = None
    metadata: tuple[Metadata, ...] = ()
    overwrite: bool = True
    used: tuple[UsedFile, ...] = ()
    names: tuple[str, ...] = ("prediction",)


@dataclass(frozen=True)
class Result:
    """What one head of the network becomes, known before its first chunk is written.

    Attributes:
        name: of the head: ``"prediction"``, or with the key or position if there are several.
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


@runtime_checkable
class TakesMetadata(Protocol):
    """A result that is no tensor, such as one in several files, and takes over the metadata of the input itself."""

    def with_metadata(self, templates: Sequence[MetaTensor]) -> Any:
        """The result with the metadata of these, one for each image."""


class OutputWriter(ABC):
    """One result of one run. Chunks arrive in any order, from one thread; each voxel is written once."""

    in_memory = False
    """Whether the result can be part of an autograd graph."""

    memory: torch.Tensor | None = None
    """The result, ``(B, C, *spatial)``, if it is in memory: zeros, in which predictions may be added up in place."""

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
        """The run failed: leave nothing behind that looks like a result. Safe to call at any time, and again.

        What is written is kept if the result is resumable, else removed.
        """


class ResumableWriter(OutputWriter):
    """A writer whose run can be resumed: it makes safe what it has written, and reads it again."""

    complete = False
    """Whether a writer that was resumed found its result finished already."""

    @abstractmethod
    def flush(self, last: bool = False) -> Iterable[tuple[int, Box]] | None:
        """Return when what has been written would survive a crash.

        Args:
            last: no more chunks will come, so that none is held back any more.

        Returns:
            ``None``: every chunk that was written would survive. An output that holds some back, until it has what it
            writes at once, names those that would, as ``(image, box)``, each once.
        """

    @abstractmethod
    def read(self, image: int, box: Box) -> torch.Tensor:
        """A chunk that was written before a crash, ``(C, *chunk)``."""


class Output(ABC):
    """Where finished chunks go. Only :py:meth:`create` must be there."""

    in_memory = False
    """Whether results may stay in memory and be differentiated."""

    def check(self, expected: Expected) -> None:  # noqa: B027  nothing to do is a fine default
        """Raise if it is known already that the results of a run are not possible.

        It is asked before the network runs, when the number of channels is not known, and again after the first batch.
        """

    def reserve(self, device: torch.device, size: int) -> None:  # noqa: B027  nothing to do is a fine default
        """Note how many bytes of a device open chunks will take. Called before anything is created."""

    def folders(self, metadata: Sequence[Metadata]) -> list[Path]:
        """Folders that a run over these images may make. Those that it leaves empty when it fails are removed."""
        return []

    @abstractmethod
    def create(self, result: Result) -> OutputWriter:
        """Start one result of a run afresh."""


class ResumableOutput(Output):
    """An output whose runs can be resumed."""

    numbers_unnamed = False
    """Whether results of images without a name, of runs that cannot be resumed, get names that no other run has."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What its results depend on beside the chunks, by name, but not where they are. Values can be compared.

        A run does not go on with an earlier one whose journal has other settings.
        """

    @abstractmethod
    def journal(self, metadata: Sequence[Metadata]) -> Path | None:
        """The file for the journal of a run over these images, beside its results; ``None``: it cannot be resumed."""

    @abstractmethod
    def create(self, result: Result) -> ResumableWriter:
        """Start one result of a run afresh."""

    @abstractmethod
    def resume(self, result: Result) -> ResumableWriter:
        """Go on with a result that an earlier run left unfinished.

        Raises:
            OSError: when what it left is missing, or has another size.
        """

    @abstractmethod
    def load(self, result: Result) -> Any:
        """A result that an earlier run finished, as its :py:meth:`OutputWriter.finish` returned it.

        Raises:
            FileNotFoundError: when it is missing, so that it is made again.
            OSError: when it has another size.
        """
