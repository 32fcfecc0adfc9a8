"""
The part of a bundle's postprocessing that can be done a chunk at a time, and the part that cannot.

A list of MONAI's transforms that treat each voxel by itself decides. Whatever is not on it stays behind, and with it
all that comes after it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from copy import copy
from types import NoneType
from typing import Any

from monai.transforms import (
    Activationsd,
    Compose,
    EnsureTyped,
    FillHolesd,
    Identityd,
    Invertd,
    KeepLargestConnectedComponentd,
    Lambdad,
    MapTransform,
    RemoveSmallObjectsd,
    SaveImaged,
    ToDeviced,
    ToNumpyd,
    ToTensord,
)
from monai.utils import CommonKeys

from monai_chunked.inference.chains import Streamed
from monai_chunked.inference.dictionary import DICTIONARY, check_dictionary, restricted
from monai_chunked.inference.vouching import EachVoxel, EachVoxeld

__all__ = ["split", "split_postprocessing"]


PASSED = {*DICTIONARY, SaveImaged, KeepLargestConnectedComponentd, FillHolesd, RemoveSmallObjectsd, Invertd}
"""What reads and writes nothing but its keys, so that of other keys it is done behind with the same result."""


NEUTRAL = {Identityd, SaveImaged, ToDeviced}
"""What leaves of an image all that ``Invertd`` looks at."""


def split_postprocessing(
    transforms: Any, key: Hashable = CommonKeys.PRED, image_key: Hashable = CommonKeys.IMAGE
) -> tuple[Compose | None, Compose | None]:
    """What of a postprocessing the inferer can do a chunk at a time, and what has to stay behind it.

    The first part is the longest beginning that consists of MONAI's dictionary transforms that treat each voxel of the
    prediction by itself, and of what was vouched for with :py:func:`each_voxel`. Both parts in turn give what the whole
    gives. Of a transform of several keys the prediction's part is taken, the rest stays behind.

    Args:
        transforms: a ``Compose``, or a dictionary transform, or a list of them; ``None``: nothing.
        key: of the prediction.
        image_key: of the image, whose transforms ``Invertd`` undoes.

    Returns:
        ``(streamed, behind)``: the inferer's ``postprocessing``, and the postprocessing behind it; ``None`` where
        nothing is left.

    Example::

        streamed, behind = split_postprocessing(postprocessing)
        inferer = ChunkedSlidingWindowInferer(96, postprocessing=streamed)
        evaluator = SupervisedEvaluator(..., inferer=inferer, postprocessing=behind)

    >>> from monai.transforms import AsDiscreted
    >>> ending = [Activationsd("pred", softmax=True), AsDiscreted(["pred", "label"], to_onehot=2), FillHolesd("pred")]
    >>> streamed, behind = split_postprocessing(ending)
    >>> [(type(each).__name__, each.keys) for each in streamed.transforms]
    [('Activationsd', ('pred',)), ('AsDiscreted', ('pred',))]
    >>> [(type(each).__name__, each.keys) for each in behind.transforms]
    [('AsDiscreted', ('label',)), ('FillHolesd', ('pred',))]
    """
    return split(transforms, key, image_key, inverse=True)


def split(transforms: Any, key: Hashable, image_key: Hashable, inverse: bool) -> tuple[Compose | None, Compose | None]:
    """As :py:func:`split_postprocessing`.

    Args:
        transforms: all of them.
        key: of the prediction.
        image_key: of the image.
        inverse: whether ``Invertd`` may be taken.
    """
    whole = transforms if isinstance(transforms, Compose) else Compose(transforms)
    if not whole.transforms:
        return None, None
    if not _is_plain(whole):
        return None, whole
    both = _Split(key, image_key, inverse)
    all_transforms = list(_flat(whole))
    for number, each in enumerate(all_transforms):
        if not both.take(each):
            both.behind += all_transforms[number:]
            break
    if not both.streamed:
        return None, whole
    behind = copy(whole)  # its options and its random state stay what they are
    behind.transforms = tuple(both.behind)
    return Streamed(both.streamed), behind if behind.transforms else None


class _Split:
    """What was taken so far, and what is left.

    Args:
        key: of the prediction.
        image_key: of the image.
        inverse: whether ``Invertd`` may be taken.
    """

    def __init__(self, key: Hashable, image_key: Hashable, inverse: bool) -> None:
        self.key = key
        self.image_key = image_key
        self.inverse = inverse
        self.streamed: list[Any] = []
        self.behind: list[Any] = []

    def take(self, transform: Any) -> bool:
        """Whether all that a transform does to the prediction is taken, so that the next one can be looked at."""
        keys = getattr(transform, "keys", ())
        if isinstance(transform, EachVoxeld) and keys == (self.key,):
            self.streamed.append(transform)
            return True
        if type(transform) not in PASSED or keys.count(self.key) > 1 or _writes_elsewhere(transform):
            return False
        if self.key not in keys or isinstance(transform, ToDeviced):  # where it is makes no difference to what it is
            self._leave(transform)
            return True
        if isinstance(transform, Invertd):
            return self._take_inverse(transform)
        if not _is_known(transform, self.key) or self._is_late(transform):
            return False
        self._take(transform)
        return True

    def _is_late(self, transform: MapTransform) -> bool:
        """Whether it is an activation behind ``Invertd``: what that leaves may lie in memory with gaps or in another
        order, and then PyTorch computes other voxels one by one, whose last bits may differ."""
        return isinstance(transform, Activationsd) and any(isinstance(each, Invertd) for each in self.streamed)

    def _take(self, transform: MapTransform) -> None:
        others = [key for key in transform.keys if key != self.key]
        self.streamed.append(restricted(transform, [self.key]) if others else transform)
        if others:
            self._leave(restricted(transform, others))

    def _take_inverse(self, transform: Invertd) -> bool:
        number = transform.keys.index(self.key)
        does_more = transform.post_func[number] is not None or not transform.to_tensor[number]
        if not self.inverse or does_more or transform.orig_keys[number] != self.image_key:
            return False
        self.inverse = False  # a second one undoes what is on another grid by now
        device = transform.device[number]
        if device is not None:
            transform = copy(transform)
            transform.device = tuple(None if n == number else each for n, each in enumerate(transform.device))
        self._take(transform)
        if device is not None:
            self._leave(ToDeviced(self.key, device))
        return True

    def _leave(self, transform: MapTransform) -> None:
        self.behind.append(transform)
        if self.image_key in transform.keys and type(transform) not in NEUTRAL:
            self.inverse = False  # it undoes what was done to the image, this too


def _is_known(transform: MapTransform, key: Hashable) -> bool:
    """Whether a transform of the prediction is known to give the same in chunks, voxels, class and metadata."""
    number = transform.keys.index(key)
    if type(transform) not in DICTIONARY or isinstance(transform, (Lambdad, ToNumpyd, ToTensord)):
        return False
    if isinstance(transform, Activationsd) and not isinstance(transform.other[number], (EachVoxel, NoneType)):
        return False
    if isinstance(transform, EnsureTyped):
        ensure = transform.converter
        return (ensure.data_type, ensure.device, ensure.track_meta) == ("tensor", None, True)
    try:
        check_dictionary("postprocessing", transform, key)
    except ValueError:
        return False
    return True


def _writes_elsewhere(transform: Any) -> bool:
    return isinstance(transform, Lambdad) and not all(isinstance(each, bool) for each in transform.overwrite)


def _is_plain(compose: Compose) -> bool:
    return type(compose) in (Compose, Streamed) and compose.lazy is False


def _flat(compose: Compose) -> Iterator[Any]:
    options = ("map_items", "unpack_items", "log_stats", "lazy", "overrides")
    for each in compose.transforms:
        if type(each) is Compose and all(getattr(each, name) == getattr(compose, name) for name in options):
            yield from _flat(each)
        else:
            yield each
