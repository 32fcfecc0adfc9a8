"""Names of results, made of those of their images, and those that a run must not take."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from monai_chunked.machine.store_names import without_store_endings
from monai_chunked.outputs.base import Metadata

__all__ = ["check_forgotten", "subject_of"]


def subject_of(metadata: Metadata, data_root_dir: str | os.PathLike[str]) -> str:
    """The path by which MONAI's ``FolderLayout`` names the result of an image.

    It takes one ending off, or that of ``.nii.gz``. Those of a Zarr store are taken off here, at the end of the path
    and nowhere else. An image in a larger store, where all are called ``0`` or so, has the name that
    :py:func:`open_image` gave it, unless the folders below ``data_root_dir`` tell it from others.

    >>> subject_of({"filename_or_obj": "/a.ome.zarr/embryo.ome.zarr/"}, "")
    '/a.ome.zarr/embryo.zarr'
    >>> well = {"filename_or_obj": "/plate.ome.zarr/A/1/0", "image_name": "plate_A_1_0"}
    >>> subject_of(well, ""), subject_of(well, "/plate.ome.zarr")
    ('/plate.ome.zarr/A/1/plate_A_1_0.zarr', '/plate.ome.zarr/A/1/0.zarr')
    """
    path = str(metadata.get("filename_or_obj") or "image").rstrip("/")
    folder, last = os.path.split(path)
    given, bare = metadata.get("image_name"), without_store_endings(last)
    if given is None and bare == last:
        return path
    return os.path.join(folder, f"{bare if given is None or data_root_dir else given}.zarr")


def check_forgotten(path: Path, overwrite: bool) -> None:
    """A run without a journal must not leave its result beside the journal of another one.

    Raises:
        FileExistsError: when there is one, and its result may not be replaced.
    """
    if path.exists() and not overwrite:
        reason = "an earlier run began or finished this result, and this one cannot be compared with it"
        advice = "overwrite=True starts afresh, another output_dir keeps both"
        raise FileExistsError(errno.EEXIST, f"{reason}; {advice}", str(path))
