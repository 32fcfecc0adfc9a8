"""What stands before the voxels of a NIfTI file."""

from __future__ import annotations

from io import BytesIO

import nibabel
import numpy as np
import torch
from monai.data.utils import to_affine_nd
from monai.utils import SpaceKeys
from nibabel.spatialimages import HeaderDataError

from monai_chunked.machine.caller import warn_caller
from monai_chunked.outputs.base import Metadata
from monai_chunked.outputs.file_output import numpy_dtype

__all__ = ["header", "stored_dtype"]


def stored_dtype(dtype: torch.dtype) -> np.dtype:
    """The dtype in the file, which has the same size."""
    try:
        stored = np.dtype(np.uint8) if dtype == torch.bool else numpy_dtype(dtype)
        nibabel.Nifti1Header().set_data_dtype(stored)
    except (TypeError, HeaderDataError):
        raise TypeError(
            f"a NIfTI file cannot hold {dtype}; pass float32 inputs, or a postprocessing that returns integers, "
            f"float32 or float64"
        ) from None
    return stored


def header(shape: tuple[int, ...], dtype: np.dtype, metadata: Metadata) -> bytes:
    """All that MONAI's ``NibabelWriter`` writes before the voxels of an image ``(C, *spatial)``."""
    channels, *size = shape
    in_file = [*size, *[1] * (3 - len(size)), channels]
    while len(in_file) > 1 and in_file[-1] == 1:
        in_file.pop()
    affine = metadata.get("affine")
    affine = to_affine_nd(3, np.eye(4) if affine is None else np.asarray(affine, np.float64))
    if metadata.get("space") == SpaceKeys.LPS:
        warn_caller(
            "the affine of the image is in LPS coordinates; it is written as it is, which is what SaveImage does, but "
            "NIfTI means RAS coordinates",
        )
    kind = nibabel.Nifti2Image if max(in_file) > np.iinfo(np.int16).max else nibabel.Nifti1Image
    image = kind(np.broadcast_to(np.zeros((), dtype), in_file), affine, dtype=dtype)  # takes no memory
    code = int(metadata.get("sform_code", 0)) or int(metadata.get("qform_code", 0)) or 1
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_slope_inter(1, 0)
    image.header["xyzt_units"] = int(metadata.get("xyzt_units", 0)) & 0b111  # the unit of space
    written = BytesIO()
    image.header.write_to(written)
    return written.getvalue()
