"""
The part of a bundle's postprocessing that can be done a chunk at a time, and the part that cannot.

A list of MONAI's transforms that treat each voxel by itself decides. Whatever is not on it stays behind, and with it
all that comes after it. Why it does is always said, by the first transform that cannot be taken.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, Invertd, InvertibleTransform
from monai.utils import CommonKeys

from monai_chunked.api.evaluator.splitter import Splitter
from monai_chunked.transforms.chain import Streamed
from monai_chunked.transforms.inversion import Images
from monai_chunked.transforms.reasons import KEEPS_CLASS, name_of

__all__ = ["Split", "images_of", "split", "split_postprocessing", "with_images"]


logger = logging.getLogger("monai_chunked")


@dataclass(frozen=True)
class Split:
    """A postprocessing in two parts, which in turn give what the whole gives.

    Attributes:
        streamed: what the inferer can do a chunk at a time; ``None``: nothing.
        behind: what is left for the whole result; ``None``: nothing.
        reason: why the inferer does not do all that is done to the prediction: a transform, and what about it; ``None``
            if it does.
    """

    streamed: Streamed | None
    behind: Any
    reason: str | None = None


def split_postprocessing(
    transforms: Any,
    key: Hashable = CommonKeys.PRED,
    image_key: Hashable = CommonKeys.IMAGE,
    *,
    batch: Mapping[Hashable, Any] | None = None,
) -> tuple[Compose | None, Compose | None]:
    """What of a postprocessing the inferer can do a chunk at a time, and what has to stay behind it.

    The first part is the longest beginning that consists of MONAI's dictionary transforms that treat each voxel of the
    prediction by itself, of ``Invertd``, and of what was vouched for with :py:func:`each_voxel`. Both parts in turn
    give what the whole gives. Of a transform of several keys the prediction's part is taken, the rest stays behind. Why
    anything of the prediction's stays behind is logged by the logger ``monai_chunked``, at the level INFO.

    Args:
        transforms: a ``Compose``, or a dictionary transform, or a list of them; ``None``: nothing.
        key: of the prediction.
        image_key: of what the inferer gets, whose transforms ``Invertd`` undoes.
        batch: what the data loader gives. With it, ``Invertd`` undoes what was done to any image of the batch
            (``orig_keys="t1"``, where the inferer gets several images as one); split again for the next batch. Without
            it, only what was done to the image that the inferer gets.

    Returns:
        ``(streamed, behind)``: the inferer's ``postprocessing``, and the postprocessing behind it; ``None`` where
        nothing is left.

    Example::

        streamed, behind = split_postprocessing(postprocessing)
        inferer = ChunkedSlidingWindowInferer(96, postprocessing=streamed)
        evaluator = SupervisedEvaluator(..., inferer=inferer, postprocessing=behind)

    >>> from monai.transforms import Activationsd, AsDiscreted, FillHolesd
    >>> ending = [Activationsd("pred", softmax=True), AsDiscreted(["pred", "label"], to_onehot=2), FillHolesd("pred")]
    >>> streamed, behind = split_postprocessing(ending)
    >>> [(type(transform).__name__, transform.keys) for transform in streamed.transforms]
    [('Activationsd', ('pred',)), ('AsDiscreted', ('pred',))]
    >>> [(type(transform).__name__, transform.keys) for transform in behind.transforms]
    [('AsDiscreted', ('label',)), ('FillHolesd', ('pred',))]
    """
    if batch is None:
        parts = split(transforms, key, image_key)
    else:
        parts = with_images(transforms, key, batch, batch.get(image_key))
    if parts.reason is not None:
        logger.info("left behind the inferer: %s", parts.reason)
    return parts.streamed, parts.behind


def with_images(transforms: Any, key: Hashable, data: Any, image: Any) -> Split:
    """A split whose ``Invertd`` undoes what was done to an image of the batch, whichever it names.

    Args:
        transforms: all of them.
        key: of the prediction.
        data: what the postprocessing is going to get beside the prediction, before it is decollated.
        image: what the network sees, ``(B, C, *spatial)``.
    """
    parts = split(transforms, key, None)
    images = None if parts.streamed is None else images_of(parts.streamed, data, image)
    if isinstance(images, str):
        return split(transforms, key, None, images)
    if parts.streamed is not None:
        parts.streamed.images = images
    return parts


def images_of(streamed: Streamed, data: Any, image: Any) -> Images | str | None:
    """The images whose operations the ``Invertd`` among some transforms undoes, as MONAI finds them.

    Args:
        streamed: the transforms.
        data, image: as for :py:func:`with_images`.

    Returns:
        the images; ``None``: nothing is undone; or why ``Invertd`` does something else.
    """
    inverts = [number for number, transform in enumerate(streamed.transforms) if isinstance(transform, Invertd)]
    if not inverts:
        return None
    invert = streamed.transforms[inverts[0]]
    own, key = name_of(invert), invert.orig_keys[0]
    told = f"{own} undoes what was done to {key!r}"
    if not isinstance(data, Mapping) or key not in data:
        return f"{told}, which is not in the batch"
    value = data[key]
    if not isinstance(value, MetaTensor) or value.dim() < 2:
        return f"{told}, which is {type(value).__name__} in the batch and does not say it"
    written = (InvertibleTransform.trace_key(key), invert.orig_meta_keys[0] or f"{key}_{invert.meta_key_postfix[0]}")
    if present := [name for name in written if name in data]:
        return f"{own} reads and writes {present[0]!r}, which is in the batch"
    gets_metadata = any(type(transform) not in KEEPS_CLASS for transform in streamed.transforms[: inverts[0]])
    if not gets_metadata and not isinstance(image, MetaTensor):
        return f"{own} does nothing to a prediction without metadata, and what the network sees has none"
    if len(value) != len(image):
        return f"{told}, of which there are {len(value)} in the batch, but the network sees {len(image)}"
    images = Images.of_batch(value)
    if any(template.pending_operations for template in images.templates):
        return f"{told}, which has pending operations (of transforms with lazy=True)"
    return images


def split(transforms: Any, key: Hashable, image_key: Hashable | None, without_inverse: str | None = None) -> Split:
    """Split a postprocessing, and log nothing.

    Args:
        transforms: all of them.
        key: of the prediction.
        image_key: of what the inferer gets; ``None``: ``Invertd`` may undo what was done to any image, and the caller
            sets ``streamed.images`` to its :py:func:`images_of`.
        without_inverse: why ``Invertd`` may not be taken; ``None``: it may.
    """
    whole = transforms if isinstance(transforms, Compose) else Compose(transforms)
    if not whole.transforms:
        return Split(None, None)
    if (reason := _why_not_plain(whole)) is not None:
        return Split(None, whole, reason)
    splitter = Splitter(key, image_key, without_inverse)
    reason = splitter.take(_flat(whole))
    if not splitter.streamed:
        return Split(None, whole, reason)
    behind = copy(whole)  # its options and its random state stay what they are
    behind.transforms = tuple(splitter.behind)
    return Split(Streamed(splitter.streamed), behind if behind.transforms else None, reason)


def _why_not_plain(compose: Compose) -> str | None:
    """Why the transforms of a ``Compose`` are not just called one after the other; ``None`` if they are."""
    if type(compose) not in (Compose, Streamed):
        return f"{type(compose).__name__} chooses what it does, or in which order, each time"
    return None if compose.lazy is False else f"Compose with lazy={compose.lazy} puts operations off"


def _flat(compose: Compose) -> Iterator[Any]:
    options = ("map_items", "unpack_items", "log_stats", "lazy", "overrides")
    for transform in compose.transforms:
        if type(transform) is Compose and all(getattr(transform, name) == getattr(compose, name) for name in options):
            yield from _flat(transform)
        else:
            yield transform
