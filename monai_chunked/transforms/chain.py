"""
The end of a bundle, dictionary transforms of the prediction, as a chain of what each chunk goes through.

What is around ``Invertd`` treats each voxel by itself; ``Invertd`` in between brings it to the patient's grid.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import AsDiscreted, Compose, Invertd, Lambdad, MapTransform

from monai_chunked.transforms.inversion import Images

__all__ = ["Chain", "Step", "Streamed", "chain_of"]


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
    """Dictionary transforms that make the result of the prediction.

    Attributes:
        key: of the prediction.
        before: each ``(C, *chunk)`` to ``(C', *chunk)``, on the network's grid.
        invert: what brings it to the patient's grid, if anything does.
        after: as ``before``, on the grid that ``invert`` brings to.
        ends: whether nothing that was written for scores comes behind it by mistake.
        images: whose operations ``invert`` undoes; ``None``: those of the input.
    """

    key: Hashable
    before: tuple[Step, ...]
    invert: Invertd | None
    after: tuple[Step, ...]
    ends: bool = False
    images: Images | None = field(default=None, compare=False)

    @property
    def transforms(self) -> tuple[MapTransform, ...]:
        """All of them, in order."""
        invert = () if self.invert is None else (self.invert,)
        return (*(step.transform for step in self.before), *invert, *(step.transform for step in self.after))

    @property
    def reduces(self) -> bool:
        """Whether many scores become one label."""
        kinds = [each for each in self.transforms if isinstance(each, AsDiscreted)]
        return any(each.argmax[0] and each.to_onehot[0] is None for each in kinds)

    def known_result(
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
        voxel = voxel.to(inverted or voxel.dtype)
        for step in self.after:
            voxel = torch.as_tensor(step(voxel))
        return voxel.shape[0], voxel.dtype

    def voxel_before(self, channels: int, dtype: torch.dtype) -> torch.Tensor:
        """What becomes of a voxel of scores before it is brought to the patient's grid, ``(C', 1, 1, 1)``."""
        voxel = torch.zeros(channels, 1, 1, 1, dtype=dtype)
        for step in self.before:
            voxel = torch.as_tensor(step(voxel))
        return voxel

    def __call__(self, chunk: Any) -> Any:
        """What is done to a chunk where the grid stays what it is."""
        for step in (*self.before, *self.after):
            chunk = step(chunk)
        return chunk


def chain_of(postprocessing: Any) -> Chain | None:
    """A chain of a dictionary transform, a ``Compose`` or a list of them; ``None`` if it is anything else.

    Raises:
        ValueError: when the transforms are not of one key, or invert twice.

    >>> from monai.transforms import Activationsd, AsDiscreted
    >>> chain = chain_of(Compose([Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)]))
    >>> chain.key, len(chain.before), chain.invert, chain.after
    ('pred', 2, None, ())
    >>> chain_of("argmax") is None
    True
    """
    transforms = list(_flat(postprocessing))
    if not transforms or not all(isinstance(each, MapTransform) for each in transforms):
        return None
    key = _key(transforms)
    inverts = [number for number, each in enumerate(transforms) if isinstance(each, Invertd)]
    if len(inverts) > 1:
        raise ValueError(
            f"postprocessing contains Invertd {len(inverts)} times, but a prediction can be brought to the patient's "
            f"grid once; leave the second one to the result, behind the inferer"
        )
    at = inverts[0] if inverts else len(transforms)
    before, after = (tuple(Step(each, key) for each in part) for part in (transforms[:at], transforms[at + 1 :]))
    ends = isinstance(postprocessing, Streamed)
    images = postprocessing.images if isinstance(postprocessing, Streamed) else None
    return Chain(key, before, transforms[at] if inverts else None, after, ends, images)


def _calls_others(transform: MapTransform) -> bool:
    own = not type(transform).__module__.startswith("monai.")
    return own or isinstance(transform, Lambdad) or any(getattr(transform, "other", ()))


def _flat(postprocessing: Any) -> Iterator[Any]:
    if type(postprocessing) in (Compose, Streamed):
        postprocessing = list(postprocessing.transforms)
    if isinstance(postprocessing, (list, tuple)):
        for each in postprocessing:
            yield from _flat(each)
    else:
        yield postprocessing


def _key(transforms: list[MapTransform]) -> Hashable:
    for each in transforms:
        if len(each.keys) != 1:
            raise ValueError(
                f"postprocessing contains {type(each).__name__} with keys={list(each.keys)}, but the inferer has one "
                f"prediction; give its key alone, and the other keys to a transform behind the inferer "
                f"(split_postprocessing does so)"
            )
    keys = list(dict.fromkeys(each.keys[0] for each in transforms))
    if len(keys) > 1:
        raise ValueError(
            f"postprocessing contains transforms of the keys {', '.join(map(repr, keys))}, but the inferer has one "
            f"prediction; leave those of the other keys to the result, behind the inferer (split_postprocessing "
            f"does so)"
        )
    return keys[0]
