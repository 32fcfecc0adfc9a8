"""Image files as inputs that are read piece by piece, in the layout and with the metadata that MONAI gives them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np

from monai_chunked.inputs.lazy.image_array import ImageArray
from monai_chunked.inputs.named_axes import NamedAxis, arrange
from monai_chunked.inputs.nifti_file import open_nifti
from monai_chunked.inputs.ome_zarr.stores import archive_of
from monai_chunked.inputs.ome_zarr.zarr_file import open_zarr
from monai_chunked.machine.store_names import is_url

__all__ = ["open_image"]


def open_image(
    path: str | os.PathLike[str], axes: str | None = None, level: int = 0, time: int | None = None
) -> ImageArray:
    """Open an image without reading it, as an input for :py:func:`chunked_sliding_window_inference`.

    Its voxels are those of MONAI's ``LoadImage`` with ``EnsureChannelFirst``, and so is its metadata, which outputs
    take over. A ``.nii`` or ``.npy`` is mapped to memory. A ``.nii.gz`` can only be read from the first slice (along
    z) to the last: its rows along x or y are the whole of it, decompressed once and kept in memory, or in
    ``scratch_dir`` beyond 1 GiB. With ``buffer_steps=1, buffer_dim=2`` windows advance along z and few slices are kept.

    Where voxels lie in the world an OME-Zarr says in units of length, of which all that its specification names and
    ``um``, ``nm`` and so on become millimeters. Others are warned of and count as none.

    Args:
        path: ``.nii``, ``.nii.gz`` or ``.npy``; anything else is a Zarr array, or a group with an OME-Zarr image (0.1
            to 0.6), in a folder, a zip file (``.ozx``, ``.ome.zarr.zip``) or at a URL. Of a plate or a series it is the
            path of one of its images, such as ``plate.ome.zarr/A/1/0``.
        axes: what the dimensions of a ``.npy`` or a Zarr array are, for instance ``"czyx"``: letters out of ``t``
            (time points, which become the batch), ``c`` (the channel) and ``x``, ``y``, ``z``, which come in this order
            in the image. By default as its metadata says, and for a ``.npy`` of up to three dimensions ``"xyz"``. What
            the metadata say of a dimension, such as its spacing, stays with it, whatever letter it gets.
        level: of the resolution pyramid of an OME-Zarr image, 0 for the finest.
        time: one point of a time series, from 0 on; ``None``: all of them, as a batch. Outputs write a result for each
            point, with ``_t000``, ``_t001``, ... behind its name.

    Raises:
        FileNotFoundError: when there is nothing at ``path``.
        ImportError: when a package that the format needs is missing.
        OSError: when the file is damaged or not complete.
        ValueError: when ``axes``, ``level`` or ``time`` do not fit, what is there is no image, or its metadata say too
            little.
        TypeError: when the image holds something else than integers or floats.

    Example::

        labels = inferer(open_image("brain.nii.gz"), network)  # (1, 1, *spatial), with the affine of the file

        for time in range(len(open_image("movie.ome.zarr"))):  # one after the other, which can be resumed one by one
            inferer(open_image("movie.ome.zarr", time=time), network)
    """
    text = os.fspath(path)
    if not is_url(text):
        if not Path(text).exists() and archive_of(text) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no image", text)
        if Path(text).name in ("", ".."):  # of ".", which has a name nevertheless
            text = os.path.abspath(text)
    text = text.rstrip("/") or text
    name = text.lower()
    if is_url(text) and name.endswith((".nii", ".nii.gz", ".npy")):
        raise ValueError(f"{text} is a URL, at which only Zarr is read; download it, and open the file on disk")
    if level != 0 and name.endswith((".nii", ".nii.gz", ".npy")):
        raise ValueError(f"level={level} is for OME-Zarr; {text} has one level, 0")
    if name.endswith((".nii", ".nii.gz")):
        if time is not None:
            raise ValueError(
                f"time={time} is for time series in OME-Zarr, Zarr and .npy; the 4th dimension of {text} is c"
            )
        if axes is not None:
            raise ValueError(f"axes={axes!r} is for OME-Zarr, Zarr and .npy; a NIfTI such as {text} is xyz, or xyzc")
        return open_nifti(text)
    if name.endswith(".npy"):
        array = _mapped(text)
        default = "xyz"[: array.ndim] if array.ndim <= 3 else None
        return arrange(array, text, axes=axes or default, described=[NamedAxis()] * array.ndim, time=time)
    return open_zarr(text, axes, level, time)


def _mapped(path: str) -> np.memmap:
    """A ``.npy``."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise OSError(
            errno.EIO, f"it is no .npy file that can be mapped to memory, or cut off ({error})", path
        ) from error
