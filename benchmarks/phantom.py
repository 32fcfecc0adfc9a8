"""
The images of `pipeline`, and the networks that stand in for trained ones.

An image has an anisotropic grid in LPS orientation. Its intensities are the labels themselves, ten apart; the network
has to undo what resampling made of them.
"""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch.nn.functional import avg_pool3d, max_pool3d

from benchmarks.harness import Job
from benchmarks.peers import Pointwise

__all__ = ["STEP", "Organs", "network_of", "write_image"]

SPACING = (0.8, 0.8, 1.125)
"""Of the image in mm; the network's is 1.5, so that 256 x 256 x 200 voxels become 137 x 137 x 150."""

STEP = 10
"""Between the intensities of two labels."""

BODY = ((0.5, 0.5, 0.5), (0.44, 0.34, 9.0))
ORGANS = {
    "right lung": ((0.32, 0.47, 0.78), (0.13, 0.20, 0.20)),
    "left lung": ((0.68, 0.47, 0.78), (0.13, 0.20, 0.20)),
    "heart": ((0.54, 0.38, 0.70), (0.10, 0.11, 0.10)),
    "liver": ((0.36, 0.45, 0.47), (0.19, 0.19, 0.11)),
    "spleen": ((0.74, 0.58, 0.47), (0.07, 0.09, 0.08)),
    "stomach": ((0.62, 0.38, 0.46), (0.11, 0.11, 0.09)),
    "right kidney": ((0.37, 0.66, 0.31), (0.055, 0.065, 0.09)),
    "left kidney": ((0.63, 0.66, 0.32), (0.055, 0.065, 0.09)),
    "pancreas": ((0.52, 0.47, 0.33), (0.12, 0.035, 0.035)),
    "aorta": ((0.53, 0.57, 0.60), (0.028, 0.028, 0.40)),
    "bladder": ((0.50, 0.42, 0.10), (0.09, 0.08, 0.07)),
}
"""Centre and radii, as parts of the image from right to left, front to back, bottom to top."""

SPINE = ((0.5, 0.68, 0.5), (0.055, 0.055, 9.0))
VERTEBRAE, RIBS = 24, 24


class Organs(torch.nn.Module):
    """Scores as of a trained network for intensities that are labels: sure inside, soft over two voxels at a border.

    Resampling makes what lies between two labels out of a border, which is the intensity of a third. So the labels of
    a voxel are the least and the greatest intensity next to it, and the mean says how much of each there is. All other
    classes have low scores that differ with the tissue. Borders move a little towards one corner of the window, so
    that windows disagree where they overlap.
    """

    sure: float = 14.0
    slope: torch.Tensor
    offset: torch.Tensor
    dimming: torch.Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        numbers = torch.arange(classes)[:, None, None, None]
        self.register_buffer("slope", torch.sin(2.0 * numbers) / classes)
        self.register_buffer("offset", torch.cos(3.0 * numbers) - 6)
        self.register_buffer("dimming", torch.ones(()))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        if self.dimming.shape != windows.shape[2:]:
            x, y, z = (torch.linspace(0.9, 1, size) for size in windows.shape[2:])
            self.dimming = x[:, None, None] * y[:, None] * z
        tissue = windows * (self.classes - 1)
        greatest = max_pool3d(tissue, 3, 1, 1).round_()
        least = max_pool3d(-tissue, 3, 1, 1).neg_().round_()
        part = avg_pool3d(tissue, 3, 1, 1, count_include_pad=False).sub_(least)
        part.div_((greatest - least).clamp_(min=1)).clamp_(0, 1).mul_(self.dimming).mul_(self.sure)
        scores = torch.addcmul(self.offset, tissue, self.slope)
        scores.scatter_add_(1, greatest.long(), part)
        return scores.scatter_add_(1, least.long(), part.neg_().add_(self.sure))


def network_of(job: Job) -> torch.nn.Module:
    """The network that goes with the image of a job."""
    return (Pointwise if job.network == "noise" else Organs)(job.classes).eval()


