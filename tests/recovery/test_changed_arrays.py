"""Arrays that are read piece by piece: a result is not used again when any voxel of one has changed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import dask.array
import h5py
import numpy as np
import pytest
import torch
import zarr

from monai_chunked import ChunkedSlidingWindowInferer, NumpyOutput


@pytest.mark.parametrize("kind", ["h5py", "zarr", "dask", "memmap"])
def test_one_voxel_of_a_large_array_that_has_changed_is_noticed_wherever_it_is(kind: str, tmp_path: Path) -> None:
    """In an array of which no few small boxes would show it."""
    shape, at = (1, 1, 48, 48, 48), (0, 0, 10, 10, 10)

    def written(value: float) -> Any:
        voxels = np.zeros(shape, np.float32)
        voxels[at] = value
        if kind == "memmap":
            path = tmp_path / "voxels.raw"
            voxels.tofile(path)
            return np.memmap(path, np.float32, "r", shape=shape)
        if kind == "zarr":
            array = zarr.create_array(
                tmp_path / "voxels.zarr", shape=shape, dtype="f4", chunks=(1, 1, 24, 24, 24), overwrite=True
            )
            array[...] = voxels
            return array
        with h5py.File(tmp_path / "voxels.h5", "w") as file:
            file["voxels"] = voxels
        dataset = files.enter_context(h5py.File(tmp_path / "voxels.h5"))["voxels"]
        return dataset if kind == "h5py" else dask.array.from_array(dataset, chunks=24)

    network = torch.nn.Conv3d(1, 1, 1)
    for value in (1.0, 2.0):
        files = contextlib.ExitStack()
        array = written(value)
        with files, torch.no_grad(), contextlib.suppress(FileExistsError):
            result = ChunkedSlidingWindowInferer(24, output=NumpyOutput(tmp_path / "results"))(array, network)
            assert result[at] == network(torch.full((1, 1, 1, 1, 1), value)).item()
