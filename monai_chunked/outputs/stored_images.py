"""
What a result in several files, or in a store, is to MONAI's engines: one image each, as of a batch of tensors.

An engine takes the batch apart with MONAI's ``decollate_batch``. That zips what is in a list, so a list of tensors
would become lists of channels; but it takes as it is what has no dimensions (``ndim == 0``) and an ``item()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils import convert_to_dst_type
from torch.utils._pytree import tree_map

__all__ = ["StoredImages", "StoredTensor"]


KNOWN = {
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
    *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "__len__", "element_size")),
    *(getattr(torch.Tensor, name) for name in ("is_floating_point", "is_complex")),
}
"""What a tensor answers without its voxels."""


class StoredImages(list):
    """A list of what a run wrote for each image of the batch, which engines take apart into just these."""

    ndim = 0

    def item(self) -> list[torch.Tensor]:
        """What engines get: a tensor ``(C, *spatial)`` for each image."""
        return list(self)

    def with_metadata(self, templates: Sequence[MetaTensor]) -> StoredImages:
        """The images with the metadata of these, one for each."""
        return StoredImages(
            convert_to_dst_type(image, template, dtype=image.dtype, device=image.device)[0]
            for image, template in zip(self, templates)
        )


class StoredTensor(MetaTensor):
    """An image ``(C, *spatial)`` in a store, whose voxels are read by the operations that need them.

    Every operation on it gives what it would give on a ``MetaTensor`` in memory; nothing is kept from one to the next.

    Args:
        array: anything with ``shape``, ``dtype`` and ``__array__``.
        template: whose metadata it takes over.
    """

    # or decollate_batch would zip its channels; the tensors that it becomes can be iterated
    __iter__ = None  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, array: Any, template: MetaTensor | None = None) -> StoredTensor:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        return torch.Tensor._make_wrapper_subclass(cls, array.shape, dtype=dtype)

    def __init__(self, array: Any, template: MetaTensor | None = None) -> None:
        if template is None:
            super().__init__(self)
        else:
            super().__init__(self, meta=dict(template.meta), applied_operations=list(template.applied_operations))
        self.stored = array

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        read_args, read_kwargs = tree_map(_read, (args, kwargs or {}))
        return func(*read_args, **read_kwargs)


def _read(value: Any) -> Any:
    if not isinstance(value, StoredTensor):
        return value
    tensor = torch.from_numpy(np.array(value.stored))
    return MetaTensor(tensor, meta=dict(value.meta), applied_operations=list(value.applied_operations))
