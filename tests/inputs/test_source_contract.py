"""Whatever the input is, it keeps the contract of a source: what it says of itself, and what reading it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dask.array
import h5py
import nibabel
import numpy as np
import pytest
import torch
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.data.utils import collate_meta_tensor_fn

from monai_chunked import ImageArray, open_image
from monai_chunked.inputs.lazy.scaled_array import ScaledArray
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.plan.window_grid import WindowGrid, window_grid
from monai_chunked.recovery.description.describer import Describer

SHAPE = (2, 3, 9, 8, 7)

Made = tuple[Any, np.ndarray]
"""An input, and the voxels that are expected of it."""

MAKERS: dict[str, Callable[[Path], Made]] = {}


def maker(make: Callable[[Path], Made]) -> Callable[[Path], Made]:
    MAKERS[make.__name__] = make
    return make


def voxels(*shape: int, dtype: Any = "f4") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape or SHAPE).astype(dtype)


# ---------------------------------------------------------------- tensors


def tensor_of(dtype: torch.dtype) -> Callable[[Path], Made]:
    return lambda folder: (torch.from_numpy(voxels()).to(dtype), voxels())


MAKERS |= {f"tensor_of_{dtype}": tensor_of(dtype) for dtype in (torch.float16, torch.float64, torch.int16, torch.bool)}
MAKERS["tensor_of_torch.bool"] = lambda folder: (torch.from_numpy(voxels() > 100), voxels() > 100)


@maker
def contiguous_tensor(folder: Path) -> Made:
    return torch.from_numpy(voxels()), voxels()


@maker
def strided_tensor(folder: Path) -> Made:
    larger = voxels(9, 16, 7, 2, 3)
    return torch.from_numpy(larger)[:, ::2].permute(3, 4, 0, 1, 2), larger[:, ::2].transpose(3, 4, 0, 1, 2)


@maker
def expanded_tensor(folder: Path) -> Made:
    one = voxels(1, 3, 9, 8, 7)
    return torch.from_numpy(one).expand(SHAPE), np.broadcast_to(one, SHAPE)


@maker
def tensor_with_gradients(folder: Path) -> Made:
    return torch.from_numpy(voxels()).requires_grad_(), voxels()


@maker
def meta_tensor(folder: Path) -> Made:
    one = voxels(1, 3, 9, 8, 7)
    return MetaTensor(torch.from_numpy(one), affine=torch.eye(4) * 2, meta={"filename_or_obj": "a.nii"}), one


@maker
def batch_of_meta_tensors(folder: Path) -> Made:
    images = [
        MetaTensor(torch.from_numpy(each), meta={"filename_or_obj": f"{k}.nii"}) for k, each in enumerate(voxels())
    ]
    return collate_meta_tensor_fn(images), voxels()


# ---------------------------------------------------------------- arrays


def array_of(dtype: str) -> Callable[[Path], Made]:
    return lambda folder: (voxels(dtype=dtype), voxels(dtype=dtype))


MAKERS |= {f"array_of_{dtype}": array_of(dtype) for dtype in ("f2", "f4", "f8", "?", "u1", "i8", ">i2", ">f4", ">f8")}


@maker
def fortran_array(folder: Path) -> Made:
    return np.asfortranarray(voxels()), voxels()


@maker
def reversed_array(folder: Path) -> Made:
    return voxels()[..., ::-1], voxels()[..., ::-1]


@maker
def memmap(folder: Path) -> Made:
    np.save(folder / "array.npy", voxels(dtype="i2"))
    return np.load(folder / "array.npy", mmap_mode="r"), voxels()


@maker
def h5py_contiguous(folder: Path) -> Made:
    h5py.File(folder / "array.h5", "w").create_dataset("array", data=voxels(dtype="i2"))
    return h5py.File(folder / "array.h5", "r")["array"], voxels()


@maker
def h5py_in_storage_chunks(folder: Path) -> Made:
    h5py.File(folder / "array.h5", "w").create_dataset("array", data=voxels(dtype=">f8"), chunks=(1, 2, 4, 5, 6))
    return h5py.File(folder / "array.h5", "r")["array"], voxels(dtype="f8")


@maker
def zarr_array(folder: Path) -> Made:
    return zarr.create_array(folder / "array.zarr", data=voxels(dtype="u2"), chunks=(1, 3, 4, 5, 6)), voxels()


@maker
def sharded_zarr_array(folder: Path) -> Made:
    shards = {"chunks": (1, 1, 4, 5, 6), "shards": (1, 3, 8, 10, 12)}
    return zarr.create_array(folder / "array.zarr", data=voxels(dtype="f2"), **shards), voxels(dtype="f2")


@maker
def dask_array(folder: Path) -> Made:
    return dask.array.from_array(voxels(), chunks=(1, 2, (3, 5, 1), 5, 6)) + 1, voxels() + 1


def dataobj(name: str, *scaling: float) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        image = nibabel.Nifti1Image(voxels(dtype="i2"), np.eye(4))
        if scaling:
            image.header.set_slope_inter(*scaling)
        nibabel.save(image, folder / name)
        return nibabel.load(folder / name).dataobj, nibabel.load(folder / name).get_fdata().astype("f4")

    return make


MAKERS |= {
    "dataobj": dataobj("array.nii"),
    "scaled_dataobj": dataobj("array.nii", 0.3, -2),
    "dataobj_of_gz": dataobj("array.nii.gz"),
    "scaled_dataobj_of_gz": dataobj("array.nii.gz", 0.3, -2),
}


MAKERS["image_over_a_scaled_dataobj"] = lambda folder: (
    ImageArray(dataobj("array.nii", 0.3, -2)(folder)[0], range(5), [{}, {"filename_or_obj": "scan.nii"}]),
    dataobj("array.nii", 0.3, -2)(folder)[1],
)


# ---------------------------------------------------------------- opened images


def nifti(name: str, *scaling: float, shape: tuple[int, ...] = (9, 8, 7, 3), dtype: str = "i2") -> Any:
    def make(folder: Path) -> Made:
        image = nibabel.Nifti1Image(voxels(*shape, dtype=dtype), np.diag([2, 3, 4, 1]))
        if scaling:
            image.header.set_slope_inter(*scaling)
        nibabel.save(image, folder / name)
        whole = nibabel.load(folder / name).get_fdata().astype("f4")
        return open_image(folder / name), (whole.transpose(3, 0, 1, 2) if whole.ndim == 4 else whole[None])[None]

    return make


MAKERS |= {
    "nii": nifti("scan.nii"),
    "nii_of_two_dimensions": nifti("scan.nii", shape=(9, 8), dtype="f8"),
    "scaled_nii": nifti("scan.nii", 0.3, -7.1),
    "nii_gz": nifti("scan.nii.gz"),
    "nii_gz_of_one_channel": nifti("scan.nii.gz", shape=(9, 8, 7), dtype=">f4"),
    "scaled_nii_gz": nifti("scan.nii.gz", 0.3, -7.1),
}


@maker
def npy(folder: Path) -> Made:
    np.save(folder / "scan.npy", voxels(9, 8, 7, dtype="f8"))
    return open_image(folder / "scan.npy"), voxels(9, 8, 7)[None, None]


@maker
def npy_with_axes(folder: Path) -> Made:
    np.save(folder / "scan.npy", voxels(7, 3, 8, 9, dtype="u1"))
    return open_image(folder / "scan.npy", axes="zcyx"), voxels(7, 3, 8, 9).transpose(1, 3, 2, 0)[None]


def ome_zarr(folder: Path, axes: str) -> np.ndarray:
    """With a time series of two points, if there is a ``t``."""
    sizes = dict(zip("tcxyz", SHAPE))
    data = voxels(*(sizes[letter] for letter in axes), dtype="u2")
    group = zarr.open_group(folder / "scan.zarr", mode="w", zarr_format=3)
    group.create_array("0", data=data, chunks=tuple(min(n, 4) for n in data.shape))
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": letter, "type": kinds.get(letter, "space")} for letter in axes]
    scale = [{"type": "scale", "scale": [2.0] * len(axes)}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": described, "datasets": datasets}]}
    missing = "".join(letter for letter in "tc" if letter not in axes)
    return data[(None,) * len(missing)].transpose([(missing + axes).index(letter) for letter in "tcxyz"])


def ome_zarr_of(axes: str, time: int | None = None) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        whole = ome_zarr(folder, axes)
        return open_image(folder / "scan.zarr", time=time), whole if time is None else whole[time : time + 1]

    return make


MAKERS |= {
    "ome_zarr_zyx": ome_zarr_of("zyx"),
    "ome_zarr_czyx": ome_zarr_of("czyx"),
    "ome_zarr_xycz": ome_zarr_of("xycz"),
    "ome_zarr_tczyx": ome_zarr_of("tczyx"),
    "ome_zarr_tczyx_at_0": ome_zarr_of("tczyx", 0),
    "ome_zarr_tzyx_at_1": ome_zarr_of("tzyx", 1),
}


# ---------------------------------------------------------------- the contract


def made(name: str, folder: Path) -> tuple[Any, Source, torch.Tensor]:
    inputs, whole = MAKERS[name](folder)
    source = source_of(inputs)
    return inputs, source, torch.from_numpy(whole.astype(whole.dtype.newbyteorder("="))).to(source.dtype)


def boxes(size: tuple[int, ...]) -> st.SearchStrategy[tuple[slice, ...]]:
    def sides(n: int) -> st.SearchStrategy[slice]:
        return st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(lambda p: slice(min(p[0], p[1] - 1), p[1]))

    return st.tuples(*map(sides, size))


@st.composite
def window_grids(draw: st.DrawFn, size: tuple[int, ...]) -> WindowGrid:
    roi = tuple(draw(st.integers(1, n)) for n in size)
    overlap = tuple(draw(st.sampled_from([0, 0.25, 0.5, 0.8])) for _ in size)
    if not draw(st.booleans()):
        return window_grid(size, roi, overlap)
    return window_grid(size, roi, overlap, buffer_steps=1, buffer_dim=draw(st.integers(0, len(size) - 1)))


@pytest.fixture(params=sorted(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def test_what_a_source_says_of_itself_fits_together(kind: str, tmp_path: Path) -> None:
    inputs, source, whole = made(kind, tmp_path)
    assert source.shape == tuple(whole.shape)
    assert all(type(n) is int for n in source.shape)
    assert source.dtype == (inputs.dtype if isinstance(inputs, torch.Tensor) else floats(inputs))
    assert source.device == torch.device("cpu")
    assert len(source.metadata) == source.shape[0]
    assert all(isinstance(each, Mapping) for each in source.metadata)
    assert len(source.templates) == (source.shape[0] if any(source.metadata) else 0)
    assert (source.template is None) == (not source.templates)
    for template, metadata in zip(source.templates, source.metadata):
        assert template.numel() == 0
        assert template.meta.get("filename_or_obj") == metadata.get("filename_or_obj")
    data = source.read(0, (slice(0, 1),) * (whole.dim() - 2))
    assert data.dtype == source.dtype
    assert data.device == source.device
    assert type(data) is torch.Tensor


def floats(array: Any) -> torch.dtype:
    """What windows of an array have: its dtype where that is a float, else float32."""
    scaled = nibabel.is_proxy(array) and array.slope != 1
    return {"float16": torch.float16, "float64": torch.float64}.get("" if scaled else array.dtype.name, torch.float32)


@torch.no_grad()
def test_a_box_has_the_voxels_of_the_whole_in_new_memory(kind: str, tmp_path: Path) -> None:
    _, source, whole = made(kind, tmp_path)

    @example(0, tuple(slice(0, n) for n in source.shape[2:]))
    @given(st.integers(0, source.shape[0] - 1), boxes(source.shape[2:]))
    @settings(max_examples=15, deadline=None, derandomize=True)
    def check(image: int, box: tuple[slice, ...]) -> None:
        expected = whole[(image, slice(None), *box)]
        data = source.read(image, box)
        assert torch.equal(data, expected)
        data.zero_().sub_(7) if data.dtype != torch.bool else data.logical_not_()
        assert torch.equal(source.read(image, box), expected)

    check()


@torch.no_grad()
def test_windows_in_their_order_are_read_as_boxes_of_the_whole(kind: str, tmp_path: Path) -> None:
    _, source, whole = made(kind, tmp_path)

    @given(window_grids(source.shape[2:]), st.data())
    @settings(max_examples=6, deadline=None, derandomize=True)
    def check(windows: WindowGrid, data: st.DataObject) -> None:
        left_out = data.draw(st.sampled_from([0, 1 / 3]))
        skips = np.random.default_rng(0).random(source.shape[0] * len(windows)) < left_out
        read = source.reader(windows, tmp_path)
        for skip, (window,) in zip(skips, windows.batches(source.shape[0], 1)):
            if not skip:
                result = read(window.image, window.box)
                assert torch.equal(result, whole[(window.image, slice(None), *window.box)])
                result.zero_()  # what is kept for the next windows must not change

    check()


@torch.no_grad()
def test_the_rows_that_are_planned_hold_those_of_any_window(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path)[1]

    @given(window_grids(source.shape[2:]))
    @settings(max_examples=10, deadline=None, derandomize=True)
    def check(windows: WindowGrid) -> None:
        rows = source.rows(windows)
        if rows is None:
            assert source.reader(windows, tmp_path) == source.read  # reading again costs nothing
            return
        assert rows.shape == source.shape
        assert rows.dim == 2 + windows.order[0]
        assert all(edges[0] == 0 and edges[-1] >= n for edges, n in zip(rows.edges, source.shape))
        assert all(list(edges) == sorted(set(edges)) for edges in rows.edges)
        for (window,) in windows.batches(1, 1):
            span = window.box[rows.dim - 2]
            last = min(next(edge for edge in rows.edges[rows.dim] if edge >= span.stop), source.shape[rows.dim])
            assert last - span.start <= rows.rows <= source.shape[rows.dim]
        assert rows.nbytes == np.prod(rows.kept_shape) * rows.dtype.itemsize

    check()


@torch.no_grad()
def test_a_source_is_described_alike_as_long_as_it_holds_the_same(kind: str, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    texts = []
    for folder in folders:
        folder.mkdir()
        texts.append(Describer().voxels(made(kind, folder)[1].origin, "input"))
    assert texts[0] == texts[1]


# ---------------------------------------------------------------- which voxels of a file an image has


def text(image: Any) -> str:
    return Describer().voxels(source_of(image).origin, "input")


def test_points_of_a_time_series_are_described_by_what_they_are(tmp_path: Path) -> None:
    ome_zarr(tmp_path, "tczyx")
    texts = [text(open_image(tmp_path / "scan.zarr", time=time)) for time in (None, 0, 1)]
    assert len(set(texts)) == 3
    assert text(open_image(tmp_path / "scan.zarr", time=1)) == texts[2]


def test_the_order_of_axes_is_part_of_what_an_image_is(tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", voxels(5, 5, 5))
    texts = [text(open_image(tmp_path / "scan.npy", axes=axes)) for axes in ("xyz", "zyx", "cyx", "tyx")]
    assert len(set(texts)) == 4


def test_the_scaling_of_a_file_is_part_of_what_an_image_is(tmp_path: Path) -> None:
    stored = voxels(5, 5, 5)
    arrays = [ScaledArray(stored, *scaling) for scaling in ((2, 0), (2, 1), (3, 1))]
    assert len({text(ImageArray(each, (None, None, 0, 1, 2), {})) for each in arrays}) == 3


def test_what_nibabel_scales_is_never_cut_to_the_integers_of_its_file(tmp_path: Path) -> None:
    proxy, expected = dataobj("array.nii", 0.3, -2)(tmp_path)
    image = ImageArray(proxy, range(5), [{}, {}])
    assert image.dtype == np.float32
    assert np.array_equal(image, expected)
