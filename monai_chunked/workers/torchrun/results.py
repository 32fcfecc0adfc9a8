"""How all processes of a run get the results that one of them has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from monai_chunked.call.settings import Settings
from monai_chunked.inputs.source import Source
from monai_chunked.outputs.auto import AutoOutput
from monai_chunked.outputs.base import Result, ResumableOutput
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.heads import Heads
from monai_chunked.run.assembly import Results
from monai_chunked.run.begun import Run
from monai_chunked.workers.torchrun.peers import Peers
from monai_chunked.workers.torchrun.shares import SharedResults

__all__ = ["Shown", "show", "take"]


PIECE_BYTES = 2**26
"""Of a result in memory, so much is sent at a time."""


@dataclass(frozen=True)
class Shown:
    """What the others are told of the results.

    Attributes:
        heads: of the network.
        results: what each head has become.
        on_disk: whether they can be opened, or else are sent.
    """

    heads: Heads
    results: Sequence[Result]
    on_disk: bool


def show(peers: Peers, run: Run, results: Results, shared: SharedResults) -> None:
    """Tell the others where results are, or send them.

    Args:
        peers: the processes of the run.
        run: the one that has made them.
        results: as outputs return them.
        shared: knows the chunks, and what was started in this run.
    """
    forms, values = shared.forms(), results.values
    assert shared.layout is not None
    heads = enumerate(zip(results.heads, shared.layout.grids))
    described = [run.result(head, run.call.ending(grid), forms[number]) for number, (head, grid) in heads]
    on_disk = _have_names(run, described) or not all(isinstance(result, torch.Tensor) for result in values)
    for rank in peers.others:
        peers.say(rank, Shown(results.heads, described, on_disk))
    if not on_disk:
        for result in values:
            for image, box in _pieces(result.shape, result.dtype.itemsize):
                piece = result[image][(slice(None), *box)].cpu()
                for rank in peers.others:
                    peers.send_sums(rank, piece)
                peers.flush()


def _have_names(run: Run, results: Sequence[Result]) -> bool:
    """Whether the output finds results again that it has written."""
    output = run.call.output
    if not isinstance(output, ResumableOutput) or output.journal(run.metadata) is None:
        return False
    if run.record.journal is not None or all(image.get("filename_or_obj") for image in run.metadata):
        return True
    try:  # it may have taken a name that was free
        for result in results:
            output.load(result)
    except FileNotFoundError:
        return False
    return True


def take(peers: Peers, settings: Settings, source: Source, shown: Shown) -> list[Any]:
    """The results, in another process than the one that has made them.

    Raises:
        OSError: when they are on a disk that this process does not see.
    """
    output = settings.target(source.device)
    if shown.on_disk:
        assert isinstance(output, ResumableOutput)
        try:
            return [output.load(result) for result in shown.results]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                error.errno,
                f"rank 0 has written the result, but rank {peers.rank} does not see it; process_group needs an output "
                f"on a disk that all processes share",
                error.filename,
            ) from error
    if isinstance(output, ResumableOutput) and output.journal(shown.results[0].metadata) is not None:
        output = AutoOutput(torch.device("cpu"))  # one copy of a file is enough
    taken = []
    for result in shown.results:
        writer = output.create(result)
        try:
            for image, box in _pieces(result.shape, result.dtype.itemsize):
                writer.write(image, box, peers.receive_sums(0))
            taken.append(writer.finish())
        except BaseException:
            writer.abandon()
            raise
    return taken


def _pieces(shape: Sequence[int], itemsize: int) -> list[tuple[int, Box]]:
    """Rows of a result ``(B, C, *spatial)`` along its first spatial dimension, so many that they take some MiB."""
    images, channels, rows, *row_shape = shape
    step = max(1, PIECE_BYTES // (channels * itemsize * prod(row_shape)))
    rest = [slice(0, size) for size in row_shape]
    return [
        (image, (slice(start, min(start + step, rows)), *rest))
        for image in range(images)
        for start in range(0, rows, step)
    ]
