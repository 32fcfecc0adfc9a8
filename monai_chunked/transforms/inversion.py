"""How the predictions of a batch are brought to the patients' own grids, known before the network runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from monai import transforms
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import collate_meta_tensor_fn, decollate_batch
from monai.transforms import Invertd, InvertibleTransform
from monai.transforms.utils import convert_applied_interp_mode
from monai.utils import TraceKeys

from monai_chunked.resampling.axes import ChunkResampling, Resampling, Unstreamable, in_one_order
from monai_chunked.transforms.operations import resamplings
from monai_chunked.transforms.tracing import trace

__all__ = ["DifferentGrids", "ImageInverse", "Images", "Inversion", "Undone", "by_invertd"]


CHANNELS = 2
"""Channels of the predictions that are followed."""


Undo = Callable[[MetaTensor, MetaTensor], Any]
"""From the metadata of an image and its prediction, ``(C, *spatial)``, to the prediction on the patient's grid."""


@dataclass(frozen=True)
class ImageInverse:
    """Undo what was done to an image, as its ``applied_operations`` say, for its prediction.

    Args:
        nearest_interp: take the nearest voxel where voxels are interpolated. For labels; scores are better interpolated
            as the image was.

    Example::

        inferer = ChunkedSlidingWindowInferer(96, postprocessing="argmax", inverse=ImageInverse())
    """

    nearest_interp: bool = False

    def __call__(self, image: MetaTensor, prediction: MetaTensor) -> MetaTensor:
        """MONAI's own inverse of each operation, the last one first.

        Raises:
            ValueError: when an operation has no inverse that is known.
        """
        operations = deepcopy(image.applied_operations)
        if self.nearest_interp:
            operations = convert_applied_interp_mode(operations, mode="nearest", align_corners=None)
        prediction.applied_operations = operations
        prediction.meta = deepcopy(image.meta)
        while prediction.applied_operations:
            last = prediction.applied_operations[-1]
            more = last.get(TraceKeys.EXTRA_INFO) or {}  # some are made of a pad and a crop
            for recorded in (last, more.get("pad_info", {}), more.get("crop_info", {})):
                recorded[TraceKeys.ID] = TraceKeys.NONE  # it is not the very object that was applied
            prediction = _transform_of(last).inverse(prediction)
        return prediction


class DifferentGrids(ValueError):
    """The images of a batch end on grids of different sizes, so that their predictions cannot be one tensor."""


@dataclass(frozen=True)
class Images:
    """What a batch of images says of itself, without its voxels.

    Attributes:
        templates: for each image a tensor without voxels that has its metadata.
        is_batch: whether they were collated, so that what is made of them is taken apart again.
    """

    templates: tuple[MetaTensor, ...]
    is_batch: bool

    @classmethod
    def of_batch(cls, batch: MetaTensor) -> Images:
        """Those that MONAI takes a batch apart into.

        Args:
            batch: ``(B, C, *spatial)``.
        """
        return cls(tuple(map(_without_voxels, decollate_batch(batch))), batch.is_batch)


@dataclass(frozen=True)
class Undone:
    """What an inverse does to predictions of one size.

    Attributes:
        resamplings: for each image, one after the other; none if voxels stay where they are.
        templates: for each image a tensor without voxels, with the metadata that the prediction has afterwards.
        size: spatial size afterwards, in voxels.
        casts: whether voxels become float32, whatever they were.
        strides: for each image, those that its prediction, of any number of channels that lie one behind the other, has
            in memory when MONAI has undone all of it.
    """

    resamplings: tuple[tuple[Resampling, ...], ...]
    templates: tuple[MetaTensor, ...]
    size: tuple[int, ...]
    casts: bool
    strides: tuple[tuple[int, ...], ...]

    def chunks(self, cuts: Sequence[Sequence[int]]) -> tuple[tuple[ChunkResampling, ...], ...]:
        """For each image, how chunks make the patient's grid.

        Args:
            cuts: for each dimension of the network's grid, where chunks begin, and the size.
        """
        images = []
        for of_image in self.resamplings:
            chunks, now = [], [tuple(along) for along in cuts]
            for resampling in of_image:
                chunks.append(resampling.over(now))
                now = list(chunks[-1].cuts)
            images.append(tuple(chunks))
        return tuple(images)


