"""Where finished chunks go: one file a format."""

from monai_chunked.outputs.auto import AutoOutput
from monai_chunked.outputs.base import Output, OutputWriter
from monai_chunked.outputs.memory import MemoryOutput
from monai_chunked.outputs.numpy import NumpyOutput

__all__ = ["AutoOutput", "MemoryOutput", "NumpyOutput", "Output", "OutputWriter"]
