"""An OME-Zarr store is valid and lies in the right place of the world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImage

from monai_chunked import ZarrOutput
from monai_chunked.formats.zarr import ngff, storage_chunks
from tests.formats.zarr_cases import AFFINE, described, random_values, result, write_all
from tests.outputs.cases import infer_into


def world(multiscale: Any, level: int, index: Sequence[float]) -> np.ndarray:
    scale, translation = (t for t in multiscale.datasets[level].coordinateTransformations)
    return np.array(scale.scale)[1:] * index + np.array(translation.translation)[1:]


@pytest.mark.parametrize("levels", [1, 3])
def test_scale_translation_and_unit_are_those_of_the_file_that_monai_read(levels: int, tmp_path: Path) -> None:
    nifti = nibabel.Nifti1Image(np.random.default_rng(0).random((9, 10, 11), np.float32), AFFINE)
    nifti.header.set_xyzt_units("mm")
    nibabel.save(nifti, tmp_path / "scan.nii.gz")
    image = LoadImage(ensure_channel_first=True)(tmp_path / "scan.nii.gz")[None]
    infer_into(image, ZarrOutput(tmp_path, levels=levels))
    multiscale = described(tmp_path / "scan" / "scan_trans.ome.zarr")
    assert [axis.name for axis in multiscale.axes] == ["c", "x", "y", "z"]
    assert [axis.unit for axis in multiscale.axes[1:]] == ["millimeter"] * 3
    index = np.array([1.0, 2, 3])
    assert np.array_equal(world(multiscale, 0, index), nibabel.affines.apply_affine(AFFINE, index))
    group = zarr.open_group(tmp_path / "scan" / "scan_trans.ome.zarr", mode="r")
    assert np.array_equal(group.attrs["monai_chunked"]["affine"], AFFINE)
    for level in range(levels):  # voxel 1 covers 2 ** level voxels of the first level
        covered = np.full(3, 2**level) + (2**level - 1) / 2
        assert np.allclose(world(multiscale, level, np.ones(3)), nibabel.affines.apply_affine(AFFINE, covered))
        assert group[str(level)].metadata.dimension_names == ("c", "x", "y", "z")


@settings(max_examples=50, deadline=None)
@given(
    st.permutations(range(3)),
    st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3),
)
def test_distances_are_right_and_axes_called_after_the_world_for_any_orientation(
    order: list[int], signs: list[int], spacing: list[float], turn: list[float]
) -> None:
    x, y, z = turn
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.linalg.inv(np.eye(3) - skew) @ (np.eye(3) + skew)  # Cayley: less than 45 degrees for each axis
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.eye(3)[:, order] @ np.diag(np.multiply(signs, spacing))
    affine[:3, 3] = (3, -5, 7)
    placing = ngff.placing({"affine": affine}, 3)
    a, b = np.array([1.0, 2, 3]), np.array([7.0, -2, 5])
    expected = np.linalg.norm(affine[:3, :3] @ (a - b))
    assert np.allclose(np.linalg.norm(placing.scale * (a - b)), expected)
    origin = np.linalg.inv(affine)[:3, 3]  # the voxel at the origin of the world is at the origin of the axes
    assert np.allclose(np.array(placing.scale) * origin + placing.translation, 0, atol=1e-6)
    codes = nibabel.aff2axcodes(affine)
    assert [{"x": "RL", "y": "AP", "z": "SI"}[name].find(code) >= 0 for name, code in zip(placing.names, codes)] == [
        True
    ] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_levels_are_means_of_scores_and_nearest_for_labels(dtype: torch.dtype, tmp_path: Path) -> None:
    cuts = ((0, 4, 9), (0, 3, 10), (0, 1))
    values = random_values((1, 1, 9, 10, 1), dtype)
    write_all(
        ZarrOutput(tmp_path, levels=3, storage_chunk_size=2).create(result(values.shape, cuts, dtype)), values, cuts
    )
    group = zarr.open_group(tmp_path / "0" / "0_trans.ome.zarr", mode="r")
    assert [group[str(level)].shape for level in range(3)] == [(1, 9, 10, 1), (1, 5, 5, 1), (1, 3, 3, 1)]
    assert described(tmp_path / "0" / "0_trans.ome.zarr").type == ("mean" if dtype == torch.float32 else "nearest")
    for level in (1, 2):
        above = torch.as_tensor(group[str(level - 1)][...])
        if dtype == torch.float32:
            expected = torch.nn.functional.avg_pool3d(above, (2, 2, 1), ceil_mode=True, count_include_pad=False)
            assert np.allclose(group[str(level)][...], expected.numpy(), rtol=1e-6)
        else:
            assert np.array_equal(group[str(level)][...], above[:, ::2, ::2].numpy())


def test_a_shard_holds_several_storage_chunks_in_one_file(tmp_path: Path) -> None:
    cuts = ((0, 5, 9), (0, 8), (0, 8))
    values = random_values((1, 3, 9, 8, 8))
    output = ZarrOutput(tmp_path, storage_chunk_size=2, shard_size=(4, 8, 8))
    array = write_all(output.create(result(values.shape, cuts)), values, cuts)
    assert (array.chunks, array.shards) == ((1, 2, 2, 2), (1, 4, 8, 8))
    assert np.array_equal(array[...], values[0].numpy())


def test_small_storage_chunks_have_several_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_chunks, "TARGET_BYTES", 1600)
    cuts = ((0, 4, 9), (0, 4), (0, 8))
    values = random_values((1, 5, 9, 4, 8))
    array = write_all(ZarrOutput(tmp_path, levels=2).create(result(values.shape, cuts)), values, cuts)
    assert (array.chunks, array.shards) == ((3, 4, 4, 8), None)
    assert np.array_equal(array[...], values[0].numpy())
    below = zarr.open_group(tmp_path / "0" / "0_trans.ome.zarr", mode="r")["1"]
    assert (below.shape, below.chunks) == ((5, 5, 2, 4), (3, 4, 2, 4))
    expected = torch.nn.functional.avg_pool3d(values[0], 2, ceil_mode=True, count_include_pad=False)
    assert np.allclose(below[...], expected.numpy(), rtol=1e-6)


def test_what_is_all_zeros_is_not_written_but_minus_zero_is(tmp_path: Path) -> None:
    cuts = ((0, 2, 4), (0, 4), (0, 4))
    values = torch.zeros((1, 2, 4, 4, 4))
    values[0, 1, 3, 3, 3] = -0.0
    array = write_all(ZarrOutput(tmp_path, storage_chunk_size=2).create(result(values.shape, cuts)), values, cuts)
    assert array.nchunks_initialized == 8  # of 16: the upper half
    assert np.array_equal(np.signbit(array[...]), values[0].signbit().numpy())
    assert not array[...].any()
