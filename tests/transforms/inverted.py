"""Random preprocessings and what undoes them, MONAI's and ours on the same image; a helper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    BorderPadd,
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    DivisiblePadd,
    Flipd,
    Invertd,
    LoadImaged,
    Orientationd,
    ResampleToMatchd,
    Resized,
    ResizeWithPadOrCropd,
    Rotate90d,
    Spacingd,
    SpatialCropd,
    SpatialPadd,
    SpatialResampled,
    Zoomd,
)
from scipy.spatial.transform import Rotation

from monai_chunked import ChunkedSlidingWindowInferer
from tests.side_by_side import random

LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
KEY = "image"


def oriented(axcodes: str = "RAS") -> Orientationd:
    return Orientationd(KEY, axcodes=axcodes, labels=LABELS)


def affine_of(kind: str, spacing: Sequence[float], order: Sequence[int] = (1, 2, 0)) -> torch.Tensor:
    """As a NIfTI file has it: what is not parallel to the axes is rounded to float32."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (3.5, -20.25, 7.0)
    if kind == "flipped":
        affine[:, :3] *= -1
    elif kind == "permuted":
        affine[:3, :3] = affine[:3, :3][:, list(order)] * [1, -1, 1]
    elif kind == "oblique":
        affine[:3, :3] = Rotation.from_euler("xyz", [10, -5, 7], degrees=True).as_matrix() @ affine[:3, :3]
        affine = affine.astype(np.float32)
    return torch.as_tensor(affine, dtype=torch.float64)


