"""
Softmax and sigmoid of a chunk with the bits that they have for the whole volume.

PyTorch computes several voxels at once on a CPU, and the few that are left over one by one, with another ``exp`` whose
last bit may differ. Which ones are left over depends on the size of the whole and on the number of threads: each takes
a run of voxels, and the end of a run is left over. So the voxels that are left over in the volume, and only they, are
computed one by one in a chunk too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
"""The most that a sigmoid in float32 is off, as a part of what it is; much more than it is in any library."""


def undecided(threshold: float) -> tuple[float, float] | None:
    """From which score to which it takes the sigmoid itself, with its last bits, to say whether it reaches a threshold.

    Below, the sigmoid is less than the threshold whichever ``exp`` is in it, and above it is not.

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
    """

    def __init__(self, kind: Kind, size: Sequence[int]) -> None:
        self.kind = kind
        self.size = tuple(size)
        self._work = _Softmax() if kind == "softmax" else _Sigmoid()

    def put(self, finished: Finished) -> Iterator[Finished]:
        yield finished.become(self.of(finished.values, finished.box))

    def finish(self) -> Iterable[Finished]:
        return ()

    def of(self, values: torch.Tensor, box: Box) -> torch.Tensor:
        """Of a chunk ``(C, *chunk)`` at a box of the volume."""
        values = values.contiguous()
        result = self._work.whole(values)
        vector = VECTOR.get(torch.backends.cpu.get_cpu_capability(), 0) // values.itemsize
        if values.device.type != "cpu" or not vector:
            return result
        sources, targets = self._work.flat(values), self._work.flat(result)
        channels = len(values)
        # those left over in the chunk are not left over in the volume: several at once
        own = self._work.left_over(channels, prod(values.shape[1:]), vector)
        if len(own):
            more = -len(own) % (2 * vector * torch.get_num_threads())  # so that no thread has anything left over
            together = torch.cat([sources[:, own], sources.new_zeros(len(sources), more)], 1)
            targets[:, own] = self._work.whole(together)[:, : len(own)]
        for some in torch.from_numpy(self._within(channels, vector, box)).split(vector - 1):
            targets[:, some] = self._work.whole(sources[:, some])
        return result

    def _within(self, channels: int, vector: int, box: Box) -> np.ndarray:
        """Of what is left over in the volume, what lies in a box, counted in the chunk."""
        places = self._work.left_over(channels, prod(self.size), vector)
        *channel, voxel = self._work.split(places, prod(self.size))
        at = np.unravel_index(voxel, self.size)
        inside = np.logical_and.reduce([(k >= side.start) & (k < side.stop) for k, side in zip(at, box)])
        sizes = [side.stop - side.start for side in box]
        here = np.ravel_multi_index([k[inside] - side.start for k, side in zip(at, box)], sizes)
        return here if not channel else channel[0][inside] * prod(sizes) + here


class _Softmax:
    """Voxels are shared out to threads, all channels of each, however few they are."""

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        return torch.softmax(values, 0)

    def flat(self, values: torch.Tensor) -> torch.Tensor:
        return values.view(len(values), -1)

    def left_over(self, channels: int, voxels: int, vector: int) -> np.ndarray:
        return _ends(voxels, 1, vector)

    def split(self, places: np.ndarray, voxels: int) -> tuple[np.ndarray, ...]:
        return (places,)


class _Sigmoid:
    """Numbers are shared out to threads, whichever channel they are of."""

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(values)

    def flat(self, values: torch.Tensor) -> torch.Tensor:
        return values.view(1, -1)

    def left_over(self, channels: int, voxels: int, vector: int) -> np.ndarray:
        return _ends(channels * voxels, GRAIN, 2 * vector)

    def split(self, places: np.ndarray, voxels: int) -> tuple[np.ndarray, ...]:
        return places // voxels, places % voxels


def _ends(count: int, grain: int, vector: int) -> np.ndarray:
    """What is left over of so many numbers, at the ends of the runs of threads (``at::parallel_for``)."""
    threads = 1 if count <= grain else min(torch.get_num_threads(), -(-count // grain))
    run = -(-count // threads)
    ends = []
    for start in range(0, count, run):
        stop = min(start + run, count)
        ends.append(np.arange(stop - (stop - start) % vector, stop))
    return np.concatenate(ends)
