"""Images, results and chunks that the tests of OME-Zarr stores share; a helper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v05 as ngff_models
import torch
import zarr
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_chunked import Result
from monai_chunked.plan.boxes import Box
from tests.outputs.cases import SETTINGS, network

AFFINE = np.array([[2.0, 0, 0, -90], [0, 3, 0, -126], [0, 0, 1.5, -72], [0, 0, 0, 1]])


def volume(*size: int, images: int = 1, affine: np.ndarray = AFFINE, **meta: Any) -> MetaTensor:
    values = torch.rand((images, 1, *(size or (9, 10, 11))), generator=torch.Generator().manual_seed(0))
    meta = {"filename_or_obj": "/data/brain.nii.gz", **meta}
    return MetaTensor(values, affine=torch.as_tensor(affine), meta=meta)


def monai(inputs: torch.Tensor) -> np.ndarray:
    return SlidingWindowInferer(**SETTINGS)(inputs, network).numpy()


def result(shape: Sequence[int], cuts: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32) -> Result:
    names = [{"filename_or_obj": f"/data/{k}.nii", "affine": AFFINE} for k in range(shape[0])]
    return Result("prediction", tuple(shape), dtype, tuple(map(tuple, cuts)), tuple(names), resumable=True)


def boxes(cuts: Sequence[Sequence[int]]) -> list[Box]:
    """Of the chunks, in raster order."""
    return list(itertools.product(*([slice(a, b) for a, b in itertools.pairwise(each)] for each in cuts)))


def at(image: int, box: Box) -> Any:
    return (image, slice(None), *box)


def write_all(writer: Any, values: torch.Tensor, cuts: Sequence[Sequence[int]]) -> Any:
    for image in range(len(values)):
        for box in boxes(cuts):
            writer.write(image, box, values[at(image, box)])
    return writer.finish()


def random_values(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(tuple(shape), generator=torch.Generator().manual_seed(1)) * 200).to(dtype)


def described(path: Path) -> Any:
    """The metadata of a store, after ome-zarr-models has compared them with the specification and the arrays."""
    return ngff_models.Image.from_zarr(zarr.open_group(path, mode="r")).attributes.ome.multiscales[0]
