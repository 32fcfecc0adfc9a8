"""The phantoms of the tutorials: everything is there, of a plausible size, and drawn again as it was."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tutorials.phantoms.abdomen import ORGANS, write_abdomen

COARSE = (3.0, 3.0, 5.0)

LITRES = {"spleen": (0.08, 0.4), "right kidney": (0.06, 0.3), "left kidney": (0.06, 0.3), "liver": (0.8, 2.2)}


def read(path: str) -> tuple[np.ndarray, nibabel.Nifti1Image]:
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj), image


@pytest.mark.parametrize("seed", [1, 2, 22])
def test_every_organ_is_there_and_of_a_plausible_size(seed: int, tmp_path: Path) -> None:
    labels, _ = read(write_abdomen(tmp_path, seed, COARSE)["label"])
    litres = np.bincount(labels.ravel(), minlength=len(ORGANS) + 1)[1:] * np.prod(COARSE) / 1e6
    assert labels.max() == len(ORGANS)
    assert litres.min() > 0.001
    for organ, (least, most) in LITRES.items():
        assert least < litres[ORGANS.index(organ)] < most, organ


def test_image_and_labels_lie_on_one_flipped_grid(tmp_path: Path) -> None:
    for seed, axes in ((1, "LAS"), (2, "LPS")):
        (image, header), (labels, other) = map(read, write_abdomen(tmp_path, seed, COARSE).values())
        assert np.array_equal(header.affine, other.affine)
        assert image.shape == labels.shape
        assert "".join(nibabel.aff2axcodes(header.affine)) == axes
        assert header.header.get_zooms() == pytest.approx(COARSE)
        assert image[labels == ORGANS.index("liver") + 1].mean() == pytest.approx(110, abs=20)
        center = nibabel.affines.apply_affine(header.affine, np.argwhere(labels == ORGANS.index("liver") + 1)).mean(0)
        middle = nibabel.affines.apply_affine(header.affine, (np.array(image.shape) - 1) / 2)
        assert center[0] > middle[0] + 20  # on the patient's right


def test_a_seed_draws_the_same_again_and_another_one_draws_another(tmp_path: Path) -> None:
    volumes = [read(write_abdomen(tmp_path / str(n), seed, COARSE)["image"])[0] for n, seed in enumerate((5, 5, 7))]
    assert np.array_equal(volumes[0], volumes[1])
    assert volumes[0].shape != volumes[2].shape or not np.array_equal(volumes[0], volumes[2])


def test_a_choice_of_organs_is_numbered_as_chosen(tmp_path: Path) -> None:
    everything, _ = read(write_abdomen(tmp_path / "all", 3, COARSE)["label"])
    chosen, _ = read(write_abdomen(tmp_path / "two", 3, COARSE, organs=["liver", "spleen"])["label"])
    assert np.array_equal(chosen == 1, everything == ORGANS.index("liver") + 1)
    assert np.array_equal(chosen == 2, everything == ORGANS.index("spleen") + 1)
    assert chosen.max() == 2


def test_what_cannot_be_drawn_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"organs=\['heart'\] has \['heart'\]; known are \['spleen', "):
        write_abdomen(tmp_path, 1, organs=["heart"])
    with pytest.raises(ValueError, match="spacing must be three positive numbers of mm, got "):
        write_abdomen(tmp_path, 1, spacing=(1, 0, 1))
