"""
What is known of the transforms that a postprocessing has, where they are not done a chunk at a time: why not, and what
they leave of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import NoneType
from typing import Any

from monai.transforms import (
    Activationsd,
    CastToTyped,
    ConcatItemsd,
    ConvertToMultiChannelBasedOnBratsClassesd,
    CopyItemsd,
    DataStatsd,
    DeleteItemsd,
    EnsureChannelFirstd,
    EnsureTyped,
    FillHolesd,
    Identityd,
    Invertd,
    KeepLargestConnectedComponentd,
    Lambdad,
    LoadImaged,
    MapLabelValued,
    MapTransform,
    Orientationd,
    RemoveSmallObjectsd,
    SaveImaged,
    SelectItemsd,
    Spacingd,
    SqueezeDimd,
    ToDeviced,
    ToNumpyd,
)

from monai_chunked.transforms.dictionary import DICTIONARY, why_not_voxelwise
from monai_chunked.transforms.each_voxel import EachVoxel, EachVoxeld

__all__ = [
    "KEEPS_CLASS",
    "PASSED",
    "PostFunc",
    "deletes_keys_alone",
    "keeps_metadata",
    "name_of",
    "stays_in_memory",
    "why_whole_volume",
    "written_by",
]


class PostFunc(MapTransform):
    """The ``post_func`` of an ``Invertd``, which MONAI calls with what was inverted.

    Args:
        keys: of the prediction.
        func: what is done to it.
    """

    def __init__(self, keys: Hashable, func: Callable[[Any], Any]) -> None:
        super().__init__((keys,))
        self.func = func

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.func(data[key]) for key in self.keys}}


def why_whole_volume(transform: MapTransform, key: Hashable) -> str | None:
    """Why a transform of the prediction may give something else in chunks: voxels, class or metadata."""
    kind = type(transform)
    if kind in WHOLE or kind not in DICTIONARY:
        return WHOLE.get(kind) or _unknown(transform)
    if isinstance(transform, Activationsd):
        other = transform.other[transform.keys.index(key)]
        if not isinstance(other, (EachVoxel, NoneType)):
            return "has other=, which may look at other voxels; vouch for it with each_voxel"
    if isinstance(transform, EnsureTyped) and transform.converter.data_type != "tensor":
        return WHOLE[ToNumpyd]
    return why_not_voxelwise(transform, key)


def _unknown(transform: MapTransform) -> str:
    if type(transform).__module__.startswith("monai."):
        return "is none of the transforms that are known to treat each voxel by itself"
    return "is not MONAI's own, so it may look at other voxels; vouch for it with each_voxel"


def written_by(transform: object) -> Sequence[Hashable]:
    """The keys that a transform writes, beside its own."""
    if isinstance(transform, Lambdad):
        return [key for key in transform.overwrite if not isinstance(key, bool)]
    if isinstance(transform, CopyItemsd):
        return list(transform.names)
    return [transform.name] if isinstance(transform, ConcatItemsd) else []


def deletes_keys_alone(transform: DeleteItemsd) -> bool:
    return not any(transform.use_re) and not any(transform.sep in str(key) for key in transform.keys)


def name_of(transform: object) -> str:
    """As in ``AsDiscreted(pred)``."""
    own = transform.transform if isinstance(transform, EachVoxeld) else transform
    if isinstance(own, PostFunc):
        return f"post_func of Invertd({', '.join(map(str, own.keys))})"
    name = getattr(own, "__name__", type(own).__name__)
    return f"{name}({', '.join(map(str, transform.keys))})" if hasattr(transform, "keys") else str(name)


def keeps_metadata(transform: object) -> bool:
    """Whether a transform leaves of its keys all that ``Invertd`` looks at."""
    if isinstance(transform, EnsureTyped):
        return bool(transform.converter.data_type == "tensor" and transform.converter.track_meta)
    return type(transform) in (CastToTyped, CopyItemsd, DataStatsd, Identityd, SaveImaged, SelectItemsd, ToDeviced)


def stays_in_memory(transform: object) -> bool:
    """Whether a transform leaves float32 scores in the memory where they are."""
    casts = isinstance(transform, EnsureTyped) and transform.dtype[0] is not None
    return type(transform) in (EnsureTyped, Identityd, ToDeviced) and not casts


KEEPS_CLASS = {
    CastToTyped, ConvertToMultiChannelBasedOnBratsClassesd, EachVoxeld, Identityd, MapLabelValued, ToDeviced,
}  # fmt: skip
"""What does not make a ``MetaTensor`` of a tensor."""


COMPONENTS = "looks at whole components, which reach from chunk to chunk"


WHOLE: dict[type, str] = {
    CopyItemsd: "copies the prediction as it is by then",
    DataStatsd: "prints what is true of the whole volume",
    DeleteItemsd: "deletes the prediction",
    FillHolesd: COMPONENTS,
    KeepLargestConnectedComponentd: COMPONENTS,
    Lambdad: "calls a function that may look at other voxels; vouch for it with each_voxel",
    PostFunc: "may look at other voxels; vouch for it with each_voxel",
    RemoveSmallObjectsd: COMPONENTS,
    SaveImaged: "saves the whole volume as it is by then",
    SqueezeDimd: "takes a dimension away",
    ToNumpyd: "makes a NumPy array of the prediction",
}
"""Why transforms that many postprocessings have are done to the whole prediction, behind the inferer."""


PASSED = {
    *DICTIONARY, *(kind for kind in WHOLE if kind is not PostFunc), ConcatItemsd, EnsureChannelFirstd, Invertd,
    LoadImaged, Orientationd, SelectItemsd, Spacingd,
}  # fmt: skip
"""What reads its keys alone, and writes them and what :py:func:`written_by` says. Where the prediction is none of its
keys it can be done behind the inferer, with the same result."""
