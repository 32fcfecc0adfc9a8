"""MONAI's sliding window inference for volumes whose scores do not fit in memory."""

from monai_chunked.api.adapt_inferer import ChunkedSlidingWindowInfererAdapt
from monai_chunked.api.aggregator import ChunkAggregator
from monai_chunked.api.evaluator.evaluator import ChunkedEvaluator
from monai_chunked.api.evaluator.split import split_postprocessing
from monai_chunked.api.function import chunked_sliding_window_inference
from monai_chunked.api.inferer import ChunkedSlidingWindowInferer
from monai_chunked.api.patching import patch
from monai_chunked.api.sampler import WindowSampler
from monai_chunked.api.slice_inferer import ChunkedSliceInferer
from monai_chunked.call.observer import Observer
from monai_chunked.formats.nifti.output import NiftiOutput
from monai_chunked.formats.zarr.output import ZarrOutput
from monai_chunked.inputs.lazy.image_array import ImageArray
from monai_chunked.inputs.open_image import open_image
from monai_chunked.outputs.base import Expected, Output, OutputWriter, Result, ResumableOutput, ResumableWriter
from monai_chunked.outputs.memory_output import MemoryOutput
from monai_chunked.outputs.numpy import NumpyOutput
from monai_chunked.plan.chunk_plan import ChunkPlan
from monai_chunked.transforms.each_voxel import each_voxel
from monai_chunked.transforms.inversion import ImageInverse
from monai_chunked.windows.mirrored import Mirrored

__version__ = "0.1.0"

__all__ = [
    "ChunkAggregator",
    "ChunkPlan",
    "ChunkedEvaluator",
    "ChunkedSliceInferer",
    "ChunkedSlidingWindowInferer",
    "ChunkedSlidingWindowInfererAdapt",
    "Expected",
    "ImageArray",
    "ImageInverse",
    "MemoryOutput",
    "Mirrored",
    "NiftiOutput",
    "NumpyOutput",
    "Observer",
    "Output",
    "OutputWriter",
    "Result",
    "ResumableOutput",
    "ResumableWriter",
    "WindowSampler",
    "ZarrOutput",
    "chunked_sliding_window_inference",
    "each_voxel",
    "open_image",
    "patch",
    "split_postprocessing",
]


def __dir__() -> list[str]:
    """What tab completion offers: the public names, not the modules that they come from."""
    return sorted([*__all__, "__version__"])
