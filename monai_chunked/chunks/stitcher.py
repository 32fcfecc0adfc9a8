"""The one way in and out: a window and its prediction go in, chunks that have all their windows come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from monai_chunked.chunks.background import Background
from monai_chunked.chunks.blending import Blending
from monai_chunked.chunks.handing_on import HandingOn
from monai_chunked.chunks.levels import Memory
from monai_chunked.chunks.open_chunks import OpenChunks
from monai_chunked.chunks.stages import Finished
from monai_chunked.machine.memory import FreedMemory
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.window_grid import Window

__all__ = ["Stitcher"]


class Stitcher:
    """Adds predictions to open chunks, all heads of the network alike.

    A window without a prediction is one that was skipped, for which the background stands, or one whose chunks an
    earlier run has finished, so that there is nothing to add anything to.

    Args:
        layout: the chunks of each head.
        images: number of images in the input batch.
        open_chunks: where the sums are.
        handing_on: knows which chunks others have finished, or finish; these never come out.
        backgrounds: of each head.
        freed: is told of predictions that have been added.
        differentiable: keep what autograd needs.
        rounded: products have the dtype of predictions, as in MONAI; else at least that of the sums.

    Attributes:
        finished: number of chunks that are finished, those of an earlier run included.
        total: number of chunks in all.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        images: int,
        open_chunks: OpenChunks,
        handing_on: HandingOn,
        backgrounds: Sequence[Background],
        freed: FreedMemory,
        differentiable: bool,
        rounded: bool,
    ) -> None:
        self.grids = layout.grids
        self.handing_on = handing_on
        self.open_chunks = open_chunks
        self.freed = freed
        self.finished = 0
        self.total = images * sum(map(len, layout.grids))
        self._workers = ThreadPoolExecutor(torch.get_num_threads(), "monai_chunked-add")
        self._backgrounds = backgrounds
        self._blending = [
            Blending(
                head,
                grid,
                backgrounds[head],
                handing_on=handing_on,
                open_chunks=open_chunks,
                workers=self._workers,
                differentiable=differentiable,
                rounded=rounded,
            )
            for head, grid in enumerate(layout.grids)
        ]

    def add(self, window: Window, prediction: Sequence[tuple[torch.Tensor, torch.Tensor]] | None) -> Iterator[Finished]:
        """Add one window; the next one in scan order.

        Args:
            window: where.
            prediction: for each head what the network says, ``(C, *size)``, and the weights to blend it with,
                ``(1, *size)``; ``None``: the window was not predicted.

        Yields:
            Each chunk that ends with this window, with the sums of its predictions as values.
        """
        if prediction is not None:
            self.freed.passed(sum(tensor.nbytes for tensor, _ in prediction))
        for head, grid in enumerate(self.grids):
            touched = () if prediction is None else grid.touched_by(window.position)
            with self.open_chunks.step(ChunkId(window.image, head, position) for position in touched):
                if prediction is None:
                    self._blending[head].add_background(window)
                else:
                    self._blending[head].add(window, *prediction[head])
                for position in grid.finished_by(window.position):
                    chunk = ChunkId(window.image, head, position)
                    self.finished += 1
                    if chunk not in self.handing_on:
                        yield self._close(chunk)

    def rest(self) -> Iterator[Finished]:
        """When all windows are in, the chunks that wait for what others have added; others get what they wait for."""
        return self.handing_on.settle(self.grids, self.open_chunks)

    def _close(self, chunk: ChunkId) -> Finished:
        box = self.grids[chunk.head].box(chunk.position)
        if self.open_chunks.is_new(chunk):  # nothing was added to it
            self.open_chunks.sums(chunk).zero_()
        closed = self.open_chunks.close_chunk(chunk)
        if closed is None:  # all its windows were skipped
            sums = self._backgrounds[chunk.head].sums(chunk.position)
            return Finished(chunk, box, sums, Memory(sums))
        return Finished(chunk, box, *closed)

    @property
    def open_bytes(self) -> int:
        """Bytes of open chunks, on all levels."""
        return sum(self.open_chunks.levels.open_bytes)

    def close(self) -> None:
        """The run is over, well or not."""
        self._workers.shutdown()
        self.open_chunks.close()
