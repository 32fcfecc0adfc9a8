"""Which stages the chunks of a head go through, and the grid on which they end."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms import Activations, Activationsd, AsDiscrete, AsDiscreted, Compose
from monai.transforms.utils import scale_affine

from monai_chunked.chunks.activations import Activation, Kind, undecided
from monai_chunked.chunks.inverse import Inverse, Make, scores
from monai_chunked.chunks.stages import Argmax, Cast, Postprocess, Stage
from monai_chunked.outputs.base import Form, Metadata
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.heads import Head
from monai_chunked.resampling.axes import ChunkResampling
from monai_chunked.transforms.argmax import argmax, label_dtype, option
from monai_chunked.transforms.chain import Chain, Function, Step, inside
from monai_chunked.transforms.inversion import Inversion, Undone
from monai_chunked.transforms.reasons import stays_in_memory

__all__ = ["Ending", "ending_of", "stages_of"]


ACTIVATIONS, DISCRETE = (Activations, Activationsd), (AsDiscrete, AsDiscreted)
"""MONAI's, of arrays and of dictionaries."""


@dataclass(frozen=True)
class Ending:
    """The grid on which the chunks of a head end.

    Attributes:
        grid: of the chunks.
        undone: how they get to the patient's grid; ``None``: they stay where they are.
        chunks: for each image, how chunks make the grids on the way, the patient's one last.
    """

    grid: ChunkGrid
    undone: Undone | None = None
    chunks: tuple[tuple[ChunkResampling, ...], ...] = ()

    @property
    def cuts(self) -> tuple[tuple[int, ...], ...]:
        """For each dimension, where the boxes that are written begin, and the size."""
        return self.chunks[0][-1].cuts if self.moves else self.grid.cuts

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size in voxels."""
        return tuple(cuts[-1] for cuts in self.cuts)

    @property
    def moves(self) -> bool:
        """Whether voxels get another place."""
        return bool(self.chunks and self.chunks[0])

    @property
    def inverted(self) -> torch.dtype | None:
        """The dtype of voxels on the patient's grid; ``None``: the one that they had."""
        return torch.float32 if self.undone is not None and self.undone.casts else None

    def form(self, head: Head, chain: Chain, dtype: torch.dtype) -> Form | None:
        """The form of the result, where it is known before a chunk is finished, from the dtype of scores."""
        form = chain.form(head.channels, dtype, self.inverted)
        return None if form is None else Form(*form)

    def metadata(self, images: Sequence[Metadata], image_size: tuple[int, ...]) -> tuple[Metadata, ...]:
        """The metadata of the result, made from those of the images."""
        if self.undone is None:
            return tuple(_at_resolution(image, image_size, self.grid.size) for image in images)
        named = ("filename_or_obj", "patch_index")
        return tuple(
            {**template.meta, **{name: image[name] for name in named if name in image}}
            for template, image in zip(self.undone.templates, images)
        )

    def finished(self, written: Mapping[ChunkId, int], images: int, head: int) -> Iterator[ChunkId]:
        """The chunks that need not come again: every box of the result that they go into is written."""
        for image in range(images):
            yield from self.unneeded(written, image, head)[0]

    def unneeded(self, written: Iterable[ChunkId], image: int, head: int) -> list[set[ChunkId]]:
        """For each grid from the network's to the patient's, the boxes of which nothing is made that is not written."""
        ways = self.chunks[image] if self.moves else ()
        unneeded = [{chunk for chunk in written if chunk[:2] == (image, head)}]
        needed = _positions(self.cuts) - {chunk.position for chunk in unneeded[0]}
        for resampling, cuts in zip(reversed(ways), reversed([self.grid.cuts, *(way.cuts for way in ways[:-1])])):
            needed = resampling.needed(needed)
            unneeded.insert(0, {ChunkId(image, head, position) for position in _positions(cuts) - needed})
        return unneeded


def ending_of(grid: ChunkGrid, inversion: Inversion | None) -> Ending:
    """Where the chunks of a head end.

    Raises:
        Unstreamable: when they cannot get there a chunk at a time.
    """
    if inversion is None:
        return Ending(grid)
    undone = inversion.over(grid.size)
    return Ending(grid, undone, undone.chunks(grid.cuts))


def stages_of(
    ending: Ending,
    head: Head,
    chain: Chain,
    dtype: torch.dtype,
    *,
    number: int,
    written: Collection[ChunkId],
    full: Sequence[tuple[int, ...]],
) -> list[Stage]:
    """What the chunks of a head go through behind the division by their weights.

    Args:
        ending: the grid on which they end.
        head: of the network.
        chain: what is done to it.
        dtype: of scores.
        number: of the head.
        written: the boxes that an earlier run has written, or somebody else makes.
        full: for each image the spatial size of what MONAI cuts scores out of, if the image is smaller than a window;
            else that of the scores.
    """
    make, label, after = _making(head, chain.after) if ending.moves else (scores, None, chain.after)
    stages: list[Stage] = []
    if not chain or chain.of_dictionaries or ending.undone is not None:
        stages.append(Cast(dtype))  # as behind the inferer, where scores are of the dtype of its result
    strides = [torch.empty((head.channels, *size), device="meta").stride() for size in full]
    stages += _stages(chain.before, head, ending.grid.size, strides)
    if ending.inverted is not None and not ending.moves:
        stages.append(Cast(ending.inverted))
    images = range(len(ending.chunks) if ending.moves else 0)
    unneeded = [ending.unneeded(written, image, number) for image in images] if written else []
    for way, resampled in enumerate(zip(*ending.chunks)):
        others = set().union(*(of_image[way + 1] for of_image in unneeded))
        if way == len(ending.chunks[0]) - 1:
            stages.append(Inverse(resampled, make, label or ending.inverted, others))
        else:
            stages.append(Inverse(resampled, scores, unneeded=others))
    return stages + _stages(after, head, ending.size, None if ending.undone is None else ending.undone.strides)


