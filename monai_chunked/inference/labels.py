"""
Results that are labels already, guarded against what would destroy them.

Bundles that were written for scores end in a softmax or a sigmoid, an interpolation and an argmax. Over the one channel
of a label volume these give ones, zeros, or labels of no class, without a word. So labels are returned as tensors that
know what they are: PyTorch asks the class of a tensor before it does anything with it (``__torch_function__``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy, deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from monai.transforms import AsDiscrete, AsDiscreted, Compose

from monai_chunked.chunks.postprocessing import argmax
from monai_chunked.inference.chains import Chain

__all__ = ["HOLDS_LABELS", "Labels", "MetaLabels", "ends_in_labels", "mark_labels"]


HOLDS_LABELS = "holds_labels"
"""The key in the metadata of a result, ``True`` if it holds labels."""


REMEDY = (
    "The inferer has made labels of the scores already, because of its postprocessing. Remove what does it once more "
    "(Activationsd, AsDiscreted(argmax=True), torch.argmax), or set postprocessing=None to get scores. "
    "labels.as_subclass(torch.Tensor) is a tensor without this check."
)


ARGMAX = {torch.argmax, torch.Tensor.argmax}


SOFTMAX = {torch.softmax, torch.Tensor.softmax, F.softmax, torch.log_softmax, torch.Tensor.log_softmax, F.log_softmax}


SIGMOID = {torch.sigmoid, torch.Tensor.sigmoid, torch.sigmoid_, torch.Tensor.sigmoid_, F.sigmoid, torch.special.expit}


SIGMOID |= {F.logsigmoid}


INTERPOLATION = {F.grid_sample: "bilinear", F.interpolate: "nearest"}
"""With the mode that is theirs by default."""


class Labels(torch.Tensor):
    """A tensor of labels, as every tensor but for what would destroy them.

    Raises:
        ValueError: on argmax or softmax over one channel, and on sigmoid.

    An interpolation between labels is a warning.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if cls is Labels and any(issubclass(other, MetaTensor) for other in types):  # they get some metadata then
            return MetaLabels.__torch_function__(func, types, args, kwargs)
        _check(func, args, kwargs or {})
        return super().__torch_function__(func, types, args, kwargs or {})

    def as_subclass(self, cls: type) -> Any:
        """MONAI takes metadata off a tensor and puts it on again; labels are still labels afterwards."""
        return super().as_subclass(MetaLabels if cls is MetaTensor else cls)

    def unguarded(self) -> Any:
        """The same voxels in the class that MONAI or PyTorch would have returned."""
        return self.as_subclass(torch.Tensor)

    def __copy__(self) -> Any:
        return _guarded(copy(self.unguarded()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = copied = _guarded(deepcopy(self.unguarded(), memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.unguarded().__reduce_ex__(protocol)  # a file with labels can be loaded without this package


class MetaLabels(Labels, MetaTensor):
    """A ``MetaTensor`` of labels."""

    def as_tensor(self) -> Any:
        return self.as_subclass(Labels)

    def clone(self, **kwargs: Any) -> Any:
        return _guarded(self.unguarded().clone(**kwargs))

    def unguarded(self) -> Any:
        return _with_meta(self, self, MetaTensor)


def mark_labels(results: Sequence[Any], postprocessing: Sequence[Any]) -> list[Any]:
    """Each result, and those that hold labels as :py:class:`Labels`, with metadata that says so where there is some.

    Labels are what :py:func:`ends_in_labels`, and what any other callable made one channel of integers of. No voxel is
    copied. Only tensors, and those in lists with one for each image, can be marked.

    Args:
        results: of each head of the network.
        postprocessing: of each head of the network.
    """

    def mark(result: Any, one: Any, channels: int = 1) -> Any:
        if isinstance(result, list):  # of images without a batch; its type tells engines how to take it apart
            return type(result)(mark(each, one, 0) for each in result)
        if not isinstance(result, torch.Tensor) or one is None or (isinstance(one, Chain) and one.ends):
            return result
        integers = not (result.is_floating_point() or result.is_complex() or result.dtype == torch.bool)
        if not (ends_in_labels(one) or (integers and result.shape[channels] == 1)):
            return result
        labels = _guarded(result)
        if isinstance(labels, MetaTensor):
            labels.meta = {**labels.meta, HOLDS_LABELS: True}
        return labels

    return [mark(result, one) for result, one in zip(results, postprocessing)]


def ends_in_labels(postprocessing: Any) -> bool:
    """Whether what is returned are labels or masks, of which no class can be chosen any more.

    >>> ends_in_labels(Compose([torch.sigmoid, AsDiscrete(threshold=0.5)])), ends_in_labels(AsDiscrete(to_onehot=4))
    (True, False)
    """
    while isinstance(postprocessing, Compose) and postprocessing.transforms:
        postprocessing = postprocessing.transforms[-1]
    if isinstance(postprocessing, Chain):
        last = postprocessing.transforms[-1]
        if not isinstance(last, AsDiscreted):
            return False
        return last.threshold[0] is not None or (last.argmax[0] and last.to_onehot[0] is None)
    if isinstance(postprocessing, AsDiscrete):
        return postprocessing.threshold is not None or (postprocessing.argmax and postprocessing.to_onehot is None)
    return postprocessing is argmax


def _guarded(tensor: torch.Tensor) -> Any:
    if isinstance(tensor, MetaTensor):
        return _with_meta(tensor, tensor, MetaLabels)
    return torch.Tensor.as_subclass(tensor, Labels)


def _with_meta(tensor: torch.Tensor, source: MetaTensor, cls: type) -> Any:
    result: Any = torch.Tensor.as_subclass(tensor, cls)
    result.__dict__ = dict(source.__dict__)
    return result


def _check(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if func in SIGMOID:
        raise ValueError(f"sigmoid of labels: every class, 0 too, would count as found. {REMEDY}")
    if func in ARGMAX or func in SOFTMAX:
        tensor = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if isinstance(tensor, Labels) and isinstance(dim, int) and tensor.dim() and tensor.shape[dim] == 1:
            name, value = ("argmax", 0) if func in ARGMAX else ("softmax", 1)
            raise ValueError(
                f"{name} over dimension {dim} of labels of shape {tuple(tensor.shape)}: it holds one channel, so that "
                f"every voxel would become {value}. {REMEDY}"
            )
    if func in INTERPOLATION:
        named = kwargs.get("mode", INTERPOLATION[func])
        if isinstance(args[0] if args else kwargs.get("input"), Labels) and "nearest" not in str(named):
            warnings.warn(
                f"labels are interpolated with mode={named}, which makes values between classes that are not there. "
                f"Set nearest_interp to true in Invertd (mode='nearest' elsewhere); that gives labels that were "
                f"inverted, another answer than MONAI's, which inverts scores and takes labels then.",
                UserWarning,
                stacklevel=4,
            )
