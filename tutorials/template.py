"""The data of the bundle and of the demo: the MNI152 brain template and its tissue labels, as NIfTI files.

nilearn carries the template (skull-stripped T1, ICBM 2009) and its tissue probability maps at 1 mm, so nothing is
downloaded.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

LABELS = {0: "background", 1: "cerebrospinal fluid and other", 2: "grey matter", 3: "white matter"}


def write_template(folder: str | os.PathLike[str], resolution: float = 1) -> dict[str, str]:
    """Write the T1 template and its labels as `.nii.gz` into `folder`, unless they are there already.

    A voxel of the brain gets the label that is the most probable of grey matter, white matter and neither; the
    background is where the skull-stripped T1 is zero.

    Args:
        folder: where the two files go; made if it does not exist.
        resolution: side of a voxel in mm. 1 is the template as it is; otherwise the T1 is resampled linearly and the
            labels by nearest neighbour.

    Returns:
        The paths of the two files, as `{"image": ..., "label": ...}`.
    """
    if resolution <= 0:
        raise ValueError(f"resolution must be a positive number of mm, got {resolution}.")
    folder = Path(folder)
    paths = {key: folder / f"mni152_{resolution:g}mm_{key}.nii.gz" for key in ("image", "label")}
    if not all(path.exists() for path in paths.values()):
        _write(paths, resolution)
    return {key: str(path) for key, path in paths.items()}


def _write(paths: dict[str, Path], resolution: float) -> None:
    # nilearn takes seconds to import, and is not needed once the files are there
    from nilearn import datasets
    from nilearn.image import new_img_like, resample_img

    image = datasets.load_mni152_template(resolution=1)
    grey = datasets.load_mni152_gm_template(resolution=1).get_fdata()
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata()
    tissue = np.argmax([1 - grey - white, grey, white], axis=0) + 1
    label = new_img_like(image, np.where(image.get_fdata() > 0, tissue, 0).astype(np.uint8))
    if resolution != 1:
        affine = np.eye(3) * resolution
        image = resample_img(image, affine, interpolation="linear")
        label = resample_img(label, affine, interpolation="nearest")

    folder = paths["image"].parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # a file under its final name is always whole
        for key, volume, dtype in (("image", image, np.float32), ("label", label, np.uint8)):
            part = Path(scratch, paths[key].name)
            volume.set_data_dtype(dtype)
            volume.to_filename(part)
            part.replace(paths[key])