def write_image(job: Job, path: Path) -> None:
    """Write the image of a job as `.nii`, int16."""
    if job.network == "noise":
        brightest = STEP * (job.classes - 1)
        voxels = np.random.default_rng(0).integers(0, brightest, job.image_size, np.int16, endpoint=True)
    else:
        voxels = labels_of(job.image_size, job.classes).astype(np.int16)
        voxels *= STEP
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])  # first index to the left, second to the back
    affine[:3, 3] = [0.5 * SPACING[0] * job.image_size[0], 0.5 * SPACING[1] * job.image_size[1], -700]
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def labels_of(size: tuple[int, int, int], classes: int) -> np.ndarray:
    """
    A body of so many labels, background included: organs, and from 15 classes on vertebrae, ribs, and smaller things.

    >>> int(labels_of((64, 64, 50), 14).max()), int(labels_of((64, 64, 50), 105).max())
    (13, 104)
    """
    whole_body = classes > len(ORGANS) + 3
    least = len(ORGANS) + VERTEBRAE + RIBS + 2
    if (whole_body and classes < least) or classes < len(ORGANS) + 3:
        raise ValueError(f"classes must be {len(ORGANS) + 3}, or at least {least}, got {classes}.")
    volume = np.zeros(size, np.uint8)
    _paint(volume, 1, *BODY, waves=0)
    label = 2
    if whole_body:
        label = _paint_bones(volume, label)
    else:
        _paint(volume, label, *SPINE, waves=0)
        label += 1
    for centre, radii in ORGANS.values():
        _paint(volume, label, centre, radii)
        label += 1
    _paint_small(volume, label, classes)
    return volume


def _paint_small(volume: np.ndarray, label: int, classes: int) -> None:
    """Muscles, glands, vessels: ellipsoids anywhere in the body where nothing else is."""
    random = np.random.default_rng(1)
    while label < classes:
        angle, distance = random.uniform(0, 2 * math.pi), random.uniform(0.1, 0.75)
        x = 0.5 + distance * BODY[1][0] * math.cos(angle)
        y = 0.5 + distance * BODY[1][1] * math.sin(angle)
        centre, radii = (x, y, random.uniform(0.05, 0.95)), tuple(random.uniform(0.02, 0.06, 3))
        if volume[tuple(int(part * size) for part, size in zip(centre, volume.shape))] == 1:
            _paint(volume, label, centre, radii, over=1)
            label += 1


def _paint_bones(volume: np.ndarray, label: int) -> int:
    (x, y, _), (rx, ry, _) = SPINE
    for number in range(VERTEBRAE):
        _paint(volume, label + number, (x, y, (number + 0.5) / VERTEBRAE), (rx, ry, 0.4 / VERTEBRAE), waves=0, power=6)
    label += VERTEBRAE
    first, second, third = (_places(size) for size in volume.shape)
    (cx, cy, _), (bx, by, _) = BODY
    radius = np.sqrt(((first - cx) / bx)[:, None] ** 2 + ((second - cy) / by) ** 2)
    for number in range(RIBS):
        height = 0.5 + 0.5 * (number // 2 + 0.5) / (RIBS // 2)
        side = (first < cx) if number % 2 else (first >= cx)
        ring = (radius > 0.80) & (radius < 0.88) & side[:, None] & (second > 0.25)
        for k in np.flatnonzero(np.abs(third - height) < 0.06):
            inclined = np.abs(third[k] - height - 0.1 * (second - 0.5)) < 0.012
            volume[..., k][ring & inclined] = label + number
    return label + RIBS


def _paint(
    volume: np.ndarray,
    label: int,
    centre: tuple[float, ...],
    radii: tuple[float, ...],
    over: int | None = None,
    waves: float = 0.12,
    power: int = 2,
) -> None:
    """An ellipsoid with a surface in gentle waves; `power` above 2 makes it a box with round edges."""
    boxes, offsets = [], []
    for size, middle, radius in zip(volume.shape, centre, radii):
        start = max(0, math.floor((middle - 1.1 * radius) * size))
        stop = min(size, math.ceil((middle + 1.1 * radius) * size))
        boxes.append(slice(start, stop))
        offsets.append(((_places(size)[start:stop] - middle) / radius).astype(np.float32))
    x, y, z = offsets[0][:, None, None], offsets[1][:, None], offsets[2]
    surface = 1 + waves * np.sin(4 * x + label) * np.sin(4 * y + 2 * label) * np.sin(4 * z + 3 * label)
    inside = np.abs(x) ** power + np.abs(y) ** power + np.abs(z) ** power < surface
    box = volume[tuple(boxes)]
    box[inside if over is None else inside & (box == over)] = label


def _places(size: int) -> np.ndarray:
    """Middles of voxels, as parts of the image."""
    return (np.arange(size) + 0.5) / size
