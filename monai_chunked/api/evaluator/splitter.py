"""
How far a postprocessing can be taken: transform after transform, until one cannot be done a chunk at a time.

Of a transform the voxels may be taken and the rest left behind: on which device the result is, and what is written in
its metadata, is of the whole result, and any transform but ``Invertd`` hands it on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from copy import copy
from typing import Any

import torch
from monai import config
from monai.data.meta_obj import get_track_meta
from monai.transforms import (
    Activationsd,
    DeleteItemsd,
    EnsureTyped,
    Invertd,
    MapTransform,
    SelectItemsd,
    ToDeviced,
    ToTensord,
)

from monai_chunked.transforms.dictionary import restricted
from monai_chunked.transforms.each_voxel import EachVoxel, EachVoxeld
from monai_chunked.transforms.reasons import (
    KEEPS_CLASS,
    PASSED,
    PostFunc,
    deletes_keys_alone,
    keeps_metadata,
    name_of,
    stays_in_memory,
    why_whole_volume,
    written_by,
)

__all__ = ["Splitter"]


class Splitter:
    """What was taken so far, and what is left.

    Args:
        key: of the prediction.
        image_key: of what the inferer gets; ``None``: any image will do.
        without_inverse: why ``Invertd`` may not be taken; ``None``: it may.

    Attributes:
        streamed: what was taken.
        behind: what is left.
        next: what comes next, the first one first.
        inverted: whether ``Invertd`` was taken.
        changed: for each key that is not what it was, the name of the transform that has changed it.
        selected: the keys that are left; ``None``: all.
        device: on which MONAI has the prediction now; ``None``: where it was.
        recorded: the part of what is left that only changes metadata of the prediction.
        dropped_by: what has dropped the metadata of the prediction; ``None``: it is there.
    """

    def __init__(self, key: Hashable, image_key: Hashable | None, without_inverse: str | None) -> None:
        self.key, self.image_key = map(_plain, (key, image_key))
        self.without_inverse = without_inverse
        self.streamed: list[MapTransform] = []
        self.behind: list[Any] = []
        self.next: deque[Any] = deque()
        self.inverted = False
        self.changed: dict[Hashable, str] = {}
        self.selected: set[Hashable] | None = None
        self.device: torch.device | str | None = None
        self.recorded: list[MapTransform] = []
        self.dropped_by: str | None = None

    def take(self, transforms: Iterator[Any]) -> str | None:
        """Take as many as possible, and leave the rest; returns why there is one."""
        self.next.extend(transforms)
        while self.next:
            transform = self.next.popleft()
            if (reason := self._take(transform)) is not None:
                self.behind += [transform, *self.next]
                return reason
        return None

    def _take(self, transform: Any) -> str | None:
        """Take all that a transform does to the prediction, or say why not."""
        keys = getattr(transform, "keys", ())
        if isinstance(transform, EachVoxeld):
            return self._take_vouched(transform)
        if not isinstance(transform, MapTransform):
            return f"{name_of(transform)} is no dictionary transform with keys"
        if keys.count(self.key) > 1:
            return f"{name_of(transform)} has the key {self.key!r} {keys.count(self.key)} times"
        kind = type(transform)
        if self.key not in keys or kind is SelectItemsd:
            return self._pass(transform)
        if isinstance(transform, ToDeviced) and kind is ToDeviced:  # it is the last device that the result is on
            self._leave(transform)
            self.device = transform.converter.device
            return None
        if (reason := self._why_not(transform, kind)) is not None:
            return reason if reason is self.without_inverse else f"{name_of(transform)} {reason}"
        others = [key for key in keys if key != self.key]
        own: Any = restricted(transform, [self.key]) if others else transform
        if kind is Invertd:
            self._take_inverse(own)
        elif kind is ToTensord:
            self._take_tensor(own)
        elif kind is EnsureTyped:
            self._take_typed(own)
        else:
            self._stream(own)
        if others:
            self._leave(restricted(transform, others))
        return None

    def _why_not(self, transform: Any, kind: type[MapTransform]) -> str | None:
        if kind is Invertd:
            return self._why_not_inverse(transform.orig_keys[transform.keys.index(self.key)])
        return None if kind is ToTensord else why_whole_volume(transform, self.key) or self._why_late(transform)

    def _take_vouched(self, transform: EachVoxeld) -> str | None:
        if transform.keys == (self.key,):
            self._stream(transform)
            return None
        if self.key not in transform.keys and type(transform.transform) in PASSED:
            return self._pass(transform.transform)
        return f"{name_of(transform)} is vouched for other keys than {self.key!r} alone"

    def _pass(self, transform: Any) -> str | None:
        """Leave what does nothing to the prediction."""
        kind, name = type(transform), name_of(transform)
        if kind not in PASSED:
            return f"{name} is none of the transforms that are known to leave {self.key!r} alone"
        written = written_by(transform)
        if self.key in written:
            return f"{name} writes {self.key!r}"
        if kind is SelectItemsd:
            if self.key not in transform.keys:
                return f"{name} drops {self.key!r}"
            self.selected = set(transform.keys)
        if kind is DeleteItemsd and not deletes_keys_alone(transform):
            return f"{name} deletes keys by a pattern, or parts of them"
        self._leave(transform)
        return None

    def _leave(self, transform: MapTransform) -> None:
        self.behind.append(transform)
        # where any image will do, images_of looks whether the one that is undone has metadata
        kept = keeps_metadata(transform) and not (self.image_key is not None and isinstance(transform, EnsureTyped))
        changed = (*(() if kept else transform.keys), *written_by(transform))
        self.changed.update(dict.fromkeys(changed, name_of(transform)))

    def _stream(self, transform: MapTransform) -> None:
        if self.dropped_by is not None and type(transform) not in KEEPS_CLASS:
            self._record(EnsureTyped(self.key))  # it makes a MetaTensor again, of a tensor without metadata
            self.dropped_by = None
        if self.device is not None and isinstance(transform, Activationsd):  # other devices compute other last bits
            self.streamed.append(ToDeviced(self.key, self.device))
        self.streamed.append(transform)

    def _record(self, transform: MapTransform) -> None:
        """Leave what changes the metadata of the prediction, which any but ``Invertd`` hands on."""
        self.behind.append(transform)
        self.recorded.append(transform)

    def _why_late(self, transform: MapTransform) -> str | None:
        """Why an activation cannot be taken behind ``Invertd``.

        PyTorch computes some voxels one by one, with other last bits: which, depends on where they lie in memory. That
        is known of what ``Invertd`` leaves, but not of what others make of it.
        """
        if not self.inverted or not isinstance(transform, Activationsd):
            return None
        number = transform.keys.index(self.key)
        if transform.other[number] is not None:
            return "has other=, whose last bits may depend on where Invertd leaves scores in memory"
        between = next((earlier for earlier in reversed(self.streamed) if not stays_in_memory(earlier)), None)
        if transform.sigmoid[number] and not isinstance(between, Invertd):
            return f"has last bits that depend on where {name_of(between)}, behind Invertd, leaves scores in memory"
        return None

    def _take_typed(self, transform: EnsureTyped) -> None:
        """Take the cast. To move the result and to drop its metadata is left for the whole."""
        given = transform.converter
        if given.device is None and given.track_meta:
            self._stream(transform)
            return
        bare = _with_converter(transform, device=None, track_meta=True)
        self._stream(bare)
        self._move(given.device)
        if not given.track_meta:
            dropping = _with_converter(bare, track_meta=False)
            dropping.dtype = (None,)
            self._record(dropping)
            self.dropped_by = name_of(transform)

    def _take_tensor(self, transform: ToTensord) -> None:
        """Take the cast. What else it does is recorded in the metadata of the whole."""
        given = transform.converter
        self._stream(EnsureTyped(self.key, dtype=given.dtype))
        plain = (given.dtype, given.device) == (None, None)
        self._record(transform if plain else _with_converter(transform, dtype=None, device=None))
        self._move(given.device)
        self.dropped_by = None if given.track_meta else name_of(transform)

    def _move(self, device: torch.device | str | None) -> None:
        if device is not None:
            self.behind.append(ToDeviced(self.key, device))
            self.device = device

    def _take_inverse(self, transform: Invertd) -> None:
        """Take what it does to voxels and metadata, and look at its ``post_func`` next."""
        bare = copy(transform)
        bare.device, bare.post_func, bare.to_tensor = (None,), (None,), (True,)  # MONAI's inverse gives a MetaTensor
        self.behind = [left for left in self.behind if not any(left is record for record in self.recorded)]
        self.dropped_by = None
        self.inverted = True
        self._stream(bare)
        self._move(transform.device[0])
        if callable(function := transform.post_func[0]):
            self.next.appendleft(_of_post_func(function, self.key))

    def _why_not_inverse(self, image_key: Hashable) -> str | None:
        """Why ``Invertd`` cannot be taken that undoes what was done to an image."""
        undoes = f"undoes what was done to {image_key!r}"
        if self.inverted:
            return "is the second one, and what it undoes is on another grid by now"
        if self.without_inverse is not None:
            return self.without_inverse
        if not get_track_meta():
            return "needs metadata, which set_track_meta(False) has switched off"
        if config.USE_META_DICT:
            return "writes metadata as a dictionary of its own, with monai.config.USE_META_DICT"
        if image_key == self.key:
            return f"{undoes}, the prediction itself"
        if self.image_key is not None and image_key != self.image_key:
            return f"{undoes}, but the inferer gets {self.image_key!r}; give split_postprocessing the batch="
        if self.selected is not None and image_key not in self.selected:
            return f"{undoes}, which SelectItemsd drops before"
        if image_key in self.changed:
            return f"{undoes}, which {self.changed[image_key]} changes before"
        if self.dropped_by is not None:
            return f"does nothing to a prediction without metadata, which {self.dropped_by} drops before"
        return None


def _plain(key: Hashable) -> Hashable:
    """A key as plain text, also if it is one of MONAI's enums."""
    return str(key) if isinstance(key, str) else key


def _of_post_func(function: Callable[[Any], Any], key: Hashable) -> MapTransform:
    own = PostFunc(key, function)
    return EachVoxeld(own, own.keys) if isinstance(function, EachVoxel) else own


def _with_converter(transform: EnsureTyped | ToTensord, **changes: Any) -> Any:
    """The same transform with other parameters of its array transform."""
    result = copy(transform)
    result.converter = copy(transform.converter)
    for name, value in changes.items():
        setattr(result.converter, name, value)
    return result
