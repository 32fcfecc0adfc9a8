"""An opened image has the voxels, layout and metadata that MONAI's LoadImage gives, and is not read until sliced."""

from __future__ import annotations

import errno
import gzip
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import LoadImage

from monai_chunked import ChunkedSlidingWindowInferer, ImageArray, open_image
from monai_chunked.inputs import kept_rows

AFFINE = np.array([[-1.5, 0, 0.2, 10], [0, 2, 0, -5], [0.1, 0, 3, 7], [0, 0, 0, 1]])


def voxels(*shape: int, dtype: Any = "i2") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def load(path: Path) -> MetaTensor:
    # only what SaveImage writes with five dimensions needs the option
    options = {"squeeze_non_spatial_dims": True} if ".nii" in path.name else {}
    return LoadImage(ensure_channel_first=True, **options)(path)[None]


def same_meta(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        return type(a) is type(b) and np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")

    return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- NIfTI

NIFTI: dict[str, tuple[Any, ...]] = {
    "3D": ((7, 8, 9), "i2", None),
    "big-endian": ((7, 8, 9), ">i2", None),
    "scaled": ((7, 8, 9), "u1", (0.3, -7.1)),
    "scaled, big-endian": ((7, 8, 9), ">u2", (1.7, 0)),
    "float64": ((7, 8, 9), "f8", None),
    "2D": ((7, 8), "f4", None),
    "one slice": ((7, 8, 1), "i4", None),
    "channels": ((7, 8, 9, 3), "u2", None),
    "channels, scaled": ((7, 8, 9, 3), "i2", (2, 1)),
    "one channel": ((7, 8, 9, 1), "i2", None),
    "channels as SaveImage writes them": ((7, 8, 9, 1, 3), "i2", None),
}


@pytest.mark.parametrize("name", NIFTI)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image], ids=["NIfTI-1", "NIfTI-2"])
def test_a_nifti_is_what_load_image_gives(name: str, extension: str, version: Any, tmp_path: Path) -> None:
    shape, dtype, scaling = NIFTI[name]
    header = version.header_class(endianness=">" if dtype.startswith(">") else "<")
    stored = version(voxels(*shape, dtype=dtype), AFFINE, header)
    if scaling:
        stored.header.set_slope_inter(*scaling)
    path = tmp_path / f"image{extension}"
    nibabel.save(stored, path)

    image, reference = open_image(path), load(path)
    assert image.shape == reference.shape
    assert torch.equal(torch.from_numpy(np.array(image, np.float32)), reference.as_tensor())
    assert same_meta(image.meta, reference.meta)
    assert image.meta["affine"].dtype == torch.float64


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("parameters", [{}, {"buffer_steps": 1, "buffer_dim": 2}, {"sw_batch_size": 3}], ids=str)
def test_inference_on_a_nifti_gives_the_bits_and_metadata_of_the_loaded_image(
    extension: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / f"image{extension}"
    nibabel.save(nibabel.Nifti1Image(voxels(13, 14, 15, 2), AFFINE), path)

    def network(windows: torch.Tensor) -> torch.Tensor:
        return windows.sigmoid() * windows.mean()

    inferer = ChunkedSlidingWindowInferer(6, overlap=0.5, mode="gaussian", **parameters)
    result, reference = inferer(open_image(path), network), inferer(load(path), network)
    assert torch.equal(result.as_tensor(), reference.as_tensor())
    assert same_meta(result.meta, reference.meta)
    if not parameters.get("buffer_steps"):
        monai = SlidingWindowInferer(6, overlap=0.5, mode="gaussian", **parameters)(load(path), network)
        assert torch.equal(result.as_tensor(), monai.as_tensor())


@given(st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_nii_gz_can_be_sliced_in_any_order(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nii.gz"
        stored = nibabel.Nifti1Image(voxels(4, 5, 6, 3), AFFINE)
        stored.header.set_slope_inter(*data.draw(st.sampled_from([(1, 0), (0.3, 2)])))
        nibabel.save(stored, path)
        image, whole = open_image(path), load(path).numpy()
        for _ in range(data.draw(st.integers(1, 6))):
            full = data.draw(st.booleans())  # what lies in one run in the file
            index = [slice(0, 1), slice(0, 1) if full else slice(0, 3)]
            for d, n in enumerate((4, 5, 6)):
                start = data.draw(st.integers(0, n - 1))
                index.append(slice(0, n) if full and d < 2 else slice(start, data.draw(st.integers(start + 1, n))))
            assert np.array_equal(image[tuple(index)], whole[tuple(index)])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not count what a process reads")
@pytest.mark.parametrize("parameters", [{}, {"buffer_steps": 1, "buffer_dim": 2}], ids=["along x", "along z"])
def test_a_nii_gz_is_read_once(parameters: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path = tmp_path / "image.nii.gz"
    noise = np.random.default_rng(0).integers(-(2**15), 2**15, (64, 64, 300)).astype("i2")
    nibabel.save(nibabel.Nifti1Image(noise, AFFINE), path)
    monkeypatch.setattr(kept_rows, "READ_BYTES", 2**18)
    inferer = ChunkedSlidingWindowInferer((64, 64, 20), overlap=(0, 0, 0.5), **parameters)
    image, start = open_image(path), bytes_read()
    inferer(image, lambda windows: windows[:, :, ::8, ::8, ::8])
    assert bytes_read() - start <= 1.1 * path.stat().st_size


def test_a_nii_gz_that_ends_early_is_an_error_with_its_path(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels(64, 64, 64), AFFINE), tmp_path / "image.nii")
    whole = (tmp_path / "image.nii").read_bytes()
    (tmp_path / "image.nii.gz").write_bytes(gzip.compress(whole[: len(whole) // 2]))
    with pytest.raises(
        OSError, match=r"(?s)ends before its last.*image.nii.gz.*while reading window image 0"
    ) as caught:
        ChunkedSlidingWindowInferer(32)(open_image(tmp_path / "image.nii.gz"), torch.relu)
    assert caught.value.errno == errno.EIO


def test_slices_of_a_nii_gz_along_z_are_kept_not_all_of_it(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels(13, 14, 40), AFFINE), tmp_path / "image.nii.gz")
    image = open_image(tmp_path / "image.nii.gz")
    along_x = ChunkedSlidingWindowInferer(6, overlap=0.5)
    along_z = ChunkedSlidingWindowInferer(6, overlap=0.5, buffer_steps=1, buffer_dim=2)
    assert along_x.plan(image, 1).input_bytes == 13 * 14 * 40 * 2
    assert along_z.plan(image, 1).input_bytes == 13 * 14 * 6 * 2


def test_a_nifti_of_colours_or_with_too_many_dimensions_is_refused(tmp_path: Path) -> None:
    colours = np.zeros((7, 8, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, AFFINE), tmp_path / "colours.nii")
    with pytest.raises(TypeError, match="integers or floats"):
        open_image(tmp_path / "colours.nii")
    nibabel.save(nibabel.Nifti1Image(voxels(4, 5, 6, 2, 3), AFFINE), tmp_path / "many.nii")
    with pytest.raises(ValueError, match=r"\(4, 5, 6, 2, 3\) has more than one dimension behind"):
        open_image(tmp_path / "many.nii")


# ---------------------------------------------------------------- NumPy


def test_a_npy_is_what_load_image_gives(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", voxels(7, 8, 9))
    image, reference = open_image(tmp_path / "image.npy"), load(tmp_path / "image.npy")
    assert image.shape == reference.shape
    assert torch.equal(torch.from_numpy(np.array(image, np.float32)), reference.as_tensor())
    assert torch.equal(image.meta[0]["affine"], reference.affine)
    assert image.meta[0]["filename_or_obj"] == reference.meta["filename_or_obj"]
    assert image.meta[0]["space"] == reference.meta["space"]
    assert image.mapped


@given(st.permutations("tcxyz"), st.integers(0, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_axes_bring_any_order_of_dimensions_to_batch_channel_x_y_z(letters: list[str], left_out: int) -> None:
    axes = "".join(letter for letter in letters if letter not in "tc" or letter not in letters[:left_out])
    sizes = {"t": 2, "c": 3, "x": 4, "y": 5, "z": 6}
    array = voxels(*(sizes[letter] for letter in axes))
    missing = [letter for letter in "tc" if letter not in axes]
    expected = array[(None,) * len(missing)].transpose([("".join(missing) + axes).index(letter) for letter in "tcxyz"])
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "image.npy", array)
        image = open_image(Path(folder) / "image.npy", axes=axes)
        assert np.array_equal(image, expected)
        assert np.array_equal(image[-1, :, 1:3, ..., 2], expected[-1, :, 1:3, ..., 2])
        assert len(image.meta) == len(expected)


@pytest.mark.parametrize("axes", ["xy", "xxyz", "abc", "ct", "wxyz"])
def test_axes_that_do_not_fit_are_refused(axes: str, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", voxels(*(2, 3) if axes == "ct" else (2, 3, 4, 5)))
    with pytest.raises(ValueError, match=f"axes='{axes}' must be a letter for each dimension"):
        open_image(tmp_path / "image.npy", axes=axes)


def test_axes_that_cannot_be_guessed_are_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", voxels(2, 3, 4, 5))
    with pytest.raises(ValueError, match="axes must say"):
        open_image(tmp_path / "image.npy")
    zarr.create_array(tmp_path / "image.zarr", data=voxels(2, 3, 4))
    with pytest.raises(ValueError, match="axes must say"):
        open_image(tmp_path / "image.zarr")


# ---------------------------------------------------------------- Zarr


def write_ome_zarr(path: Path, version: str, axes: str = "czyx", **multiscale: Any) -> np.ndarray:
    """Two levels, the second of half the size in z, y and x; micrometers in z, millimeters in y and x."""
    data = voxels(*(2 if axis == "c" else 8 for axis in axes))
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    units = {"x": "millimeter", "y": "millimeter", "z": "micrometer"}
    datasets = []
    for level, step in enumerate((1, 2)):
        coarser = data[tuple(slice(None, None, 1 if axis == "c" else step) for axis in axes)]
        group.create_array(str(level), data=coarser, chunks=tuple(min(n, 4) for n in coarser.shape))
        scale = [{"c": 1.0, "z": 500.0 * step, "y": 0.7 * step, "x": 0.9 * step}[axis] for axis in axes]
        moved = [{"c": 0.0, "z": 1000.0, "y": -3.0, "x": 2.0}[axis] for axis in axes]
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": moved}]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    described = [
        {"name": axis, "type": "channel"} if axis == "c" else {"name": axis, "type": "space", "unit": units[axis]}
        for axis in axes
    ]
    multiscales = [{"axes": described, "datasets": datasets, "name": "image", **multiscale}]
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **multiscales[0]}]
    return data


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("level", [0, 1])
def test_an_ome_zarr_comes_in_the_order_of_monai_with_an_affine_in_millimeters(
    version: str, level: int, tmp_path: Path
) -> None:
    data = write_ome_zarr(tmp_path / "image.ome.zarr", version)
    image = open_image(tmp_path / "image.ome.zarr", level=level)
    step = 2**level
    assert np.array_equal(image, data[None, :, ::step, ::step, ::step].transpose(0, 1, 4, 3, 2))
    assert image.chunks == (1, 2, 4, 4, 4)
    affine = np.diag([0.9 * step, 0.7 * step, 0.5 * step, 1])
    affine[:3, 3] = 2, -3, 1
    (meta,) = image.meta
    assert torch.allclose(meta["affine"], torch.from_numpy(affine), rtol=1e-12)
    assert meta["affine"].dtype == torch.float64
    assert meta["filename_or_obj"] == str(tmp_path / "image.ome.zarr")
    assert meta["spatial_shape"].tolist() == [8 // step] * 3


def test_transformations_of_all_levels_come_after_those_of_one(tmp_path: Path) -> None:
    whole = [{"type": "scale", "scale": [10.0, 10.0]}, {"type": "translation", "translation": [1.0, 0.0]}]
    write_ome_zarr(tmp_path / "image.zarr", "0.5", "yx", coordinateTransformations=whole)
    image = open_image(tmp_path / "image.zarr")
    assert image.shape == (1, 1, 8, 8)
    assert torch.allclose(image.meta[0]["affine"][:2, :2], torch.diag(torch.tensor([9.0, 7.0])).double())
    assert torch.allclose(image.meta[0]["affine"][:2, 3], torch.tensor([20.0, -29.0]).double())


def test_inference_on_an_ome_zarr_gives_monais_bits(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "image.zarr", "0.5")
    image = open_image(tmp_path / "image.zarr")
    loaded = torch.from_numpy(np.ascontiguousarray(image, np.float32))
    result = ChunkedSlidingWindowInferer(5, overlap=0.5)(image, torch.sigmoid)
    assert torch.equal(result.as_tensor(), SlidingWindowInferer(5, overlap=0.5)(loaded, torch.sigmoid))
    assert torch.equal(result.affine, image.meta[0]["affine"])


def test_a_zarr_array_says_its_axes_or_is_told(tmp_path: Path) -> None:
    data = voxels(4, 5, 6)
    zarr.create_array(tmp_path / "named.zarr", data=data, dimension_names=["z", "y", "x"])
    zarr.create_array(tmp_path / "bare.zarr", data=data)
    for image in (open_image(tmp_path / "named.zarr"), open_image(tmp_path / "bare.zarr", axes="zyx")):
        assert np.array_equal(image, data.transpose()[None, None])


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        open_image(tmp_path / "missing.nii.gz")
    (tmp_path / "image.txt").write_text("words")
    with pytest.raises(ValueError, match="nor a Zarr array or group"):
        open_image(tmp_path / "image.txt")
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    with pytest.raises(ValueError, match="multiscales"):
        open_image(tmp_path / "empty.zarr")
    write_ome_zarr(tmp_path / "image.zarr", "0.5")
    with pytest.raises(ValueError, match="level=2 must be at least 0 and less than 2"):
        open_image(tmp_path / "image.zarr", level=2)
    steps = [{"type": "rotation", "rotation": [[1.0]]}]
    write_ome_zarr(tmp_path / "image.zarr", "0.5", coordinateTransformations=steps)
    with pytest.raises(ValueError, match="rotation"):
        open_image(tmp_path / "image.zarr")
    with pytest.raises(IndexError, match="too many indices"):
        ImageArray(voxels(4, 5, 6), (None, None, 0, 1, 2), {})[0, 0, 0, 0, 0, 0]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels(4, 5, 6), AFFINE), tmp_path / "image.nii.gz")
    zarr.create_array(tmp_path / "image.zarr", data=voxels(4, 5, 6))
    monkeypatch.setitem(sys.modules, "indexed_gzip", None)
    monkeypatch.setitem(sys.modules, "zarr", None)
    for name, command in (("image.nii.gz", "pip install indexed_gzip"), ("image.zarr", "pip install 'zarr>=3'")):
        with pytest.raises(ImportError, match=command):
            open_image(tmp_path / name)
