"""
Four magnetic resonance contrasts of a brain with a lesion, drawn from a template: a phantom, of no patient.

The anatomy is the MNI152 template that nilearn carries (T1, and how much grey and white matter is in a voxel), bent a
little. The lesion has a core, an enhancing rim around it, and oedema that spreads along white matter. A seed says all
of it: the same seed gives the same voxels.

Files are as in the BraTS challenge: one for each contrast, without the skull, background exactly zero, and labels 1
(core, not enhancing), 2 (oedema) and 4 (enhancing), which MONAI's ``ConvertToMultiChannelBasedOnBratsClassesd`` reads.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import torch
import torch.nn.functional as F

from tutorials.phantoms.pictures import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CONTRASTS", "LABELS", "draw_case", "pictures", "write_case"]


LABELS = {1: "core", 2: "oedema", 4: "enhancing rim"}
COLORS = {1: "#3b9ddd", 2: "#f2a53a", 4: "#d94f70"}
CONTRASTS = {"flair": "FLAIR", "t1ce": "T1ce", "t1": "T1", "t2": "T2"}
"""Names in files and in pictures, in the order in which BraTS tutorials of MONAI stack them."""


@dataclass(frozen=True)
class Brightness:
    """How bright each tissue is in one contrast; the brightest is about one."""

    fluid: float
    grey: float
    white: float
    oedema: float
    core: float
    rim: float


BRIGHTNESS = {
    "flair": Brightness(0.12, 0.55, 0.45, 0.90, 0.50, 0.70),
    "t1ce": Brightness(0.18, 0.50, 0.68, 0.42, 0.25, 1.00),
    "t1": Brightness(0.18, 0.50, 0.70, 0.42, 0.28, 0.45),
    "t2": Brightness(1.00, 0.55, 0.40, 0.80, 0.90, 0.65),
}


def write_case(folder: str | os.PathLike[str], seed: int, resolution: float = 1) -> dict[str, list[str] | str]:
    """Write the four contrasts and the labels of one case as ``.nii.gz``, unless they are there already.

    Voxels are stored from left to right and from front to back, as BraTS has them, and the affine says so.

    Args:
        folder: where the five files go; made if it does not exist.
        seed: anatomy, lesion, brightness and noise; not negative.
        resolution: side of a voxel in mm; 1 gives 197 x 233 x 189 voxels.

    Returns:
        ``{"image": [flair, t1ce, t1, t2], "label": seg}``, paths, for MONAI's ``LoadImaged``.

    Raises:
        ValueError: when ``resolution`` is not positive, or ``seed`` is negative.

    Example::

        case = write_case("data", seed=0)
        image = LoadImaged("image")(case)["image"]  # (4, 197, 233, 189)
    """
    if resolution <= 0:
        raise ValueError(f"resolution must be a positive number of mm, got {resolution}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    name = f"brain_{resolution:g}mm_{seed:03d}"
    paths = {key: Path(folder, f"{name}_{key}.nii.gz") for key in (*CONTRASTS, "seg")}
    if not all(path.exists() for path in paths.values()):
        _write(_volumes(seed, resolution), resolution, paths)
    return {"image": [str(paths[key]) for key in CONTRASTS], "label": str(paths["seg"])}


def draw_case(case: Mapping[str, Sequence[str] | str], axes: Sequence[Axes]) -> None:
    """Draw the section with the most of the lesion: the four contrasts, and T1ce with the labels.

    Args:
        case: as :py:func:`write_case` returns it.
        axes: five of matplotlib's, one for each picture.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap

    labels = _load(str(case["label"]))
    section = int((labels > 0).sum((0, 1)).argmax())
    pictures = {name: _load(path)[:, :, section] for name, path in zip(CONTRASTS.values(), case["image"])}
    for axis, (name, picture) in zip(axes, [*pictures.items(), ("labels", pictures["T1ce"])]):
        axis.imshow(picture.T, cmap="gray", vmin=0, vmax=float(np.quantile(picture, 0.998)))
        axis.set_title(name)
        axis.axis("off")
    colors, bounds = ListedColormap(list(COLORS.values())), BoundaryNorm([0.5, 1.5, 3, 4.5], len(COLORS))
    axes[len(pictures)].imshow(np.ma.masked_equal(labels[:, :, section], 0).T, cmap=colors, norm=bounds, alpha=0.7)


def pictures(folder: str | os.PathLike[str]) -> list[list[Picture]]:
    """Write a case into a folder, and return what there is to see of it: one row."""
    case = write_case(folder, 1)
    labels = _load(str(case["label"]))
    section = int((labels > 0).sum((0, 1)).argmax())
    volumes = {name: _load(path)[:, :, section] for name, path in zip(CONTRASTS.values(), case["image"])}
    row = [
        Picture(f"brain 1: {name}", each[::-1, ::-1], (0, float(np.quantile(each, 0.998))))
        for name, each in volumes.items()
    ]
    return [[*row, replace(row[1], title="lesion", labels=labels[::-1, ::-1, section], classes=5)]]


def _load(path: str) -> np.ndarray:
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)


@cache
def _template() -> tuple[torch.Tensor, np.ndarray]:
    """T1, grey and white matter, ``(3, 197, 233, 189)`` in [0, 1], at 1 mm, and their affine."""
    # nilearn takes seconds to import, and is not needed once the files are there
    from nilearn import datasets

    images = [
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    ]
    return torch.from_numpy(np.stack([image.get_fdata(dtype=np.float32) for image in images])), images[0].affine


