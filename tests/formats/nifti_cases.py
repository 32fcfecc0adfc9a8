"""Images, results and writers that the tests of NIfTI files share; a helper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor

from monai_chunked import OutputWriter, Result
from monai_chunked.plan.boxes import Box

EXTENSIONS = [".nii", ".nii.gz"]
AFFINE = torch.tensor([[0, -2.0, 0, 5], [1.5, 0, 0, 7], [0, 0.1, 3, 9], [0, 0, 0, 1]], dtype=torch.float64)


def image(*shape: int, name: str = "scan.nii") -> MetaTensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return MetaTensor(values, affine=AFFINE.clone(), meta={"filename_or_obj": name, "space": "RAS"})


def voxels(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(100).to(dtype)


def result_for(tensor: torch.Tensor, chunk: int = 3, overwrite: bool = False) -> Result:
    cuts = tuple((*range(0, size, chunk), size) for size in tensor.shape[2:])
    metadata = tuple({"filename_or_obj": f"scan{k}.nii", "affine": AFFINE} for k in range(len(tensor)))
    return Result("prediction", tuple(tensor.shape), tensor.dtype, cuts, metadata, overwrite, resumable=True)


def chunks(result: Result) -> list[tuple[int, Box]]:
    """In a fixed order that is not that of any run."""
    sides = [[slice(*pair) for pair in itertools.pairwise(cuts)] for cuts in result.cuts]
    every = list(itertools.product(range(result.shape[0]), itertools.product(*sides)))
    return [every[k] for k in torch.randperm(len(every), generator=torch.Generator().manual_seed(1))]


def write(writer: OutputWriter, tensor: torch.Tensor, some: Sequence[tuple[int, Box]]) -> None:
    for k, box in some:
        writer.write(k, box, tensor[k][(slice(None), *box)])


def in_file(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stacked(finished: Any) -> torch.Tensor:
    """A finished result of any number of images."""
    return torch.stack(finished) if isinstance(finished, list) else finished
