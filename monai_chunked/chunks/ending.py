"""Which stages the chunks of a head go through, and the grid on which they end."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms import Activations, Activationsd, AsDiscrete, AsDiscreted, Compose
from monai.transforms.utils import scale_affine

from monai_chunked.chunks.activations import Activation, Kind, undecided
from monai_chunked.chunks.inverse import Inverse, Make, scores
from monai_chunked.chunks.postprocessing import Cast, Postprocess, Postprocessing, argmax, label_dtype
from monai_chunked.chunks.stages import Stage
from monai_chunked.outputs.base import Form, Metadata
from monai_chunked.plan.chunk_grid import ChunkGrid, ChunkId
from monai_chunked.plan.heads import Head
from monai_chunked.transforms.chain import Chain, Step
from monai_chunked.transforms.inversion import Inversion, Undone
from monai_chunked.transforms.reasons import stays_in_memory
from monai_chunked.transforms.resampling.axes import ChunkResampling

__all__ = ["Ending", "ending_of", "form_of", "stages_of"]


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

    def metadata(self, each: Sequence[Metadata], image_size: tuple[int, ...]) -> tuple[Metadata, ...]:
        """Of the result, from that of the images."""
        if self.undone is None:
            return tuple(_at_resolution(one, image_size, self.grid.size) for one in each)
        named = ("filename_or_obj", "patch_index")
        return tuple(
            {**template.meta, **{name: one[name] for name in named if name in one}}
            for template, one in zip(self.undone.templates, each)
        )

    def finished(self, written: Mapping[ChunkId, int], images: int, head: int) -> Iterator[ChunkId]:
        """The chunks that need not come once more, where some boxes of the result are written already."""
        for image in range(images):
            if not self.moves:
                yield from (chunk for chunk in written if chunk[:2] == (image, head))
                continue
            needed = _positions(self.cuts) - {chunk.position for chunk in written if chunk[:2] == (image, head)}
            for each in reversed(self.chunks[image]):
                needed = each.needed(needed)
            yield from (ChunkId(image, head, position) for position in _positions(self.grid.cuts) - needed)


def ending_of(grid: ChunkGrid, inversion: Inversion | None) -> Ending:
    """Where the chunks of a head end.

    Raises:
        Unstreamable: when they cannot get there a chunk at a time.
        ValueError: when the images of a batch end on different grids.
    """
    if inversion is None:
        return Ending(grid)
    undone = inversion.over(grid.size)
    chunks = undone.chunks(grid.cuts)
    if len({tuple(each.cuts for each in image) for image in chunks}) > 1:
        raise ValueError(
            "the images of a batch must have one spacing and orientation, so that they are brought to their own grids "
            "alike; set batch_size: 1 in the data loader"
        )
    return Ending(grid, undone, chunks)


def stages_of(
    ending: Ending,
    head: Head,
    function: Postprocessing | Chain | None,
    dtype: torch.dtype,
    written: Container[ChunkId],
    full: Sequence[tuple[int, ...]],
) -> list[Stage]:
    """What the chunks of a head go through behind the division by their weights.

    Args:
        ending: the grid on which they end.
        head: of the network.
        function: its postprocessing.
        dtype: of scores.
        written: the boxes that an earlier run has written.
        full: for each image the spatial size of what MONAI cuts scores out of, if the image is smaller than a window;
            else that of the scores.
    """
    before, after = _sides(function, ending)
    make, label, after = _making(head, after) if ending.moves else (scores, None, after)
    stages: list[Stage] = []
    if function is None or isinstance(function, Chain) or ending.undone is not None:
        stages.append(Cast(dtype))  # as behind the inferer, where scores are of the dtype of its result
    strides = [torch.empty((head.channels, *size), device="meta").stride() for size in full]
    stages += _stages(before, head, ending.grid.size, strides)
    if ending.undone is not None and ending.undone.casts and not ending.moves:
        stages.append(Cast(torch.float32))
    cuts: Sequence[Sequence[int]] = ending.grid.cuts
    for number in range(len(ending.chunks[0]) if ending.moves else 0):
        each = [image[number] for image in ending.chunks]
        last = number == len(ending.chunks[0]) - 1
        made = (label or (torch.float32 if ending.undone and ending.undone.casts else None)) if last else None
        stages.append(Inverse(each, make if last else scores, cuts, made, written if last else ()))
        cuts = each[0].cuts
    return stages + _stages(after, head, ending.size, None if ending.undone is None else ending.undone.strides)


def form_of(ending: Ending, head: Head, function: Postprocessing | Chain | None, dtype: torch.dtype) -> Form | None:
    """The form of the result, where it is known before a chunk is finished."""
    inverted = torch.float32 if ending.undone is not None and ending.undone.casts else None
    if isinstance(function, Chain):
        known = function.known_result(head.channels, dtype, inverted)
        return None if known is None else Form(*known)
    if function is None:
        return Form(head.channels, inverted or dtype)
    return Form(1, label_dtype(head.channels)) if function is argmax else None


def _sides(function: Any, ending: Ending) -> tuple[list[Any], list[Any]]:
    """What is done on the network's grid, and what is done on the patient's grid."""
    if isinstance(function, Chain):
        return list(function.before), list(function.after)
    each = [] if function is None else [function]
    return ([], each) if ending.undone is not None else (each, [])


def _making(head: Head, after: list[Any]) -> tuple[Make, torch.dtype | None, list[Any]]:
    """What is made of pieces, of which dtype, and what is left to do: labels do not need all scores."""
    first = after[0] if after else None
    if first is argmax:
        return (lambda piece, values: piece.labels(values)), label_dtype(head.channels), after[1:]
    if isinstance(first, Step) and isinstance(first.transform, AsDiscreted):
        dtype = _plain_dtype(first.transform)
        if dtype is not None and _is_argmax(first):
            return (lambda piece, values: piece.labels(values)), dtype, after[1:]
        threshold = first.transform.threshold[0]
        if dtype is not None and threshold is not None and not first.transform.argmax[0]:
            return (lambda piece, values: piece.at_least(values, threshold)), dtype, after[1:]
    threshold = _threshold_of_sigmoid(after)
    between = None if threshold is None else undecided(threshold)
    if between is not None:
        return (lambda piece, values: piece.scores_within(values, *between)), None, after
    return scores, None, after


def _threshold_of_sigmoid(after: list[Any]) -> float | None:
    """The threshold, if scores go through a sigmoid and then nothing is asked but whether they reach one."""
    flat: list[Any] = []
    for each in after:
        transform = each.transform if isinstance(each, Step) else each
        if stays_in_memory(transform):
            continue
        flat += transform.transforms if type(transform) is Compose else [transform]
    if (
        len(flat) < 2
        or type(flat[0]) not in (Activations, Activationsd)
        or type(flat[1]) not in (AsDiscrete, AsDiscreted)
    ):
        return None
    sigmoid, softmax, other = (_option(flat[0], name) for name in ("sigmoid", "softmax", "other"))
    argmax_first, to_onehot, threshold = (_option(flat[1], name) for name in ("argmax", "to_onehot", "threshold"))
    alone = sigmoid and not softmax and other is None and not argmax_first and to_onehot is None
    return threshold if alone and isinstance(threshold, (int, float)) else None


def _option(transform: Any, name: str) -> Any:
    """Of an array transform, or of a dictionary transform of one key."""
    value = getattr(transform, name)
    return value[0] if isinstance(value, (list, tuple)) else value


def _plain_dtype(transform: AsDiscreted) -> torch.dtype | None:
    """Of what ``AsDiscreted`` returns, if it does one thing, along the channels."""
    options = transform.converter.kwargs
    plain = transform.to_onehot[0] is None and transform.rounding[0] is None
    if not plain or options.get("dim", 0) != 0 or options.get("keepdim", True) is not True:
        return None
    dtype = options.get("dtype", torch.float)
    return dtype if isinstance(dtype, torch.dtype) else None


def _is_argmax(step: Any) -> bool:
    transform = getattr(step, "transform", None)
    if not isinstance(transform, AsDiscreted):
        return False
    return bool(transform.argmax[0]) and transform.to_onehot[0] is None and transform.threshold[0] is None


def _stages(
    steps: Sequence[Any], head: Head, size: tuple[int, ...], strides: Sequence[tuple[int, ...]] | None
) -> list[Stage]:
    """On a grid of this size.

    Args:
        steps: what is done, one after the other.
        head: of the network.
        size: spatial size of the grid.
        strides: of what the first step gets, for each image; ``None``: voxels lie row by row, as for all other steps.
    """
    stages: list[Stage] = []
    for step in steps:
        kind = _activation(step)
        stages.append(Postprocess(step, head.name) if kind is None else Activation(kind, size, strides))
        strides = strides if isinstance(step, Step) and stays_in_memory(step.transform) else None
    return stages


def _activation(step: Any) -> Kind | None:
    """What it is, if it is nothing but a softmax over the channels or a sigmoid."""
    transform = getattr(step, "transform", None)
    if isinstance(step, Step) and type(transform) is Activationsd and transform.other[0] is None:
        options = transform.converter.kwargs
        softmax, sigmoid = transform.softmax[0], transform.sigmoid[0]
        if bool(softmax) != bool(sigmoid) and options.get("dim", 0) == 0:
            return "softmax" if softmax else "sigmoid"
    return None


def _positions(cuts: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    return set(itertools.product(*[range(len(each) - 1) for each in cuts]))


def _at_resolution(metadata: Metadata, image_size: tuple[int, ...], size: tuple[int, ...]) -> Metadata:
    """Of a result: where the network changes the resolution its voxels lie elsewhere, over the same volume."""
    affine = metadata.get("affine")
    if affine is None or size == image_size:
        return metadata
    affine = torch.as_tensor(affine, dtype=torch.float64)
    dims = affine.shape[-1] - 1
    scale = scale_affine((*image_size, *[1] * dims)[:dims], (*size, *[1] * dims)[:dims])
    return {**metadata, "affine": affine @ torch.as_tensor(scale, dtype=torch.float64)}
