"""OME-Zarr outputs: MONAI's values, valid stores in the right place of the world, each storage chunk written once."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import nibabel
import numpy as np
import ome_zarr_models.v05 as ngff_models
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import LoadImage

from monai_chunked import ChunkedSlidingWindowInferer, Result, ZarrOutput
from monai_chunked.outputs.zarr import ngff, storage_chunks
from monai_chunked.outputs.zarr.storage_chunks import Collector, storage_chunk_size
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.window_grid import window_grid

SETTINGS: dict[str, Any] = {"roi_size": 6, "overlap": 0.5, "mode": "gaussian"}
AFFINE = np.array([[2.0, 0, 0, -90], [0, 3, 0, -126], [0, 0, 1.5, -72], [0, 0, 0, 1]])


def volume(*size: int, images: int = 1, affine: np.ndarray = AFFINE, **meta: Any) -> MetaTensor:
    values = torch.rand((images, 1, *(size or (9, 10, 11))), generator=torch.Generator().manual_seed(0))
    meta = {"filename_or_obj": "/data/brain.nii.gz", **meta}
    return MetaTensor(values, affine=torch.as_tensor(affine), meta=meta)


def network(windows: torch.Tensor) -> torch.Tensor:
    return torch.cat([windows, windows.sin(), 1 - windows], 1)


def infer(inputs: torch.Tensor, output: ZarrOutput, **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer(**{**SETTINGS, **parameters}, output=output)(inputs, network)


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


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("chunk_size", [None, (4, 3, 11), 2], ids=str)
@pytest.mark.parametrize("size", [(9, 10, 11), (13, 17)], ids=len)
def test_a_store_holds_monais_bits(chunk_size: Any, size: tuple[int, ...], tmp_path: Path) -> None:
    chunk_size = chunk_size if chunk_size is None else np.broadcast_to(chunk_size, 3)[: len(size)].tolist()
    array = infer(volume(*size), ZarrOutput(tmp_path, storage_chunk_size=4), chunk_size=chunk_size)
    assert isinstance(array, zarr.Array)
    assert np.array_equal(array[...], monai(volume(*size))[0])
    reopened = zarr.open_group(tmp_path / "brain" / "brain_trans.ome.zarr", mode="r")["0"]
    assert np.array_equal(reopened[...], monai(volume(*size))[0])


def test_a_batch_is_a_list_of_arrays_and_labels_are_labels(tmp_path: Path) -> None:
    inputs = torch.rand((2, 1, 9, 10, 11), generator=torch.Generator().manual_seed(0))
    output = ZarrOutput(tmp_path, "labels", separate_folder=False, levels=2)
    names = [{"filename_or_obj": f"/data/{name}.nii.gz", "affine": AFFINE} for name in "ab"]
    writer = output.create(
        Result("prediction", (2, 1, 9, 10, 11), torch.uint8, ((0, 4, 9), (0, 10), (0, 11)), (*names,))
    )
    labels = torch.as_tensor(monai(inputs).argmax(1, keepdims=True)).to(torch.uint8)
    arrays = write_all(writer, labels, ((0, 4, 9), (0, 10), (0, 11)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_labels.ome.zarr", "b_labels.ome.zarr"]
    for array, expected in zip(arrays, labels, strict=True):
        assert np.array_equal(array[...], expected.numpy())
    group = zarr.open_group(tmp_path / "a_labels.ome.zarr", mode="r")
    assert ngff_models.ImageLabel.from_zarr(group).attributes.ome.image_label is not None
    assert np.array_equal(group["1"][...], labels[0, :, ::2, ::2, ::2].numpy())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float32, torch.float64, torch.uint8, torch.uint16, torch.int64, torch.bool], ids=str
)
def test_a_store_holds_any_dtype_that_zarr_knows(dtype: torch.dtype, tmp_path: Path) -> None:
    cuts = ((0, 3, 7), (0, 5), (0, 2, 4))
    values = random_values((1, 2, 7, 5, 4), dtype)
    array = write_all(ZarrOutput(tmp_path).create(result(values.shape, cuts, dtype)), values, cuts)
    assert array.dtype == values.numpy().dtype
    assert np.array_equal(array[...], values[0].numpy())


def cut(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    inner = st.sets(st.integers(1, size - 1), max_size=4) if size > 1 else st.just(set())
    return inner.map(lambda cuts: (0, *sorted(cuts), size))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_chunks_of_any_cuts_and_order_become_whole_storage_chunks_each_written_once(data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=3))
    cuts = [data.draw(cut(n)) for n in size]
    unit = [data.draw(st.integers(1, 6)) for _ in size]
    order = data.draw(st.permutations(boxes(cuts)))
    values = np.random.default_rng(0).random((2, *size))
    collector = Collector(values.shape, unit)
    written = np.zeros(values.shape, int)
    found = np.zeros(values.shape)
    safe: list[Box] = []
    for box in order:
        chunk = values[(slice(None), *box)].copy()
        for region, part in collector.add(box, chunk):
            assert all(s.start % u == 0 and (s.stop % u == 0 or s.stop == n) for s, u, n in zip(region[1:], unit, size))
            written[region] += 1
            found[region] = part
        chunk[...] = -1  # the core uses the memory again
        safe += collector.written()
        for done in safe:
            assert written[(slice(None), *done)].all()
    assert list(collector.rest()) == []
    assert collector.held_bytes == 0
    assert (written == 1).all()
    assert np.array_equal(found, values)
    assert sorted(map(str, safe)) == sorted(map(str, order))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_never_more_than_the_limit_is_held_and_nothing_is_lost_by_that(data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=3))
    cuts = [data.draw(cut(n)) for n in size]
    limit = data.draw(st.integers(0, 2000))
    values = np.random.default_rng(0).random((2, *size))
    collector = Collector(values.shape, [5] * len(size), limit)
    written = np.zeros(values.shape, int)
    found = np.zeros(values.shape)
    for box in data.draw(st.permutations(boxes(cuts))):
        for region, part in collector.add(box, values[(slice(None), *box)]):
            written[region] += 1
            found[region] = part
        assert collector.held_bytes <= limit
    for region, part in collector.rest():
        written[region] += 1
        found[region] = part
    assert (written == 1).all()
    assert np.array_equal(found, values)


@pytest.mark.parametrize("channels", [1, 14, 105])
@pytest.mark.parametrize("itemsize", [1, 4])
@pytest.mark.parametrize("size", [(256, 256, 512), (197, 233, 189)])
def test_storage_chunks_are_chosen_so_that_little_is_held(channels: int, itemsize: int, size: tuple[int, ...]) -> None:
    windows = window_grid(size, (96, 96, 96), (0.5, 0.5, 0.5), None, -1)
    cuts = [sorted({0, n, *starts, *(start + 96 for start in starts)}) for n, starts in zip(size, windows.starts)]
    cuts = [*cuts[:2], [0, size[2]]]
    unit = storage_chunk_size(cuts, channels, itemsize)
    assert 2**16 <= np.prod(unit) * itemsize <= 2**22
    # what is held does not depend on the number of channels, so it is tried with none of the memory
    collector = Collector((1, *size), unit)
    most = 0
    for box in boxes(cuts):
        for _ in collector.add(box, np.broadcast_to(np.uint8(0), (1, *(s.stop - s.start for s in box)))):
            pass
        most = max(most, collector.held_bytes)
    assert most * channels * itemsize <= storage_chunks.HELD_BYTES


# ---------------------------------------------------------------- what the store says of itself


def described(path: Path) -> Any:
    """The metadata of a store, after ome-zarr-models has compared them with the specification and the arrays."""
    return ngff_models.Image.from_zarr(zarr.open_group(path, mode="r")).attributes.ome.multiscales[0]


def world(multiscale: Any, level: int, index: Sequence[float]) -> np.ndarray:
    scale, translation = (t for t in multiscale.datasets[level].coordinateTransformations)
    return np.array(scale.scale)[1:] * index + np.array(translation.translation)[1:]


@pytest.mark.parametrize("levels", [1, 3])
def test_scale_translation_and_unit_are_those_of_the_file_that_monai_read(levels: int, tmp_path: Path) -> None:
    nifti = nibabel.Nifti1Image(np.random.default_rng(0).random((9, 10, 11), np.float32), AFFINE)
    nifti.header.set_xyzt_units("mm")
    nibabel.save(nifti, tmp_path / "scan.nii.gz")
    image = LoadImage(ensure_channel_first=True)(tmp_path / "scan.nii.gz")[None]
    infer(image, ZarrOutput(tmp_path, levels=levels))
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


# ---------------------------------------------------------------- crashes

CUTS = ((0, 3, 7), (0, 5), (0, 4, 6))


def left_by_a_crash(output: ZarrOutput, values: torch.Tensor, chunks: int) -> list[tuple[int, Box]]:
    """Write so many chunks, forget the writer; returns what it said would survive."""
    writer = output.create(result(values.shape, CUTS))
    safe = []
    for box in boxes(CUTS)[:chunks]:
        writer.write(0, box, values[at(0, box)])
        safe += list(writer.flush())
    return safe


@pytest.mark.parametrize("storage_chunk_size", [3, 2, 100])
@pytest.mark.parametrize("chunks", range(5))
def test_a_run_goes_on_where_it_stopped(storage_chunk_size: int, chunks: int, tmp_path: Path) -> None:
    values = random_values((1, 2, 7, 5, 6))
    output = ZarrOutput(tmp_path, storage_chunk_size=storage_chunk_size, levels=2)
    safe = left_by_a_crash(output, values, chunks)
    path = tmp_path / "0" / "0_trans.ome.zarr"
    assert not path.exists()
    writer = output.resume(result(values.shape, CUTS))
    assert not writer.complete
    for image, box in safe:
        assert torch.equal(writer.read(image, box), values[at(image, box)])
    for box in boxes(CUTS):
        if (0, box) not in safe:
            writer.write(0, box, values[at(0, box)])
    array = writer.finish()
    assert np.array_equal(array[...], values[0].numpy())
    pooled = torch.nn.functional.avg_pool3d(values[0], 2, ceil_mode=True, count_include_pad=False)
    assert np.allclose(zarr.open_group(path, mode="r")["1"][...], pooled.numpy(), rtol=1e-6)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert np.array_equal(output.load(result(values.shape, CUTS))[...], values[0].numpy())
    finished = output.resume(result(values.shape, CUTS))
    assert finished.complete
    assert np.array_equal(finished.finish()[...], values[0].numpy())


def test_some_chunks_are_safe_before_the_last_one_is_written(tmp_path: Path) -> None:
    assert 0 < len(left_by_a_crash(ZarrOutput(tmp_path, storage_chunk_size=3), random_values((1, 2, 7, 5, 6)), 2)) <= 2


def test_abandoning_keeps_what_is_written_and_a_fresh_run_replaces_it(tmp_path: Path) -> None:
    values = random_values((1, 2, 7, 5, 6))
    output = ZarrOutput(tmp_path, storage_chunk_size=3)
    writer = output.create(result(values.shape, CUTS))
    writer.write(0, boxes(CUTS)[0], values[at(0, boxes(CUTS)[0])])
    writer.abandon()
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["0_trans.ome.zarr.partial"]
    array = write_all(output.create(result(values.shape, CUTS)), values, CUTS)
    assert np.array_equal(array[...], values[0].numpy())


def test_an_old_store_stays_until_the_new_one_is_complete_and_only_goes_if_it_may(tmp_path: Path) -> None:
    old, new = random_values((1, 2, 7, 5, 6)), random_values((1, 2, 7, 5, 6)) + 1
    output = ZarrOutput(tmp_path)
    write_all(output.create(result(old.shape, CUTS)), old, CUTS)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        output.create(result(old.shape, CUTS))
    with pytest.raises(FileExistsError, match=r"0_trans\.ome\.zarr"):
        output.check(0, metadata=result(old.shape, CUTS).metadata, overwrite=False)
    writer = output.create(replace(result(new.shape, CUTS), overwrite=True))
    assert np.array_equal(output.load(result(old.shape, CUTS))[...], old[0].numpy())
    array = write_all(writer, new, CUTS)
    assert np.array_equal(array[...], new[0].numpy())


def test_what_cannot_be_gone_on_with_is_said(tmp_path: Path) -> None:
    values = random_values((1, 2, 7, 5, 6))
    output = ZarrOutput(tmp_path)
    for go_on in (output.resume, output.load):
        with pytest.raises(OSError, match=r"0_trans\.ome\.zarr"):
            go_on(result(values.shape, CUTS))
    left_by_a_crash(output, values, 1)
    for other in (result((1, 3, 7, 5, 6), CUTS), result(values.shape, CUTS, torch.float64)):
        with pytest.raises(OSError, match=r"it holds float32 of shape \(2, 7, 5, 6\).*0_trans\.ome\.zarr"):
            output.resume(other)
    metadata = tmp_path / "0" / "0_trans.ome.zarr.partial" / "0" / "zarr.json"
    metadata.write_text(metadata.read_text()[:100])
    with pytest.raises(OSError, match=r"0_trans\.ome\.zarr"):
        output.resume(result(values.shape, CUTS))


# ---------------------------------------------------------------- URLs, errors, manners


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_url_is_written_in_place_and_removed_if_the_run_fails(protocol: str, tmp_path: Path) -> None:
    url = f"{protocol}://{tmp_path}"
    values = random_values((1, 2, 7, 5, 6))
    options = {"auto_mkdir": True} if protocol == "file" else None
    output = ZarrOutput(url, levels=2, storage_options=options)
    assert output.journal(result(values.shape, CUTS).metadata) is None
    writer = output.create(result(values.shape, CUTS))
    writer.write(0, boxes(CUTS)[0], values[at(0, boxes(CUTS)[0])])
    writer.abandon()
    assert not [path for path in fsspec.filesystem(protocol).find(str(tmp_path)) if "ome.zarr" in path]
    array = write_all(output.create(result(values.shape, CUTS)), values, CUTS)
    assert np.array_equal(array[...], values[0].numpy())
    described(f"{url}/0/0_trans.ome.zarr")
    with pytest.raises(FileExistsError, match=f"{protocol}://"):
        output.check(0, metadata=result(values.shape, CUTS).metadata, overwrite=False)


def test_what_zarr_or_ngff_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="bfloat16"):
        ZarrOutput(tmp_path).check(0, torch.bfloat16)
    with pytest.raises(TypeError, match="label=True"):
        ZarrOutput(tmp_path, label=True).check(0, torch.float32)
    with pytest.raises(ValueError, match="2 or 3 spatial dimensions"):
        ZarrOutput(tmp_path).create(result((1, 1, 4), [(0, 4)]))
    with pytest.raises(ValueError, match="one channel"):
        ZarrOutput(tmp_path, label=True).create(result((1, 2, 4, 4), [(0, 4)] * 2, torch.uint8))
    with pytest.raises(ValueError, match=r"shard_size=\(5, 5\) must be a multiple of storage_chunk_size=\(2, 2\)"):
        ZarrOutput(tmp_path, storage_chunk_size=2, shard_size=5).create(result((1, 2, 4, 4), [(0, 4)] * 2))
    with pytest.raises(ValueError, match="levels=0"):
        ZarrOutput(tmp_path, levels=0)
    with pytest.raises(ValueError, match="compression_level=23"):
        ZarrOutput(tmp_path, compression_level=23)
    with pytest.raises(NotADirectoryError, match="output_dir"):
        ZarrOutput(Path(__file__) / "missing").check(0)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_zarr_is_said_at_once_and_importing_the_package_needs_none() -> None:
    program = """
import sys
sys.modules["zarr"] = None  # MONAI imports it too if it is there
import monai_chunked
try:
    monai_chunked.ZarrOutput("/tmp")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "ZarrOutput needs zarr 3: pip install 'zarr>=3'\n"


def test_an_output_can_be_copied_and_pickled(tmp_path: Path) -> None:
    for output in (copy.deepcopy(ZarrOutput(tmp_path)), pickle.loads(pickle.dumps(ZarrOutput(tmp_path, "other")))):
        assert np.array_equal(infer(volume(), output)[...], monai(volume())[0])
