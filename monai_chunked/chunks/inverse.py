"""
The stage that brings finished chunks from the network's grid to the patient's grid.

A chunk makes the voxels whose last corner lies in it, as soon as it is finished. Corners before it lie in chunks that
scan order has finished earlier: of these, faces are kept, one voxel thick, until the last chunk behind has seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from monai_chunked.chunks.levels import Memory
from monai_chunked.chunks.stages import Finished
from monai_chunked.machine.memory import addresses_limited
from monai_chunked.plan.boxes import Box, intersection, sizes, within
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.resampling.axes import ChunkResampling
from monai_chunked.resampling.pieces import Piece, pieces

__all__ = ["Inverse", "Make", "scores"]


Make = Callable[[Piece, torch.Tensor], torch.Tensor]
"""Makes the voxels of a piece, ``(C', *made)``, from those that it reads, ``(C, *read)``."""


def scores(piece: Piece, values: torch.Tensor) -> torch.Tensor:
    """All channels as they are."""
    return piece.scores(values)


class Inverse:
    """Makes boxes of one grid of the chunks of another one.

    Args:
        resampled: for each image of the batch, what its chunks make. Boxes are the same for all images.
        make: what is made of a piece: scores, or labels, which need not all scores.
        dtype: of what is made; ``None``: as ``make`` gives it.
        unneeded: the boxes of which nothing is made any more; chunks that make them come for the sake of their faces
            alone, and faces that only they need may be missing.

    Attributes:
        kept_bytes: bytes of the faces that are kept.
        most_kept_bytes: the most that were kept at any time so far.
    """

    def __init__(
        self,
        resampled: Sequence[ChunkResampling],
        make: Make,
        dtype: torch.dtype | None = None,
        unneeded: Container[ChunkId] = (),
    ) -> None:
        self.resampled = resampled
        self.make = make
        self.dtype = dtype
        self.unneeded = unneeded
        self.kept_bytes = self.most_kept_bytes = 0
        self._faces: dict[tuple[int, tuple[int, ...], int], _Face] = {}

    def put(self, finished: Finished) -> Iterator[Finished]:
        image, head, position = finished.chunk
        resampled = self.resampled[image]
        self._keep(finished, resampled)
        before = list(resampled.before(position))
        made = ChunkId(image, head, resampled.place(position)) if resampled.makes(position) else None
        if made is not None and made not in self.unneeded:
            faces = [self._faces[image, other, dim] for dim, other in before]
            values = self._made(finished, resampled, faces)
            finished.memory.recycle()
            turned = values.permute(0, *(d + 1 for d in resampled.resampling.order))
            yield Finished(made, resampled.made(position), turned, Memory(values))
        else:
            finished.memory.recycle()
        for dim, other in before:
            self._release(image, other, dim)

    def finish(self) -> Iterable[Finished]:
        return ()

    def _keep(self, finished: Finished, resampled: ChunkResampling) -> None:
        """Copy the faces that chunks behind need: the memory of the chunk is used again."""
        image, _, position = finished.chunk
        for dim, depth in enumerate(resampled.kept(position)):
            users = resampled.users(position, dim)
            if users:
                stop = finished.box[dim].stop
                box = (*finished.box[:dim], slice(stop - depth, stop), *finished.box[dim + 1 :])
                values = finished.values.narrow(dim + 1, finished.values.shape[dim + 1] - depth, depth).clone()
                self._faces[image, position, dim] = _Face(box, values, users)
                self._count(values.nbytes)

    def _release(self, image: int, position: tuple[int, ...], dim: int) -> None:
        """One chunk less needs a face. Chunks that came in an earlier run have left none."""
        face = self._faces.get((image, position, dim))
        if face is not None:
            face.users -= 1
            if not face.users:
                del self._faces[image, position, dim]
                self._count(-face.values.nbytes)

    def _count(self, size: int) -> None:
        self.kept_bytes += size
        self.most_kept_bytes = max(self.most_kept_bytes, self.kept_bytes)

    def _made(self, finished: Finished, resampled: ChunkResampling, faces: Sequence[_Face]) -> torch.Tensor:
        """What the chunk makes, ``(C', *box)`` in the order of dimensions that are read."""
        parts = resampled.of(finished.chunk.position)
        box = tuple(part.made for part in parts)
        sources = [(finished.box, finished.values), *((face.box, face.values) for face in faces)]
        first, *others = pieces(resampled.resampling, parts, [side.start for side in finished.box])

        def make(piece: Piece) -> torch.Tensor:
            return self.make(piece, _gather(piece.read, sources))

        def put(piece: Piece, values: torch.Tensor) -> None:
            made[within(piece.made, box)] = values

        begin = make(first)
        made = begin.new_empty((len(begin), *sizes(box)), dtype=self.dtype or begin.dtype)
        put(first, begin)
        del begin
        on_cpu = finished.values.device.type == "cpu"
        if on_cpu and len(others) > 1 and torch.get_num_threads() > 1 and not addresses_limited():
            with ThreadPoolExecutor(torch.get_num_threads(), "monai_chunked-inverse") as threads:
                list(threads.map(lambda piece: put(piece, make(piece)), others))
        else:
            for piece in others:
                put(piece, make(piece))
        return made


class _Face:
    """The last voxels of a chunk along a dimension.

    Args:
        box: where they are.
        values: ``(C, *box)``.
        users: how many chunks will need them.
    """

    def __init__(self, box: Box, values: torch.Tensor, users: int) -> None:
        self.box = box
        self.values = values
        self.users = users


def _gather(read: Box, sources: Sequence[tuple[Box, torch.Tensor]]) -> torch.Tensor:
    """The voxels of a box, which lie in one or several others."""
    box, values = sources[0]
    if all(outer.start <= side.start and side.stop <= outer.stop for side, outer in zip(read, box)):
        return values[within(read, box)]
    gathered = values.new_empty((len(values), *sizes(read)))
    for box, values in sources:
        common = intersection(read, box)
        if all(side.start < side.stop for side in common):
            gathered[within(common, read)] = values[within(common, box)]
    return gathered
