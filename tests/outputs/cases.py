"""A small volume, a network, and what the inferers make of them; a helper."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer, Output

OUTPUTS = ["device", "cpu", "disk", "auto"]
SETTINGS: dict[str, Any] = {"roi_size": 6, "overlap": 0.5, "mode": "gaussian"}


def volume(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((2, 1, *(size or (9, 10, 11))), generator=torch.Generator().manual_seed(seed))


def network(windows: torch.Tensor) -> torch.Tensor:
    return torch.cat([windows, windows.sin(), 1 - windows], 1)


def identity(windows: torch.Tensor) -> torch.Tensor:
    return windows.clone()  # MONAI writes to what the network returns


def infer(inputs: torch.Tensor, predictor: Callable[..., Any] = network, **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, predictor)


def infer_into(inputs: torch.Tensor, output: Output, **parameters: Any) -> Any:
    return infer(inputs, output=output, **parameters)


def monai(inputs: torch.Tensor, predictor: Callable[..., Any] = network, **parameters: Any) -> Any:
    return SlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, predictor)


def is_on_disk(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor belongs to the map of a file."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what memory belongs to a file")
    address = tensor.untyped_storage().data_ptr()
    for line in maps.read_text().splitlines():
        borders, *_, path = line.split(maxsplit=5)
        start, stop = (int(border, 16) for border in borders.split("-"))
        if start <= address < stop:
            return path.endswith((".npy", " (deleted)"))
    raise AssertionError("the tensor has no memory")


def same_array(array: np.ndarray, tensor: torch.Tensor) -> bool:
    expected = tensor.numpy()
    return array.dtype == expected.dtype and np.array_equal(array, expected)


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def mapped_from(folder: Path) -> int:
    """How many files of a folder are mapped; those without a name count too."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what memory belongs to a file")
    lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines()]
    return len({line[4] for line in lines if line[5:] and line[5].startswith(f"{folder}{os.sep}")})
