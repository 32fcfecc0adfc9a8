"""Where finished chunks go: one file or folder a format, behind the interface in ``base.py``."""

from monai_chunked.outputs.auto import AutoOutput
from monai_chunked.outputs.base import Metadata, Output, OutputWriter, Result
from monai_chunked.outputs.memory import MemoryOutput
from monai_chunked.outputs.nifti.output import NiftiOutput
from monai_chunked.outputs.numpy import NumpyOutput
from monai_chunked.outputs.zarr.output import ZarrOutput

__all__ = [
    "AutoOutput",
    "MemoryOutput",
    "Metadata",
    "NiftiOutput",
    "NumpyOutput",
    "Output",
    "OutputWriter",
    "Result",
    "ZarrOutput",
]
