"""Voxels of the patient's grid for which there is no prediction, or next to none: as MONAI makes them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from monai.transforms import AsDiscreted, ResizeWithPadOrCropd, Spacingd

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
