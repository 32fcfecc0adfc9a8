"""An abdomen in Hounsfield units as of a CT in the portal venous phase: 13 organs, vessels, bones, fat, lungs and air.

Organs have the labels of the challenge "Beyond the Cranial Vault". Shapes, places, contrast, noise, spacing and
orientation differ with the seed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.transforms import GaussianSmooth
from nibabel.orientations import axcodes2ornt, ornt_transform

from tutorials.phantoms.person import AIR, ORGANS, Person
from tutorials.phantoms.pictures import Picture
from tutorials.phantoms.shapes import Canvas

__all__ = ["ORGANS", "pictures", "write_abdomen"]

LENGTH = 240
"""Of the volume from bottom to top, in mm."""


def write_abdomen(
    folder: str | os.PathLike[str],
    seed: int,
    spacing: Sequence[float] | None = None,
    organs: Sequence[str] = ORGANS,
) -> dict[str, str]:
    """Write an abdomen and its labels as `.nii.gz` into `folder`.

    Args:
        folder: where the two files go; made if it does not exist.
        seed: draws everything; the same seed gives the same files.
        spacing: sides of a voxel in mm. By default it is drawn: 0.68 to 0.75 in the plane, which makes 512 x 512
            voxels, and 3 to 5 from section to section. Coarser ones are quicker to draw and to read.
        organs: those that get a label, in the order of their labels from 1; all others are background.

    Raises:
        ValueError: when `organs` has an unknown name, or a spacing is not positive.

    Returns:
        The paths of the two files, as `{"image": ..., "label": ...}`.
    """
    if unknown := [organ for organ in organs if organ not in ORGANS]:
        raise ValueError(f"organs={list(organs)} has {unknown}; known are {list(ORGANS)}.")
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        raise ValueError(f"spacing must be three positive numbers of mm, got {spacing}.")
    intensity, labels, affine = _draw(seed, spacing)
    numbers = np.zeros(len(ORGANS) + 1, np.uint8)
    for label, organ in enumerate(organs, 1):
        numbers[ORGANS.index(organ) + 1] = label

    Path(folder).mkdir(parents=True, exist_ok=True)
    axes = ("LPS", "LAS")[seed % 2]  # as scanners write them; both are flipped for MONAI's RAS
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    paths = {key: str(Path(folder, f"abdomen_{seed:02}_{key}.nii.gz")) for key in ("image", "label")}
    for key, volume in (("image", intensity.round().astype(np.int16)), ("label", numbers[labels])):
        nibabel.save(nibabel.Nifti1Image(volume, affine).as_reoriented(turn), paths[key])
    return paths


def _draw(seed: int, spacing: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hounsfield units, labels and affine, in RAS."""
    rng = np.random.default_rng(seed)
    in_plane, between, noise = round(rng.uniform(0.68, 0.75), 3), (3.0, 4.0, 5.0)[rng.integers(3)], rng.uniform(12, 17)
    side = 512 * in_plane
    spacing = (in_plane, in_plane, between) if spacing is None else spacing
    axes = [
        (np.arange(round(length / step)) - (round(length / step) - 1) / 2) * step
        for length, step in zip((side, side, LENGTH), spacing, strict=True)
    ]
    table = np.array([*rng.uniform(-8, 8, 2), rng.uniform(-900, -200)]).round(1)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [axis[0] + offset for axis, offset in zip(axes, table, strict=True)]

    canvas = Canvas(axes, AIR, rng, bend=5)
    Person(canvas, rng).paint()
    return _scan(canvas.intensity, spacing, noise, rng), canvas.labels, affine


def _scan(intensity: np.ndarray, spacing: Sequence[float], noise: float, rng: np.random.Generator) -> np.ndarray:
    """What a scanner makes of tissue: soft borders, and noise that neighbours share."""
    smooth = GaussianSmooth([0.6 / step for step in spacing])
    point = torch.zeros(1, 15, 15, 15)
    point[0, 7, 7, 7] = 1
    left = float(smooth(point).square().sum().sqrt())  # of noise that is smoothed
    intensity += rng.standard_normal(intensity.shape, np.float32) * np.float32(noise / left)
    return torch.as_tensor(smooth(intensity[None])[0]).clamp(-1024, 1500).numpy()


def pictures(folder: str | os.PathLike[str]) -> list[list[Picture]]:
    """Rows of the page: two people, each in three sections."""
    return [_row(write_abdomen(folder, seed), f"abdomen {seed}") for seed in (1, 2)]


def _row(paths: dict[str, str], name: str) -> list[Picture]:
    volumes = {key: nibabel.as_closest_canonical(nibabel.load(path)) for key, path in paths.items()}
    image, labels = (np.asanyarray(volumes[key].dataobj) for key in ("image", "label"))
    x, y, z = volumes["image"].header.get_zooms()
    size = " x ".join(map(str, image.shape))
    image, labels = image[::-1], labels[::-1]  # as radiologists look at it, from the feet
    axial, front = round(0.58 * image.shape[2]), round(0.43 * image.shape[1])
    window, classes = (-160, 240), len(ORGANS) + 1
    return [
        Picture(f"{name}: {size} voxels", image[:, :, axial], window),
        Picture(f"of {x:.2f} x {y:.2f} x {z:g} mm", image[:, :, axial], window, labels[:, :, axial], classes),
        Picture("from the front", image[:, front], window, None, classes, z / x),
        Picture("13 organs", image[:, front], window, labels[:, front], classes, z / x),
    ]
