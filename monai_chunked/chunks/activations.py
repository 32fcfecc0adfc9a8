"""
Softmax and sigmoid of a chunk with the bits that they have for the whole volume.

PyTorch computes several voxels at once on a CPU, and the few that are left over one by one, with another ``exp`` whose
last bit may differ. Which ones are left over depends on the size of the whole and on the number of threads: each takes
a run of voxels, and the end of a run is left over. So the voxels that are left over in the volume, and only they, are
computed one by one in a chunk too. Voxels follow each other as they lie in memory, which for what an inverse has made
may be in any order, and where something was cut off with gaps, at which runs end too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log, prod
from typing import Literal

import numpy as np
import torch

from monai_chunked.chunks.stages import Finished
from monai_chunked.plan.boxes import Box

__all__ = ["Activation", "Kind", "undecided"]


Kind = Literal["softmax", "sigmoid"]


GRAIN = 32768
"""The least work that PyTorch gives to a thread (``at::internal::GRAIN_SIZE``)."""


VECTOR = {"AVX2": 32, "AVX512": 64}
"""Bytes that are computed at once. Elsewhere nothing is left over, or it is not known what."""


SIGMOID_ERROR = 2.0**-18
"""The largest relative error of a sigmoid in float32; that of any library is much smaller."""


def undecided(threshold: float) -> tuple[float, float] | None:
    """Between which scores only the sigmoid itself, with its last bits, can say whether it reaches a threshold.

    Below, it is less than the threshold whichever ``exp`` is in it, and above it is not.

    Args:
        threshold: for the sigmoid.

    Returns:
        two scores; ``None``: for a threshold so near to 0 or 1, or beyond, there are no such scores.

    >>> [round(score, 3) for score in undecided(0.9)]
    [2.197, 2.197]
    >>> undecided(0.0) is None
    True
    """
    # Of the exact sigmoid s(x), which grows with x, PyTorch computes 1 / (1 + exp(-x)) with three roundings and an exp
    # whose error is a few units in the last place: s(x) (1 + e), |e| < 2**-20, and where s(x) is too small for float32,
    # less than 2**-100. It compares that with the threshold t rounded to float32, t (1 + f), |f| <= 2**-24. So with
    # E = 2**-18, s(x) < t / (1 + E) implies that t is not reached, and s(x) > t / (1 - E) that it is. What is left of
    # E is many times what the logarithm here is off.
    less, more = threshold / (1 + SIGMOID_ERROR), threshold / (1 - SIGMOID_ERROR)
    if not (less > 2.0**-64 and more < 1 - SIGMOID_ERROR):
        return None
    return log(less / (1 - less)), log(more / (1 - more))


class Activation:
    """The stage in which scores go through a softmax over the channels, or a sigmoid.

    Args:
        kind: which one.
        size: spatial size of the whole volume, in voxels.
        strides: for each image, those that MONAI's whole volume ``(C, *size)`` has in memory; ``None``: it lies row by
            row, without gaps. Softmax does not ask, because PyTorch copies what lies otherwise.
    """

    def __init__(self, kind: Kind, size: Sequence[int], strides: Sequence[tuple[int, ...]] | None = None) -> None:
        self.kind = kind
        self.size = tuple(size)
        self.strides = strides
        self._work: _Softmax | _Sigmoid = _Softmax() if kind == "softmax" else _Sigmoid()

    def put(self, finished: Finished) -> Iterator[Finished]:
        yield finished.become(self.of(finished.values, finished.box, finished.chunk.image))

    def finish(self) -> Iterable[Finished]:
        return ()

    def of(self, values: torch.Tensor, box: Box, image: int = 0) -> torch.Tensor:
        """The activation of a chunk ``(C, *chunk)`` at a box of the volume of an image.

        MONAI computes it in float32 and returns it in the dtype that came. What it converts lies row by row.
        """
        if values.dtype != torch.float32:
            return self._of(values.float(), box, None).to(values.dtype)
        return self._of(values, box, None if self.strides is None else self.strides[image])

    def _of(self, values: torch.Tensor, box: Box, strides: tuple[int, ...] | None) -> torch.Tensor:
        values = values.contiguous()
        result = self._work.whole(values)
        vector = VECTOR.get(torch.backends.cpu.get_cpu_capability(), 0) // values.itemsize
        if values.device.type != "cpu" or not vector:
            return result
        sources, targets = self._work.flat(values), self._work.flat(result)
        # what is left over in the chunk is not left over in the volume, so it is computed several at once
        own = self._work.ends(sources.shape[1], vector).places()
        if len(own):
            more = -len(own) % (2 * vector * torch.get_num_threads())  # so that no thread has anything left over
            together = torch.cat([sources[:, own], sources.new_zeros(len(sources), more)], 1)
            targets[:, own] = self._work.whole(together)[:, : len(own)]
        order = self._work.order(len(values), self.size, strides)
        ends = self._work.ends(prod(order.shape), vector)
        alone = torch.from_numpy(order.left_over(ends, self._work.box(len(values), box)))
        if len(alone):
            targets[:, alone] = self._work.one_by_one(sources[:, alone], vector)
        return result


class _Softmax:
    """Threads share the voxels, each with all its channels, however few there are."""

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        return torch.softmax(values, 0)

    def one_by_one(self, values: torch.Tensor, vector: int) -> torch.Tensor:
        return torch.cat([self.whole(few) for few in values.split(vector - 1, 1)], 1)

    def flat(self, values: torch.Tensor) -> torch.Tensor:
        return values.view(len(values), -1)

    def ends(self, voxels: int, vector: int) -> _Ends:
        return _Ends(voxels, 1, vector)

    def order(self, channels: int, size: tuple[int, ...], strides: tuple[int, ...] | None) -> _Order:
        return _Order.of(size, None)

    def box(self, channels: int, box: Box) -> Box:
        return box


class _Sigmoid:
    """Threads share the numbers, whichever channel they are of."""

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(values)

    def one_by_one(self, values: torch.Tensor, vector: int) -> torch.Tensor:
        apart = values.new_empty(2 * values.numel())[::2]  # with gaps in between, nothing is computed at once
        return self.whole(apart.copy_(values.view(-1))).view(values.shape)

    def flat(self, values: torch.Tensor) -> torch.Tensor:
        return values.view(1, -1)

    def ends(self, numbers: int, vector: int) -> _Ends:
        return _Ends(numbers, GRAIN, 2 * vector)

    def order(self, channels: int, size: tuple[int, ...], strides: tuple[int, ...] | None) -> _Order:
        return _Order.of((channels, *size), strides)

    def box(self, channels: int, box: Box) -> Box:
        return (slice(0, channels), *box)


@dataclass(frozen=True)
class _Ends:
    """What is left over at the ends of the runs of threads (``at::parallel_for``).

    Attributes:
        count: how many numbers there are.
        grain: so many are one thread's.
        vector: so many are computed at once.
    """

    count: int
    grain: int
    vector: int

    @property
    def run(self) -> int:
        """How many numbers a thread computes one after the other."""
        threads = 1 if self.count <= self.grain else min(torch.get_num_threads(), -(-self.count // self.grain))
        return -(-self.count // threads)

    def places(self) -> np.ndarray:
        """The places that are left over, where numbers lie without gaps."""
        ends = []
        for start in range(0, self.count, self.run):
            stop = min(start + self.run, self.count)
            ends.append(np.arange(stop - (stop - start) % self.vector, stop))
        return np.concatenate(ends)

    def among(self, places: np.ndarray, row: int) -> np.ndarray:
        """Which of these places are left over, where rows of numbers have gaps between them: there runs end too."""
        first = np.maximum(places // self.run * self.run, places // row * row)
        stop = np.minimum(np.minimum((places // self.run + 1) * self.run, self.count), (places // row + 1) * row)
        return np.asarray(places >= stop - (stop - first) % self.vector)


@dataclass(frozen=True)
class _Order:
    """In which order PyTorch goes through the numbers of a tensor (``at::TensorIterator``).

    Attributes:
        shape: of the tensor.
        dims: its dimensions, the one in which numbers follow each other last.
        row: so many numbers lie one beside the other between gaps; all, where there are none.
    """

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    row: int

    @classmethod
    def of(cls, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> _Order:
        """Of a tensor with these strides; ``None``: it lies row by row.

        >>> _Order.of((2, 3, 4), (12, 1, 3)), _Order.of((2, 3, 4), (30, 5, 1))
        (_Order(shape=(2, 3, 4), dims=(0, 2, 1), row=24), _Order(shape=(2, 3, 4), dims=(0, 1, 2), row=4))
        """
        dims = range(len(shape))
        if strides is None:
            return cls(shape, tuple(dims), prod(shape))
        ordered = sorted(dims, key=lambda d: (shape[d] > 1, -strides[d]))
        row = 1
        for d in reversed(ordered):
            if shape[d] > 1 and strides[d] != row:
                break
            row *= shape[d]
        return cls(shape, tuple(ordered), row)

    def left_over(self, ends: _Ends, box: Box) -> np.ndarray:
        """The places that are left over in the tensor and lie in a box of it, counted within the box."""
        size = [self.shape[d] for d in self.dims]
        sizes = [side.stop - side.start for side in box]
        if self.row < prod(self.shape):
            steps = np.cumprod([1, *size[:0:-1]])[::-1]
            places = np.zeros(sizes, np.int64)
            for d, step in zip(self.dims, steps):
                along = step * np.arange(box[d].start, box[d].stop)
                places += along.reshape([-1 if k == d else 1 for k in range(len(box))])
            return np.flatnonzero(ends.among(places, self.row))
        indices = np.unravel_index(ends.places(), size)
        at = [indices[self.dims.index(d)] for d in range(len(box))]
        inside = np.logical_and.reduce([(n >= side.start) & (n < side.stop) for n, side in zip(at, box)])
        return np.asarray(np.ravel_multi_index([n[inside] - side.start for n, side in zip(at, box)], sizes))
