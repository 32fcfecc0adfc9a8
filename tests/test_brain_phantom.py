"""The phantom of a brain with a lesion: reproducible, of many kinds, and what MONAI's transforms for BraTS read."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, ConvertToMultiChannelBasedOnBratsClassesd, LoadImaged, Orientationd

from tutorials.phantoms.brain import write_case

pytest.importorskip("nilearn")
LOAD = Compose(
    [
        LoadImaged(["image", "label"]),
        ConvertToMultiChannelBasedOnBratsClassesd("label"),
        Orientationd(["image", "label"], "RAS", labels=None),
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phantoms")


def test_the_same_seed_gives_the_same_voxels(folder: Path, tmp_path: Path) -> None:
    one, two = (LOAD(write_case(where, 3, 4)) for where in (folder, tmp_path))
    assert torch.equal(one["image"], two["image"])
    assert torch.equal(one["label"], two["label"])


def test_another_seed_gives_another_brain(folder: Path) -> None:
    one, two = (LOAD(write_case(folder, seed, 4)) for seed in (3, 4))
    assert (one["image"] > 0).ne(two["image"] > 0).any()
    assert one["label"].ne(two["label"]).any()


@pytest.mark.parametrize("seed", range(6))
def test_every_lesion_has_all_regions_one_within_the_other_inside_the_brain(folder: Path, seed: int) -> None:
    case = LOAD(write_case(folder, seed, 4))
    core, whole, enhancing = case["label"].bool()
    assert case["image"].shape == (4, *whole.shape)
    assert 0 < enhancing.sum() < core.sum() < whole.sum() < 0.2 * (case["image"][0] > 0).sum()
    assert (enhancing <= core).all()
    assert (core <= whole).all()
    assert (case["image"][:, whole] > 0).all()


def test_a_place_has_the_coordinates_that_it_has_in_the_template(folder: Path) -> None:
    from nilearn import datasets

    template = datasets.load_mni152_template(resolution=1)
    case = nibabel.load(write_case(folder, 0, 4)["label"])
    assert nibabel.aff2axcodes(case.affine) == ("L", "P", "S")
    size = np.array(case.shape) - 1
    corner = nibabel.affines.apply_affine(case.affine, [size[0], size[1], 0])
    np.testing.assert_allclose(corner, nibabel.affines.apply_affine(template.affine, [0, 0, 0]))
    other = nibabel.affines.apply_affine(case.affine, [0, 0, size[2]])
    np.testing.assert_allclose(other, nibabel.affines.apply_affine(template.affine, 4 * size))


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 0, "resolution": 0}])
def test_what_makes_no_sense_is_refused(folder: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]} must be"):
        write_case(folder, **wrong)