def _volumes(seed: int, resolution: float) -> dict[str, np.ndarray]:
    """The contrasts and the labels of a case, from left to right in each dimension of the template."""
    rng = np.random.default_rng(seed)
    t1, grey, white = _anatomy(rng, resolution)
    brain = t1 > 0.05
    labels, parts = _lesion(rng, brain, white, resolution)
    fluid = (1 - grey - white).clip(0, 1)
    volumes = {"seg": np.where(brain, labels, 0).astype(np.uint8)}
    for key, bright in BRIGHTNESS.items():
        values = {name: level * rng.uniform(0.93, 1.07) for name, level in vars(bright).items()}
        # of T1 the template knows more than its tissues say
        healthy = fluid * values["fluid"] + grey * values["grey"] + white * values["white"]
        signal = 0.5 * healthy + 0.5 * t1 if key.startswith("t1") else healthy
        for part in ("oedema", "core", "rim"):
            signal = signal + parts[part] * (values[part] - signal)
        signal *= rng.uniform(0.8, 1.2) * (1 + 0.12 * _field(rng, t1.shape, 80 / resolution))
        real, imaginary = rng.normal(0, 0.02, (2, *t1.shape)).astype(np.float32)  # magnitudes have Rician noise
        noisy = 1000 * np.hypot(signal + real, imaginary)
        volumes[key] = np.where(brain, noisy.clip(1, 32767), 0).astype(np.int16)
    return volumes


def _anatomy(rng: np.random.Generator, resolution: float) -> np.ndarray:
    """T1, grey and white matter of a head of another size and shape than the template's, at another resolution."""
    template, _ = _template()
    size = template.shape[1:]
    shape = [int((n - 1) / resolution) + 1 for n in size]
    where = []
    for d, n in enumerate(size):
        middle, scale = (n - 1) / 2, rng.uniform(0.96, 1.06)
        line = middle + scale * (resolution * np.arange(shape[d]) - middle)
        line = line.reshape([-1 if k == d else 1 for k in range(3)])
        voxels = line + 2.5 * _field(rng, shape, 45 / resolution)
        where.append(torch.from_numpy(2 * voxels / (n - 1) - 1).float())
    grid = torch.stack(where[::-1], dim=-1)  # the last dimension comes first there
    return F.grid_sample(template[None], grid[None], align_corners=True)[0].numpy()


def _lesion(
    rng: np.random.Generator, brain: np.ndarray, white: np.ndarray, resolution: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels, and how much of each part is in a voxel; parts lie over each other: oedema, core, rim."""
    z = np.flatnonzero(brain.any((0, 1))) * resolution
    low, high = np.quantile(z, [0.4, 0.75])
    x = (np.arange(brain.shape[0]) - (brain.shape[0] - 1) / 2) * resolution
    inside = (white > 0.7) & (abs(x) > 18)[:, None, None] & (abs(x) < 48)[:, None, None]
    inside[:, :, : int(low / resolution)] = inside[:, :, int(high / resolution) :] = False
    centre = rng.choice(np.argwhere(inside))
    squared = np.float32(0)
    for d, stretched in enumerate(rng.uniform(0.85, 1.15, 3)):
        line = ((np.arange(brain.shape[d]) - centre[d]) * (resolution * stretched)).astype(np.float32)
        squared = squared + line.reshape([-1 if k == d else 1 for k in range(3)]) ** 2
    distance = np.sqrt(squared)

    core, rim, oedema = rng.uniform(8, 13), rng.uniform(3.5, 5.5), rng.uniform(24, 32)
    to_core = distance + 3 * _field(rng, brain.shape, 14 / resolution)
    to_oedema = distance + 5 * _field(rng, brain.shape, 16 / resolution) + 14 * (1 - white) - 4
    shells = {"oedema": oedema - to_oedema, "core": core - to_core, "rim": rim / 2 - abs(to_core - core - rim / 2)}
    labels = np.zeros(brain.shape, np.uint8)
    for label, part in ((2, "oedema"), (1, "core"), (4, "rim")):
        labels[shells[part] > 0] = label
    return labels, {part: 1 / (1 + np.exp(-depth.clip(-30, 30) / 0.5)) for part, depth in shells.items()}


def _field(rng: np.random.Generator, shape: Sequence[int], spacing: float) -> np.ndarray:
    """Smooth random numbers, most of them between -1 and 1, that change over so many voxels."""
    coarse = rng.uniform(-1, 1, [max(round(n / spacing), 1) + 2 for n in shape]).astype(np.float32)
    return F.interpolate(torch.from_numpy(coarse)[None, None], tuple(shape), mode="trilinear")[0, 0].numpy()


def _write(volumes: Mapping[str, np.ndarray], resolution: float, paths: Mapping[str, Path]) -> None:
    """Turn each volume around in the first two dimensions, and write it."""
    _, template = _template()
    affine = template @ np.diag([-resolution, -resolution, resolution, 1])
    affine[:2, 3] += [resolution * (n - 1) for n in volumes["seg"].shape[:2]]
    folder = paths["seg"].parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # a file under its final name is always whole
        for key, path in paths.items():
            part = Path(scratch, path.name)
            nibabel.Nifti1Image(np.ascontiguousarray(volumes[key][::-1, ::-1]), affine).to_filename(part)
            part.replace(path)