class Network(torch.nn.Module):
    """Scores of some classes: another function of the window for each kind of trouble."""

    def __init__(self, kind: str, classes: int) -> None:
        super().__init__()
        weight = random(classes, 1, 3, 3, 3, seed=7)
        self.kind = kind
        self.weight = torch.nn.Parameter(weight * (50 if kind == "saturated" else 3), requires_grad=False)
        self.predicted = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.predicted += len(windows)
        scores = torch.nn.functional.conv3d(windows - 0.5, self.weight, padding=1)
        if self.kind == "ties":  # half of the classes are the other half
            return scores[:, [k // 2 for k in range(scores.shape[1])]]
        if self.kind == "few values":
            return scores.round()
        if self.kind == "constant":
            return torch.full_like(scores, 0.25)
        if self.kind == "not finite":
            scores = torch.where(windows > 0.98, torch.inf, scores)
            scores = torch.where(windows < 0.02, -torch.inf, scores)
            return torch.where((windows > 0.5) & (windows < 0.51), torch.nan, scores)
        return scores


KINDS = ("scores", "scores", "saturated", "ties", "few values", "constant", "not finite")


@dataclass
class Case:
    """A preprocessing of an image, a network, and a chain that undoes the one for the scores of the other."""

    transforms: list[Any]
    size: tuple[int, ...]
    affine: torch.Tensor
    classes: int = 3
    kind: str = "scores"
    before: list[Any] = field(default_factory=list)
    after: list[Any] = field(default_factory=list)
    nearest: bool = False
    images: int = 1
    roi_size: Any = (9, 8, 10)
    parameters: dict[str, Any] = field(default_factory=dict)
    may_be_whole: bool = False
    folder: Path | None = None

    def __post_init__(self) -> None:
        self.preprocessing = Compose(self.transforms)
        items = []
        for seed in range(self.images):
            voxels = (random(1, *self.size, seed=seed).sin() + 1) / 2
            meta = {"filename_or_obj": f"/data/image{seed}.nii.gz"}
            image = MetaTensor(voxels, affine=self.affine, meta=meta)
            if self.folder is not None:  # from a file, with all that LoadImaged says of it
                path = self.folder / f"image{seed}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(voxels[0].numpy(), self.affine.numpy()), path)
                image = LoadImaged(KEY, ensure_channel_first=True)({KEY: path})[KEY]
            scaled = self.affine @ torch.diag(torch.tensor([1.3, 0.8, 1.1, 1.0], dtype=torch.float64))
            there = MetaTensor(torch.zeros(1, 14, 20, 17), affine=scaled)
            item = self.preprocessing({KEY: image, "affine": scaled, "match": there})
            items.append({KEY: item[KEY]})
        self.batch = list_data_collate(items)
        self.network = Network(self.kind, self.classes)

    def __reduce__(self) -> Any:
        """Another process does its own preprocessing, as MONAI's inverse wants it."""
        return Case, tuple(getattr(self, each.name) for each in fields(self))

    @property
    def invert(self) -> Invertd:
        return Invertd("pred", self.preprocessing, orig_keys=KEY, nearest_interp=self.nearest)

    @property
    def chain(self) -> Compose:
        return Compose([*self.before, self.invert, *self.after])

    @property
    def sliding(self) -> dict[str, Any]:
        return {"roi_size": self.roi_size, "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}

    def monai(self, chain: Compose | None = None) -> list[MetaTensor]:
        """The predictions on the patients' grids, as a bundle makes them."""
        with torch.no_grad():
            scores = SlidingWindowInferer(**self.sliding)(self.batch[KEY], self.network)
        items = decollate_batch({**self.batch, "pred": scores})
        return [(chain or self.chain)(item)["pred"] for item in items]

    def ours(self, **parameters: Any) -> Any:
        self.network.predicted = 0
        how = {"postprocessing": self.chain, **self.sliding, **self.parameters, **parameters}
        with torch.no_grad():
            return ChunkedSlidingWindowInferer(**how)(self.batch[KEY], self.network)


def numbers(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values.as_tensor() if isinstance(values, MetaTensor) else values))


def assert_same_voxels(ours: Any, reference: Any) -> None:
    """The same bits, where NaN is NaN."""
    one, other = numbers(ours), numbers(reference)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    if one.is_floating_point():
        assert torch.equal(one.isnan(), other.isnan())
        one, other = (
            one.nan_to_num(posinf=torch.inf, neginf=-torch.inf),
            other.nan_to_num(posinf=torch.inf, neginf=-torch.inf),
        )
    different = int((one != other).sum())
    assert torch.equal(one, other), f"{different} of {one.numel()} voxels differ"


def assert_same_images(ours: Any, reference: Sequence[MetaTensor]) -> None:
    """A batch on the patients' grids: voxels, and what is said of them."""
    assert len(ours) == len(reference)
    items = decollate_batch(ours)
    for one, other in zip(items, reference):
        assert_same_voxels(one, other)
        assert torch.equal(torch.as_tensor(one.affine), torch.as_tensor(other.affine))
        assert one.applied_operations == other.applied_operations == []


def _sizes(draw: st.DrawFn, least: int, most: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(least, most)) for _ in range(3))


def _sampling(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "padding_mode": draw(st.sampled_from(["border", "zeros", "reflection"])),
        "align_corners": draw(st.booleans()),
        "dtype": draw(st.sampled_from([np.float64, np.float64, np.float32])),
    }


def _spacing(draw: st.DrawFn) -> Any:
    return Spacingd(KEY, pixdim=[draw(st.sampled_from([0.9, 1.3, 1.5, 2.0, 2.4])) for _ in range(3)], **_sampling(draw))


def _resized(draw: st.DrawFn) -> Any:
    mode = draw(st.sampled_from(["area", "trilinear", "nearest"]))
    align = draw(st.sampled_from([None, True, False])) if mode == "trilinear" else None
    return Resized(KEY, _sizes(draw, 8, 26), mode=mode, align_corners=align)


def bright(voxels: Any) -> Any:
    return voxels > 0.9


def _zoomed(draw: st.DrawFn) -> Any:
    zoom = draw(st.sampled_from([0.7, 1.2, 1.4]))
    return Zoomd(KEY, zoom=zoom, mode=draw(st.sampled_from(["trilinear", "nearest"])), keep_size=draw(st.booleans()))


def _crop(draw: st.DrawFn) -> Any:
    start = _sizes(draw, 0, 4)
    return SpatialCropd(KEY, roi_start=start, roi_end=[s + n for s, n in zip(start, _sizes(draw, 6, 24))])


MAKERS: dict[str, Callable[[st.DrawFn], Any]] = {
    "orientation": lambda draw: oriented(draw(st.sampled_from(["RAS", "LPS", "SAL", "PIR"]))),
    "spacing": _spacing,
    "affine": lambda draw: SpatialResampled(KEY, dst_keys="affine", **_sampling(draw)),
    "match": lambda draw: ResampleToMatchd(KEY, key_dst="match", **_sampling(draw)),
    "resized": _resized,
    "zoomed": _zoomed,
    "flip": lambda draw: Flipd(KEY, draw(st.sampled_from([0, 1, 2, (0, 2)]))),
    "rotate90": lambda draw: Rotate90d(
        KEY, k=draw(st.integers(1, 3)), spatial_axes=draw(st.sampled_from([(0, 1), (0, 2)]))
    ),
    "pad": lambda draw: SpatialPadd(KEY, _sizes(draw, 8, 30)),
    "border": lambda draw: BorderPadd(KEY, draw(st.integers(1, 4))),
    "divisible": lambda draw: DivisiblePadd(KEY, 8),
    "crop": _crop,
    "center": lambda draw: CenterSpatialCropd(KEY, _sizes(draw, 8, 24)),
    "foreground": lambda draw: CropForegroundd(KEY, KEY, select_fn=bright, margin=draw(st.integers(0, 2))),
    "size": lambda draw: ResizeWithPadOrCropd(KEY, _sizes(draw, 8, 26)),
}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    spacing = [draw(st.sampled_from([0.8, 1.1, 1.3, 2.1])) for _ in range(3)]
    affine = affine_of(draw(st.sampled_from(["plain", "flipped", "permuted", "oblique"])), spacing)
    kinds = draw(st.lists(st.sampled_from(sorted(MAKERS)), min_size=1, max_size=4))
    if draw(st.booleans()):  # as most bundles begin
        kinds = ["orientation", "spacing", *kinds[:2]]
    activation = draw(st.sampled_from([None, {"softmax": True}, {"sigmoid": True}]))
    discrete = draw(st.sampled_from([None, {"argmax": True}, {"argmax": True}, {"threshold": 0.5}, {"threshold": 0.0}]))
    activations = [] if activation is None else [Activationsd("pred", **activation)]
    discretes = [] if discrete is None else [AsDiscreted("pred", **discrete)]
    # some means are of many voxels; and a grid whose dimensions are in another order now is turned against the image's
    resampled, turned = {"affine", "match"} & set(kinds), {"orientation", "rotate90"} & set(kinds)
    images = draw(st.sampled_from([1, 1, 2]))  # each is cropped to another place
    may_be_whole = "resized" in kinds or bool(resampled and turned) or ("foreground" in kinds and images > 1)
    try:
        case = Case(
            [MAKERS[kind](draw) for kind in kinds],
            size=_sizes(draw, 10, 26),
            affine=affine,
            classes=draw(st.sampled_from([1, 2, 3, 5])),
            kind=draw(st.sampled_from(KINDS)),
            before=activations,
            after=discretes,
            nearest=draw(st.integers(0, 3)) == 0,
            images=images,
            roi_size=_sizes(draw, 5, 14),
            may_be_whole=may_be_whole,
            parameters={
                "chunk_size": draw(st.sampled_from([None, None, 4, 7, (3, 50, 6)])),
                "cpu_memory": draw(st.sampled_from([None, None, "60MB"])),
            },
        )
    except (ValueError, RuntimeError):  # nothing is left of the image, or two images are of different sizes now
        assume(False)
        raise
    assume(all(4 <= n <= 45 for n in case.batch[KEY].shape[2:]))
    return case
