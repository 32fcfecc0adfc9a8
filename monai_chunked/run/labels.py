"""
Results that are labels already, guarded against what would destroy them.

Bundles that were written for scores end in a softmax or a sigmoid, an interpolation and an argmax. Over the one channel
of a label volume these give ones, zeros, or labels of no class, without a word. So labels are returned as tensors that
know what they are: PyTorch asks the class of a tensor before it does anything with it (``__torch_function__``).

Only what copies or moves voxels, or changes their dtype, leaves labels, and is listed here. All else that is computed
of labels is what it would be of any other tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy, deepcopy
from functools import lru_cache
from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import collate_meta_tensor_fn
from monai.utils import convert_to_dst_type
from torch.utils.data._utils.collate import default_collate_fn_map

from monai_chunked.outputs.base import TakesMetadata
from monai_chunked.transforms.chain import Chain

__all__ = ["HOLDS_LABELS", "Labels", "MetaLabels", "mark_labels", "with_metadata"]


HOLDS_LABELS = "holds_labels"
"""The key in the metadata of a result, ``True`` if it holds labels."""


REMEDY = (
    "The inferer has made labels of the scores already, because of its postprocessing. Remove what does it once more "
    "(Activationsd, AsDiscreted(argmax=True), torch.argmax), or set postprocessing=None to get scores. "
    "labels.as_subclass(torch.Tensor) is a tensor without this check."
)


def _called(names: str, *modules: object) -> set[Callable[..., Any]]:
    """The functions and methods of these names."""
    functions = [getattr(module, name, None) for module in (torch, torch.Tensor, *modules) for name in names.split()]
    return {function for function in functions if function is not None}


ARGMAX = _called("argmax")


SOFTMAX = _called("softmax log_softmax", F, torch.special)


SIGMOID = _called("sigmoid sigmoid_ logsigmoid expit", F, torch.special)


INTERPOLATION = {F.grid_sample: "bilinear", F.interpolate: "nearest"}
"""Functions that interpolate, each with its default mode."""


SET = torch.Tensor.__setitem__


KEEPS = {
    *_called("squeeze_ unsqueeze_ transpose_ swapaxes_ swapdims_ detach_ requires_grad_ __setitem__"),
    *_called("__getitem__ select narrow index_select unbind split chunk tensor_split stack"),
    *_called("view reshape flatten unflatten squeeze unsqueeze expand broadcast_to contiguous repeat tile"),
    *_called("permute transpose movedim moveaxis swapaxes swapdims flip fliplr flipud rot90 roll"),
    *_called("clone detach to type cpu cuda pin_memory as_tensor"),
    *_called("float double half bfloat16 byte char short int long round"),
    *(F.pad, *INTERPOLATION),
    torch.Tensor.data.__get__,  # type: ignore[attr-defined]
}
"""What leaves labels where its first argument is labels."""


class Labels(torch.Tensor):
    """A tensor of labels. It is as any other tensor, but guards labels against what would destroy them.

    Attributes:
        spatial_dims: how many there are; the dimension before them is that of channels.

    Raises:
        ValueError: on argmax or softmax over one channel, and on sigmoid.

    An interpolation between labels is a warning.
    """

    spatial_dims = 0

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("input", kwargs.get("tensors"))
        if isinstance(first, Labels):
            _check(func, first, args, kwargs)
        if not all(kind is torch.Tensor or issubclass(kind, (Labels, MetaTensor)) for kind in types):  # others decide
            return func(*_unguarded(args), **_unguarded(kwargs))
        plain = MetaTensor if any(issubclass(kind, MetaTensor) for kind in types) else torch.Tensor
        result = plain.__torch_function__(func, (), args, kwargs)
        if torch.compiler.is_compiling():  # which cannot make tensors of this class
            return result
        if func in KEEPS and _is_labels(first) and not (func is SET and isinstance(args[2], torch.Tensor)):
            return _guarded(result, cls.spatial_dims)
        for written in (first, kwargs.get("out")) if _is_in_place(func, kwargs) else ():
            if isinstance(written, Labels):
                written.__class__ = MetaTensor if isinstance(written, MetaTensor) else torch.Tensor  # type: ignore
        return _unguarded(result)

    def as_subclass(self, cls: type) -> Any:
        """MONAI takes metadata off a tensor and puts it on again; labels are still labels afterwards."""
        return super().as_subclass(_class_of(self.spatial_dims, True) if cls is MetaTensor else cls)

    def unguarded(self) -> torch.Tensor:
        """The same voxels in the class that MONAI or PyTorch would have returned."""
        return self.as_subclass(torch.Tensor)

    def __copy__(self) -> Any:
        return _guarded(copy(self.unguarded()), self.spatial_dims)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = copied = _guarded(deepcopy(self.unguarded(), memo), self.spatial_dims)
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.unguarded().__reduce_ex__(protocol)  # a file with labels can be loaded without this package


class MetaLabels(Labels, MetaTensor):
    """A ``MetaTensor`` of labels."""

    def as_tensor(self) -> torch.Tensor:
        return self.as_subclass(_class_of(self.spatial_dims, False))

    def clone(self, **kwargs: Any) -> Any:
        return _guarded(self.unguarded().clone(**kwargs), self.spatial_dims)

    def new_empty(self, *args: Any, **kwargs: Any) -> Any:
        return self.unguarded().new_empty(*args, **kwargs)

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        return self.unguarded().astype(*args, **kwargs)

    def unguarded(self) -> MetaTensor:
        return _with_meta(self, self, MetaTensor)


def mark_labels(results: Sequence[Any], chains: Sequence[Chain]) -> list[Any]:
    """The results, those that hold labels as :py:class:`Labels`; their metadata says so, where there is some.

    A result holds labels if its chain ends in them, or has made one channel of integers. No voxel is copied.
    Only tensors, and those in lists with one for each image, can be marked.

    Args:
        results: of each head of the network.
        chains: of each head of the network.
    """

    def mark(result: Any, chain: Chain, channels: int = 1) -> Any:
        if isinstance(result, list):  # of images without a batch; its type tells engines how to take it apart
            return type(result)(mark(image, chain, 0) for image in result)
        if not isinstance(result, torch.Tensor) or not chain or chain.ends:
            return result
        integers = not (result.is_floating_point() or result.is_complex() or result.dtype == torch.bool)
        if not (chain.ends_in_labels or (integers and result.shape[channels] == 1)):
            return result
        labels = _guarded(result, result.dim() - channels - 1)
        if isinstance(labels, MetaTensor):
            labels.meta = {**labels.meta, HOLDS_LABELS: True}
        return labels

    return [mark(result, chain) for result, chain in zip(results, chains)]


@lru_cache
def _class_of(spatial_dims: int, has_metadata: bool) -> type:
    kind = MetaLabels if has_metadata else Labels
    made = type(kind.__name__, (kind,), {"spatial_dims": spatial_dims, "__module__": __name__})
    if has_metadata:  # loaders collate it as what it is, and not as the first class in their table that fits
        default_collate_fn_map[made] = collate_meta_tensor_fn
    return made


def _is_labels(first: object) -> bool:
    """Whether a first argument is labels, or a list of nothing but labels."""
    tensors = first if isinstance(first, (list, tuple)) else [first]
    return bool(tensors) and all(isinstance(tensor, Labels) for tensor in tensors)


def _is_in_place(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function writes into a tensor that is there."""
    name = getattr(func, "__name__", "")
    named = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    return func is SET or named or "out" in kwargs


