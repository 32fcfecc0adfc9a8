"""
A postprocessing as a chain of what each chunk goes through: before the inverse, the inverse, and after it.

``"argmax"``, a callable, or the end of a bundle, dictionary transforms of the prediction: what the user gives becomes a
chain once, when it is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import AsDiscrete, AsDiscreted, Compose, Invertd, Lambdad, MapTransform

from monai_chunked.machine.caller import warn_caller
from monai_chunked.plan.heads import Head
from monai_chunked.transforms.argmax import argmax, chooses_class, is_known, needs_classes, option
from monai_chunked.transforms.dictionary import check_dictionary, check_invert
from monai_chunked.transforms.inversion import Images
from monai_chunked.transforms.voxelwise import check_voxelwise

__all__ = ["Chain", "Chains", "Function", "Step", "Streamed", "all_of", "chains_of", "inside", "of_each"]


Function = Callable[[torch.Tensor], torch.Tensor]
"""``(C, *chunk)`` to ``(C', *chunk)``, each voxel by itself."""


class Streamed(Compose):
    """The part of a postprocessing that the inferer does. What comes behind it is the rest, and knows of it.

    Attributes:
        images: whose operations an ``Invertd`` in it undoes; ``None``: those of the input.
    """

    images: Images | None = None


@dataclass(frozen=True)
class Step:
    """A dictionary transform, called with the tensor of a chunk.

    Attributes:
        transform: MONAI's.
        key: of the tensor in the dictionary that it gets.
    """

    transform: MapTransform
    key: Hashable

    def __call__(self, chunk: Any) -> Any:
        # as behind the inferer, where the network's mixed precision is over
        with torch.autocast(chunk.device.type if isinstance(chunk, torch.Tensor) else "cpu", enabled=False):
            result = self.transform({self.key: chunk})[self.key]
        return result.as_tensor() if isinstance(result, MetaTensor) else result


@dataclass(frozen=True)
class Chain:
    """What is done to the scores of a head; at first nothing is.

    Attributes:
        key: of the prediction, where there are dictionary transforms.
        before: what is done on the network's grid, one after the other.
        invert: what brings it to the patient's grid; ``None``: nothing here does.
        after: what is done on the grid of the result.
        ends: whether nothing that was written for scores comes behind it by mistake.
        images: whose operations ``invert`` undoes; ``None``: those of the input.
    """

    key: Hashable = None
    before: tuple[Function, ...] = ()
    invert: Invertd | None = None
    after: tuple[Function, ...] = ()
    ends: bool = False
    images: Images | None = field(default=None, compare=False)

    def __bool__(self) -> bool:
        return bool(self.before or self.invert or self.after)

    def __call__(self, chunk: Any) -> Any:
        """What is done to a chunk where the grid stays what it is."""
        for function in self.functions:
            chunk = function(chunk)
        return chunk

    @property
    def functions(self) -> tuple[Function, ...]:
        """All but the inverse, in order."""
        return (*self.before, *self.after)

    @property
    def transforms(self) -> tuple[Any, ...]:
        """All of them as they were given, in order."""
        invert = () if self.invert is None else (self.invert,)
        return (*map(inside, self.before), *invert, *map(inside, self.after))

    @property
    def is_argmax(self) -> bool:
        """Whether it is ``"argmax"``."""
        return argmax in self.functions

    @property
    def of_dictionaries(self) -> bool:
        """Whether it consists of dictionary transforms, which get what the inferer returns without them."""
        return self.key is not None

    @property
    def given(self) -> Any:
        """What a fingerprint is made of: not of ``Invertd``, because what that does is known more exactly."""
        if self.of_dictionaries:
            return self if self.invert is None else (self.key, self.before, self.after)
        return "argmax" if self.is_argmax else next(iter(self.after), None)

    @property
    def reduces(self) -> bool:
        """Whether many scores become one label."""
        return self.is_argmax or any(isinstance(step, AsDiscreted) and chooses_class(step) for step in self.transforms)

    @property
    def ends_in_labels(self) -> bool:
        """Whether labels or masks come out, of which no class can be chosen any more.

        >>> masks, classes = Compose([torch.sigmoid, AsDiscrete(threshold=0.5)]), AsDiscrete(to_onehot=4)
        >>> chains_of(masks).ends_in_labels, chains_of(classes).ends_in_labels
        (True, False)
        """
        last = self.transforms[-1] if self else None
        while isinstance(last, Compose) and last.transforms:
            last = last.transforms[-1]
        if isinstance(last, (AsDiscrete, AsDiscreted)):
            return option(last, "threshold") is not None or chooses_class(last)
        return last is argmax

    def form(
        self, channels: int, dtype: torch.dtype, inverted: torch.dtype | None = None
    ) -> tuple[int, torch.dtype] | None:
        """Channels and dtype of what becomes of scores; ``None`` if only code that is not MONAI's can tell.

        Args:
            channels: of scores.
            dtype: of scores.
            inverted: that voxels have on the patient's grid; ``None``: that which they had.
        """
        if any(map(_calls_others, self.transforms)):
            return None
        voxel = self.voxel_before(channels, dtype)
        voxel = _through(self.after, voxel.to(inverted or voxel.dtype))
        return voxel.shape[0], voxel.dtype

    def voxel_before(self, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """What becomes of a voxel of scores before it is brought to the patient's grid, ``(C', 1, 1, 1)``."""
        return _through(self.before, torch.zeros(channels, 1, 1, 1, dtype=dtype))

    def warn_of_one_channel(self, head: Head) -> None:
        """Warn where MONAI's argmax or softmax gets one channel: it makes one number of all voxels.

        What is not MONAI's or PyTorch's is not called to find out how many channels it leaves.
        """
        voxel = torch.zeros(head.channels, 1, 1, 1)
        for function in _flat(self.functions):
            if not is_known(transform := inside(function)):
                return
            if len(voxel) == 1 and (chosen := needs_classes(transform)) is not None:
                name, value = chosen
                return warn_caller(
                    f"postprocessing contains {name}, which gets one channel of the {head.name}, so that every voxel "
                    f"becomes {value}, as in MONAI. If the network ends in a sigmoid, use AsDiscrete(threshold=0.5); "
                    f"if it does not, Activations(sigmoid=True) before that"
                )
            voxel = torch.as_tensor(function(voxel))


Chains = Chain | Sequence[Chain] | Mapping[Hashable, Chain]
"""One for all heads of the network, or one for each, as it was given."""


def chains_of(postprocessing: object) -> Chains:
    """What the user gave, checked, as chains.

    Args:
        postprocessing: ``"argmax"``, a callable, ``None``, a tuple, list or dict of them, or a dictionary transform, a
            ``Compose`` or a list of them.

    Raises:
        ValueError: for what does not treat each voxel by itself; when dictionary transforms are not of one key, or
            invert twice.
        TypeError: for dictionary transforms beside others, and for classes that were not called.

    >>> from monai.transforms import Activationsd, AsDiscreted
    >>> chain = chains_of(Compose([Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)]))
    >>> chain.key, len(chain.before), chain.invert, chain.after
    ('pred', 2, None, ())
    """
    transforms = list(_flat(postprocessing))
    if not transforms or not all(isinstance(transform, MapTransform) for transform in transforms):
        return of_each(_of_function, postprocessing)
    chain = _of_dictionaries(transforms)
    if isinstance(postprocessing, Streamed):
        return replace(chain, ends=True, images=postprocessing.images)
    return chain


def of_each(function: Callable[[Any], Any], given: Any) -> Any:
    """What a function makes of what was given for all heads of the network, or for each."""
    if isinstance(given, dict):
        return {key: function(value) for key, value in given.items()}
    if isinstance(given, (list, tuple)):
        return (list if isinstance(given, list) else tuple)(map(function, given))
    return function(given)


def all_of(chains: Chains) -> list[Chain]:
    """Every chain, or the one that is for all heads."""
    every: list[Chain] = []
    of_each(every.append, chains)
    return every


def inside(function: Function) -> Any:
    """What the user gave for a function of a chain."""
    return function.transform if isinstance(function, Step) else function


def _of_function(function: object) -> Chain:
    if function is None:
        return Chain()
    if isinstance(function, str) and function == "argmax":
        return Chain(after=(argmax,))
    if not callable(function):
        raise ValueError(
            f"postprocessing={function!r} must be 'argmax', a callable that maps (C, *chunk) to (C', *chunk), or None"
        )
    check_voxelwise("postprocessing", function)
    return Chain(after=(function,))


def _of_dictionaries(transforms: Sequence[MapTransform]) -> Chain:
    key = _key(transforms)
    inverts = [transform for transform in transforms if isinstance(transform, Invertd)]
    if len(inverts) > 1:
        raise ValueError(
            f"postprocessing contains Invertd {len(inverts)} times, but a prediction can be brought to the patient's "
            f"grid once; leave the second one to the result, behind the inferer"
        )
    steps: list[tuple[Step, ...]] = [()]
    for transform in transforms:
        if isinstance(transform, Invertd):
            steps.append(())
        else:
            check_dictionary("postprocessing", transform, key)
            steps[-1] += (Step(transform, key),)
    if not inverts:
        return Chain(key, steps[0])
    check_invert("postprocessing", inverts[0])
    return Chain(key, steps[0], inverts[0], steps[1])


def _key(transforms: Sequence[MapTransform]) -> Hashable:
    for transform in transforms:
        if len(transform.keys) != 1:
            name, keys = type(transform).__name__, list(transform.keys)
            raise ValueError(
                f"postprocessing contains {name} with keys={keys}, but the inferer has one prediction; give its key "
                f"alone, and the other keys to a transform behind the inferer (split_postprocessing does so)"
            )
    key, *others = dict.fromkeys(transform.keys[0] for transform in transforms)
    if others:
        raise ValueError(
            f"postprocessing contains transforms of the keys {', '.join(map(repr, (key, *others)))}, but the inferer "
            f"has one prediction; leave those of the other keys to the result, behind the inferer "
            f"(split_postprocessing does so)"
        )
    return key


def _flat(transforms: Any) -> Iterator[Any]:
    held = transforms.transforms if type(transforms) in (Compose, Streamed) else transforms
    if not isinstance(held, (list, tuple)):
        yield held
        return
    for transform in held:
        yield from _flat(transform)


def _through(functions: Sequence[Function], voxel: torch.Tensor) -> torch.Tensor:
    for function in functions:
        voxel = torch.as_tensor(function(voxel))
    return voxel


def _calls_others(transform: object) -> bool:
    """Whether it calls code that is neither in MONAI's dictionary transforms nor ours."""
    if not isinstance(transform, MapTransform):
        return transform is not argmax
    own = not type(transform).__module__.startswith("monai.")
    return own or isinstance(transform, Lambdad) or any(getattr(transform, "other", ()))
