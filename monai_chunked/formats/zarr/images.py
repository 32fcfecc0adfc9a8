"""What a run returns of OME-Zarr stores, and what engines make of it: see `outputs/stored_images.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import zarr
from monai.data.meta_tensor import MetaTensor

from monai_chunked.outputs.stored_images import StoredImages, StoredTensor

__all__ = ["ZarrImage", "ZarrImages"]


class ZarrImage(zarr.Array):
    """Level 0 of a store: a ``zarr.Array`` that MONAI's engines take for a batch of one image.

    They get a :py:class:`StoredTensor`. To iterate is to go through that batch, as ``decollate_batch`` does.

    Attributes:
        template: whose metadata engines get.
        dimensions: for each dimension of the store, that of ``(C, *spatial)``.
    """

    template: MetaTensor | None = None
    dimensions: Sequence[int] = ()

    def with_metadata(self, templates: Sequence[MetaTensor]) -> ZarrImage:
        """Itself, which engines get with the metadata of the first of these."""
        self.template = templates[0]
        return self

    def tensor(self) -> StoredTensor:
        """The image ``(C, *spatial)``, not read yet."""
        return StoredTensor(_Moved(self), self.template)

    def __iter__(self) -> Iterator[_Only]:
        yield _Only(self)


class _Moved:
    """A store with its dimensions in the order of ``(C, *spatial)``."""

    def __init__(self, image: ZarrImage) -> None:
        self.image = image
        self.back = np.argsort(image.dimensions)
        self.shape = tuple(image.shape[d] for d in self.back)
        self.dtype = image.dtype

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(self.image[...], dtype).transpose(self.back))


class _Only:
    """The image of a batch of one, for ``decollate_batch``, see :py:mod:`~monai_chunked.outputs.stored_images`."""

    ndim = 0

    def __init__(self, image: ZarrImage) -> None:
        self.image = image

    def item(self) -> StoredTensor:
        return self.image.tensor()


class ZarrImages(StoredImages):
    """What a run returns for a batch of several images."""

    def item(self) -> list[torch.Tensor]:
        return [image.tensor() for image in self]

    def with_metadata(self, templates: Sequence[MetaTensor]) -> ZarrImages:
        return ZarrImages(image.with_metadata([template]) for image, template in zip(self, templates))
