"""MONAI's sliding window inference for volumes whose scores do not fit in memory."""

from monai_chunked.chunk_plan import ChunkPlan
from monai_chunked.inference import chunked_sliding_window_inference
from monai_chunked.inferer import ChunkedSliceInferer, ChunkedSlidingWindowInferer
from monai_chunked.open_image import ImageArray, open_image
from monai_chunked.outputs import MemoryOutput, NiftiOutput, NumpyOutput, Output, OutputWriter, Result, ZarrOutput

__version__ = "0.1.0"

__all__ = [
    "ChunkPlan",
    "ChunkedSliceInferer",
    "ChunkedSlidingWindowInferer",
    "ImageArray",
    "MemoryOutput",
    "NiftiOutput",
    "NumpyOutput",
    "Output",
    "OutputWriter",
    "Result",
    "ZarrOutput",
    "chunked_sliding_window_inference",
    "open_image",
]


def __dir__() -> list[str]:
    """What tab completion offers: the public names, not the modules that they come from."""
    return sorted([*__all__, "__version__"])
