"""
Where finished chunks are kept until they are put into the order of a file whose first axis is the fastest.

Windows advance along the last axis first, so chunks end along the first one, which is the fastest of a NIfTI file: in
the file a chunk lies in pieces of a few dozen voxels, and a row is whole only when nearly everything is. Writing the
pieces where they belong touches every page of the file once for each chunk along the first axis. So the file is divided
into spans, each short enough for memory, and what chunks bring to a span is kept together, piece after piece. In the
end span after span is put in order. Integers only, no files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from monai_chunked.plan.boxes import Box, intervals, sizes

__all__ = ["Span", "SpanLayout", "SpanPiece"]


@dataclass(frozen=True)
class Span:
    """A contiguous part of the file: ``start`` to ``stop`` along one axis, all of the axes before it.

    Attributes:
        position: channel, and index along each axis behind that of the span, the last axis first.
        start, stop: along the axis that the span is a part of.
        offset: of its first voxel in the file, in voxels.
        count: number of voxels.
    """

    position: tuple[int, ...]
    start: int
    stop: int
    offset: int
    count: int


@dataclass(frozen=True)
class SpanPiece:
    """What a chunk and a span have in common, kept contiguously with its first axis the fastest.

    Attributes:
        span: the span.
        box: of the piece along the first axes, up to that of the span.
        offset: of its first voxel from that of the span, where the pieces are kept, in voxels.
    """

    span: Span
    box: Box
    offset: int

    @property
    def size(self) -> tuple[int, ...]:
        return sizes(self.box)


class SpanLayout:
    """Spans of one image, and the pieces in them.

    Args:
        shape: ``(C, *spatial)``; channels are the slowest axis of the file.
        cuts: for each spatial dimension, where chunks begin, and the size.
        itemsize: bytes of a voxel.
        span_bytes: the most bytes of a span, unless a row along the first axis is longer.

    Example:

        >>> layout = SpanLayout((1, 4, 2, 3), ((0, 2, 4), (0, 2), (0, 3)), itemsize=1, span_bytes=16)
        >>> [(span.start, span.stop, span.offset) for span in layout.spans()]
        [(0, 2, 0), (2, 3, 16)]
        >>> [(piece.span.offset, piece.offset, piece.size) for piece in layout.of_chunk(layout.boxes()[1])]
        [(0, 8, (2, 2, 2)), (16, 4, (2, 2, 1))]
    """

    def __init__(self, shape: Sequence[int], cuts: Sequence[Sequence[int]], itemsize: int, span_bytes: int) -> None:
        self.channels, *self.size = shape
        self.cuts = cuts
        rows = [prod(self.size[:axis]) for axis in range(len(self.size))]
        self.axis = max(axis for axis, row in enumerate(rows) if axis == 0 or row * itemsize <= span_bytes)
        self.row = rows[self.axis]
        self.step = max(1, span_bytes // (self.row * itemsize))

    def spans(self) -> Iterator[Span]:
        """All spans, in the order of the file."""
        outer = [range(self.channels), *(range(size) for size in reversed(self.size[self.axis + 1 :]))]
        for position in itertools.product(*outer):
            for start in range(0, self.size[self.axis], self.step):
                yield self._span(position, start)

    def boxes(self) -> list[Box]:
        """The boxes of all chunks."""
        return list(itertools.product(*(intervals(cuts) for cuts in self.cuts)))

    def of_chunk(self, box: Box) -> Iterator[SpanPiece]:
        """All pieces of a chunk."""
        along = box[self.axis]
        outer = [range(self.channels), *(range(side.start, side.stop) for side in reversed(box[self.axis + 1 :]))]
        for position in itertools.product(*outer):
            for start in range(along.start // self.step * self.step, along.stop, self.step):
                yield self._piece(self._span(position, start), box)

    def of_span(self, span: Span) -> Iterator[SpanPiece]:
        """All pieces of a span."""
        along = [side for side in intervals(self.cuts[self.axis]) if side.start < span.stop and side.stop > span.start]
        for box in itertools.product(*map(intervals, self.cuts[: self.axis]), along):
            yield self._piece(span, box)

    def in_chunk(self, piece: SpanPiece, box: Box) -> tuple[int | slice, ...]:
        """The index of a piece of a chunk in ``(C, *chunk)``."""
        near = [slice(part.start - side.start, part.stop - side.start) for part, side in zip(piece.box, box)]
        far = [index - side.start for index, side in zip(reversed(piece.span.position[1:]), box[self.axis + 1 :])]
        return (piece.span.position[0], *near, *far)

    def _span(self, position: tuple[int, ...], start: int) -> Span:
        length = self.size[self.axis]
        stop = min(start + self.step, length)
        number = 0
        for index, size in zip(position, [self.channels, *reversed(self.size[self.axis + 1 :])]):
            number = number * size + index
        return Span(position, start, stop, (number * length + start) * self.row, (stop - start) * self.row)

    def _piece(self, span: Span, box: Box) -> SpanPiece:
        *before, along = box[: self.axis + 1]
        along = slice(max(along.start, span.start), min(along.stop, span.stop))
        # it lies behind those that begin before it along the first axis; of the others along the second axis, ...
        offset, width = 0, 1
        for axis, side in enumerate(before):
            offset += width * side.start * prod(self.size[axis + 1 : self.axis]) * (span.stop - span.start)
            width *= side.stop - side.start
        return SpanPiece(span, (*before, along), offset + width * (along.start - span.start))