def _guarded(result: Any, spatial_dims: int) -> Any:
    if isinstance(result, (list, tuple)):
        return type(result)(_guarded(tensor, spatial_dims) for tensor in result)
    if isinstance(result, Labels) or not isinstance(result, torch.Tensor):
        return result
    if isinstance(result, MetaTensor):
        return _with_meta(result, result, _class_of(spatial_dims, True))
    return torch.Tensor.as_subclass(result, _class_of(spatial_dims, False))


def _unguarded(value: Any) -> Any:
    if isinstance(value, Labels):
        return value.unguarded()
    if isinstance(value, dict):
        return {key: _unguarded(item) for key, item in value.items()}
    return type(value)(map(_unguarded, value)) if type(value) in (list, tuple) else value


def _with_meta(tensor: torch.Tensor, source: MetaTensor, cls: type) -> MetaTensor:
    result: MetaTensor = torch.Tensor.as_subclass(tensor, cls)
    result.__dict__ = dict(source.__dict__)
    return result


def _check(func: Callable[..., Any], labels: Labels, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if func in SIGMOID:
        raise ValueError(f"sigmoid of labels: every class, 0 too, would count as found. {REMEDY}")
    if func in ARGMAX or func in SOFTMAX:
        dim, channel = args[1] if len(args) > 1 else kwargs.get("dim"), labels.dim() - labels.spatial_dims - 1
        if isinstance(dim, int) and channel in (dim, dim + labels.dim()) and labels.shape[channel] == 1:
            name, value = ("argmax", 0) if func in ARGMAX else ("softmax", 1)
            raise ValueError(
                f"{name} over dimension {dim} of labels of shape {tuple(labels.shape)}: it holds one channel, so that "
                f"every voxel would become {value}. {REMEDY}"
            )
    if func in INTERPOLATION:
        named = kwargs.get("mode", INTERPOLATION[func])
        if "nearest" not in str(named):
            warnings.warn(
                f"labels are interpolated with mode={named}, which makes values between classes that are not there. "
                f"Set nearest_interp to true in Invertd (mode='nearest' elsewhere); that gives labels that were "
                f"inverted, another answer than MONAI's, which inverts scores and takes labels then.",
                UserWarning,
                stacklevel=5,
            )


def with_metadata(results: Sequence[Any], templates: Sequence[MetaTensor], template: MetaTensor | None) -> list[Any]:
    """MetaTensors where the input has metadata. As in MONAI only a single result takes it over.

    Args:
        results: of each head of the network.
        templates: for each image a tensor without voxels that has the metadata; empty if there is none.
        template: a tensor that has the metadata of the batch.
    """
    if template is None:
        return list(results)
    if len(results) == 1 and isinstance(results[0], TakesMetadata):
        return [results[0].with_metadata(templates)]
    if not all(isinstance(result, torch.Tensor) for result in results):
        return list(results)
    if len(results) > 1:
        return [MetaTensor(result) for result in results]
    return [convert_to_dst_type(result, template, dtype=result.dtype, device=result.device)[0] for result in results]