def _making(head: Head, after: Sequence[Function]) -> tuple[Make, torch.dtype | None, Sequence[Function]]:
    """What is made of pieces, its dtype, and the functions that are left to do: labels do not need all scores."""
    first = inside(after[0]) if after else None
    if first is argmax:
        return (lambda piece, values: piece.labels(values)), label_dtype(head.channels), after[1:]
    dtype = _plain_dtype(first) if isinstance(first, AsDiscreted) else None
    if dtype is not None:
        threshold, chooses = option(first, "threshold"), option(first, "argmax")
        if chooses and threshold is None:
            return (lambda piece, values: piece.labels(values)), dtype, after[1:]
        if threshold is not None and not chooses:
            return (lambda piece, values: piece.at_least(values, threshold)), dtype, after[1:]
    threshold = _threshold_of_sigmoid(after)
    between = None if threshold is None else undecided(threshold)
    if between is not None:
        return (lambda piece, values: piece.scores_within(values, *between)), None, after
    return scores, None, after


def _threshold_of_sigmoid(after: Sequence[Function]) -> float | None:
    """The threshold, if scores go through a sigmoid and are then only compared with a threshold."""
    flat: list[Any] = []
    for transform in map(inside, after):
        if not stays_in_memory(transform):
            flat += transform.transforms if type(transform) is Compose else [transform]
    if len(flat) < 2 or type(flat[0]) not in ACTIVATIONS or type(flat[1]) not in DISCRETE:
        return None
    sigmoid, softmax, other = (option(flat[0], name) for name in ("sigmoid", "softmax", "other"))
    chooses, to_onehot, threshold = (option(flat[1], name) for name in ("argmax", "to_onehot", "threshold"))
    alone = sigmoid and not softmax and other is None and not chooses and to_onehot is None
    return threshold if alone and isinstance(threshold, (int, float)) else None


def _plain_dtype(transform: AsDiscreted) -> torch.dtype | None:
    """The dtype that ``AsDiscreted`` returns, if it does one thing, along the channels."""
    options = transform.converter.kwargs
    plain = option(transform, "to_onehot") is None and option(transform, "rounding") is None
    if not plain or options.get("dim", 0) != 0 or options.get("keepdim", True) is not True:
        return None
    dtype = options.get("dtype", torch.float)
    return dtype if isinstance(dtype, torch.dtype) else None


def _stages(
    functions: Sequence[Function], head: Head, size: tuple[int, ...], strides: Sequence[tuple[int, ...]] | None
) -> list[Stage]:
    """The stages that do these functions on one grid.

    Args:
        functions: done one after the other.
        head: of the network.
        size: spatial size of the grid.
        strides: of what the first function gets, for each image; ``None``: voxels lie row by row, as for all others.
    """
    stages: list[Stage] = []
    for function in functions:
        kind = _activation(inside(function))
        if kind is not None:
            stages.append(Activation(kind, size, strides))
        else:
            stages.append(Argmax() if function is argmax else Postprocess(function, head.name))
        strides = strides if isinstance(function, Step) and stays_in_memory(function.transform) else None
    return stages


def _activation(transform: Any) -> Kind | None:
    """Which activation a transform is, if it is nothing but a softmax over the channels or a sigmoid."""
    if type(transform) is Activationsd and option(transform, "other") is None:
        options = transform.converter.kwargs
        softmax, sigmoid = option(transform, "softmax"), option(transform, "sigmoid")
        if bool(softmax) != bool(sigmoid) and options.get("dim", 0) == 0:
            return "softmax" if softmax else "sigmoid"
    return None


def _positions(cuts: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    return set(itertools.product(*[range(len(borders) - 1) for borders in cuts]))


def _at_resolution(metadata: Metadata, image_size: tuple[int, ...], size: tuple[int, ...]) -> Metadata:
    """The metadata of a result: at another resolution, its voxels lie elsewhere over the same volume."""
    affine = metadata.get("affine")
    if affine is None or size == image_size:
        return metadata
    affine = torch.as_tensor(affine, dtype=torch.float64)
    dims = affine.shape[-1] - 1
    scale = scale_affine((*image_size, *[1] * dims)[:dims], (*size, *[1] * dims)[:dims])
    return {**metadata, "affine": affine @ torch.as_tensor(scale, dtype=torch.float64)}
