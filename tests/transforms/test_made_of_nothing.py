"""Voxels of the patient's grid for which there is no prediction, or next to none: as MONAI makes them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from monai.transforms import (
    AsDiscreted,
    CenterSpatialCropd,
    ResampleToMatchd,
    ResizeWithPadOrCropd,
    Rotate90d,
    Spacingd,
    SpatialResampled,
)

from tests.transforms.inverted import KEY, Case, affine_of, assert_same_images, oriented

pytestmark = pytest.mark.usefixtures("one_thread")


def undone(
    size: Sequence[int],
    spacing: Sequence[float],
    pixdim: Sequence[float],
    to: Sequence[int],
    kind: str,
    classes: int,
    padding_mode: str,
    dtype: str = "float64",
) -> None:
    """Labels of an oblique image, which is resampled and then cropped or padded, are MONAI's."""
    resample = Spacingd(KEY, pixdim=pixdim, padding_mode=padding_mode, align_corners=True, dtype=dtype)
    transforms = [oriented(), resample, ResizeWithPadOrCropd(KEY, spatial_size=to)]
    after = [AsDiscreted("pred", argmax=True)]
    case = Case(transforms, tuple(size), affine_of("oblique", spacing), classes, kind, after=after)
    assert_same_images(case.ours(), case.monai())


@pytest.mark.parametrize(
    ("size", "spacing", "pixdim", "to", "kind", "padding_mode"),
    [
        ((9, 12, 8), (2.0, 1.0, 1.5), (1.0, 1.0, 1.0), (12, 9, 7), "ties", "border"),
        ((10, 12, 11), (0.8, 0.8, 1.5), (1.0, 1.5, 1.5), (12, 8, 7), "scores", "zeros"),
    ],
    ids=["ties", "scores"],
)
def test_voxels_made_of_nothing_are_of_the_first_class_where_coordinates_are_not_exact(
    size: Sequence[int],
    spacing: Sequence[float],
    pixdim: Sequence[float],
    to: Sequence[int],
    kind: str,
    padding_mode: str,
) -> None:
    undone(size, spacing, pixdim, to, kind, 3, padding_mode)


def test_every_voxel_that_may_be_needed_is_read_where_a_border_was_added() -> None:
    undone((11, 10, 8), (1.2, 0.9, 2.0), (1.3, 1.3, 1.0), (11, 11, 11), "scores", 2, "zeros", "float32")


@pytest.mark.parametrize("pixdim", [(2.0, 2.0, 2.0), (2.0, 1.0, 0.5), (0.4, 2.0, 4.0)])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shorter", [1, 2, 3])
def test_the_nearest_voxel_may_be_a_zero_that_was_cut_off(
    pixdim: Sequence[float], align_corners: bool, shorter: int
) -> None:
    resample = Spacingd(KEY, pixdim=pixdim, align_corners=align_corners)
    affine = affine_of("oblique", (1.0, 1.0, 1.0))
    size = Case([resample], (21, 18, 20), affine).batch[KEY].shape[2:]
    cut = CenterSpatialCropd(KEY, [n - shorter for n in size])
    case = Case([resample, cut], (21, 18, 20), affine, nearest=True)
    assert_same_images(case.ours(), case.monai())


def test_the_nearest_voxel_may_be_a_zero_beside_an_image_that_was_turned() -> None:
    transforms = [
        ResampleToMatchd(KEY, key_dst="match", align_corners=False),
        SpatialResampled(KEY, dst_keys="affine", align_corners=False),
        Rotate90d(KEY, k=1),
        CenterSpatialCropd(KEY, (13, 10, 8)),
    ]
    case = Case(
        transforms, (10, 10, 10), affine_of("plain", (0.8, 0.8, 0.8)), classes=1, nearest=True, roi_size=(5,) * 3
    )
    assert_same_images(case.ours(), case.monai())