class Inversion:
    """How the predictions of a batch are brought to the patients' grids.

    What is pickled of it is what it has found out, because ``Invertd`` undoes what its own transforms have done, and in
    another process they are other objects.

    Args:
        images: whose operations are undone.
        undo: what is done to each.
        padded: spatial size of the images and of what they were padded to, which predictions are cut from.

    Raises:
        ValueError: when the images do not say what was done to them.
    """

    def __init__(self, images: Images, undo: Undo, padded: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        if not images.templates:
            raise ValueError(
                "the prediction cannot be brought to the patient's grid: the input has no metadata that says what was "
                "done to it; give a MetaTensor, as LoadImaged and the transforms behind it make it"
            )
        if any(template.pending_operations for template in images.templates):
            raise ValueError(
                "the input has pending operations (of transforms with lazy=True) that were not applied; apply them "
                "first, with monai.transforms.ApplyPendingd at the end of the preprocessing"
            )
        self.images = images
        self.undo = undo
        self.padded = padded
        self._known: dict[tuple[int, ...], Undone] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_known": self._known}

    def over(self, size: tuple[int, ...]) -> Undone:
        """What is done to predictions of this spatial size, found out once.

        Raises:
            Unstreamable: when it cannot be done a chunk at a time.
            DifferentGrids: when the images of a batch end on grids of different sizes.
        """
        if size not in self._known:
            self._known[size] = self._over(size)
        return self._known[size]

    def _over(self, size: tuple[int, ...]) -> Undone:
        image_size, padded = self.padded
        # two channels: of a single one nobody can say how far apart they are
        whole = torch.empty((CHANNELS, *(padded if size == image_size else size)), device="meta")
        prediction = whole[(slice(None), *map(slice, size))]
        traces = [trace(prediction, partial(self.undo, template)) for template in self.images.templates]
        sizes = {tuple(of_image.result.shape[1:]) for of_image in traces}
        if len(sizes) > 1:
            raise DifferentGrids(
                f"the images of a batch must end on grids of one size, but they have {', '.join(map(str, sizes))} "
                f"voxels; set batch_size: 1 in the data loader"
            )
        return Undone(
            resamplings=in_one_order([resamplings(of_image) for of_image in traces]),
            templates=tuple(_without_voxels(of_image.result) for of_image in traces),
            size=sizes.pop(),
            casts=any(operation.name == "_to_copy" for of_image in traces for operation in of_image.operations),
            strides=tuple(of_image.strides for of_image in traces),
        )

    def why_whole(self, size: tuple[int, ...], dtype: torch.dtype) -> str | None:
        """Why predictions of this size and dtype cannot be inverted a chunk at a time; ``None`` if they can."""
        if dtype != torch.float32:
            return f"scores are {dtype}"
        try:
            self.over(size)
        except Unstreamable as error:
            return str(error)
        return None

    def batch(self, templates: Sequence[MetaTensor]) -> MetaTensor:
        """A tensor without voxels, with the metadata of the batch, made of those with the metadata of each image."""
        if len(templates) == 1 and not self.images.is_batch:
            return templates[0]
        return collate_meta_tensor_fn(list(templates))


def by_invertd(invert: Invertd, key: Hashable) -> Undo:
    """What ``Invertd`` does to the prediction under a key."""
    (image_key,) = invert.orig_keys

    def undo(image: MetaTensor, prediction: MetaTensor) -> Any:
        return invert({key: prediction, image_key: image})[key]

    return undo


def _without_voxels(image: MetaTensor) -> MetaTensor:
    """A tensor that has the metadata alone."""
    return MetaTensor(torch.zeros(0)).copy_meta_from(image, copy_attr=False)


def _transform_of(operation: dict[str, Any]) -> InvertibleTransform:
    """An object whose ``inverse`` undoes an operation with what that recorded."""
    name = operation[TraceKeys.CLASS_NAME]
    make = MAKE.get(name)
    kind = getattr(transforms, name, None)
    if make is None and isinstance(kind, type) and issubclass(kind, (transforms.Pad, transforms.Crop)):
        return kind.__new__(kind)  # what it adds and takes away is in the operation
    if make is None:
        raise ValueError(
            f"inverse= does not know how to undo {name}, which was applied to the input; it knows "
            f"{', '.join(MAKE)}, pads and crops. Invertd with the preprocessing in postprocessing= undoes whatever has "
            f"an inverse"
        )
    return make(operation.get(TraceKeys.EXTRA_INFO) or {})


MAKE: dict[str, Callable[[dict[str, Any]], InvertibleTransform]] = {
    "Orientation": lambda _: transforms.Orientation(axcodes="RAS", labels=None),
    "Spacing": lambda _: transforms.Spacing(pixdim=1.0),
    "SpatialResample": lambda _: transforms.SpatialResample(),
    "ResampleToMatch": lambda _: transforms.ResampleToMatch(),
    "Resize": lambda _: transforms.Resize(spatial_size=1),
    "Zoom": lambda _: transforms.Zoom(zoom=1.0),
    "Flip": lambda recorded: transforms.Flip(recorded["axes"]),
    "Rotate90": lambda _: transforms.Rotate90(),
    "Rotate": lambda _: transforms.Rotate(angle=0.0),
    "CropForeground": lambda _: transforms.CropForeground(),
    "ResizeWithPadOrCrop": lambda _: transforms.ResizeWithPadOrCrop(spatial_size=1),
}
"""Transforms by name, made of what was recorded; most of their inverses look that up themselves."""
