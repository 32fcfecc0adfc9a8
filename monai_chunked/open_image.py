"""Image files as inputs that are read piece by piece, in the layout and with the metadata that MONAI gives them."""

from __future__ import annotations

import errno
import gzip
import os
import threading
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.image_reader import NibabelReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms.io.array import switch_endianness
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, optional_import
from nibabel.volumeutils import apply_read_scaling

from monai_chunked.outputs.ngff import MILLIMETERS

__all__ = ["ImageArray", "open_image"]


class ImageArray:
    """An image ``(B, C, *spatial)`` in a file, read where it is sliced.

    Args:
        source: anything with ``shape``, ``dtype`` and slicing.
        axes: for each dimension of the image that of the source, or ``None`` if it has none. Dimensions of the source
            that are not named have size one.
        meta: as ``MetaTensor.meta``, one for each image of a batch.
        chunks: for each dimension of the source, the length of its storage chunks; ``None``: it has none.
        scaled: whether the source gives other numbers than its ``dtype`` says.
        time: dimension of the source and the index in it, for one point of a time series.

    Attributes:
        shape: ``(B, C, *spatial)``.
        dtype: that of the file if it holds integers, otherwise float32.
        chunks: lengths of storage chunks, for each dimension of the image; ``None``: there are none.
        mapped: whether the operating system keeps in memory what is read again and again.
    """

    def __init__(
        self,
        source: Any,
        axes: Sequence[int | None],
        meta: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        chunks: Sequence[int] | None = None,
        scaled: bool = False,
        time: tuple[int, int] | None = None,
    ) -> None:
        dtype = np.dtype(source.dtype)
        if dtype.kind not in "biuf":
            raise TypeError(f"the image must hold integers or floats, got dtype {dtype}")
        self.source = source
        self.axes = tuple(axes)
        self.time = time
        self.meta = meta
        self.shape = tuple(1 if a is None else int(source.shape[a]) for a in axes)
        self.dtype = np.dtype(np.float32) if scaled or dtype.kind == "f" else dtype
        self.chunks = None if chunks is None else tuple(1 if a is None else int(chunks[a]) for a in axes)
        self.mapped = isinstance(source, (np.ndarray, _Scaled))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, chunks={self.chunks})"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """With integers, slices and ``...``, as in NumPy."""
        given = index if isinstance(index, tuple) else (index,)
        at = given.index(...) if ... in given else len(given)
        behind = given[at + 1 :]
        full = (*given[:at], *(slice(None),) * (self.ndim - at - len(behind)), *behind)
        if len(full) != self.ndim:
            raise IndexError(f"too many indices for an image of shape {self.shape}: {index}")
        data = self._read(tuple(s if isinstance(s, slice) else slice(s, s + 1 or None) for s in full))
        return data[tuple(slice(None) if isinstance(s, slice) else 0 for s in full)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        data = np.asarray(self[...], dtype)
        return data.copy() if copy else data

    def _read(self, index: tuple[slice, ...]) -> np.ndarray:
        of_source = [slice(0, 1)] * len(self.source.shape)
        if self.time is not None:
            of_source[self.time[0]] = slice(self.time[1], self.time[1] + 1)
        for axis, part in zip(self.axes, index):
            if axis is not None:
                of_source[axis] = part
        data = np.asarray(self.source[tuple(of_source)])
        named = [axis for axis in self.axes if axis is not None]
        unnamed = [axis for axis in range(data.ndim) if axis not in named]
        data = data.transpose(*named, *unnamed)
        data = data.reshape(data.shape[: len(named)])
        for d, (axis, part) in enumerate(zip(self.axes, index)):
            if axis is None:
                data = np.expand_dims(data, d)[(slice(None),) * d + (part,)]
        return data.astype(self.dtype, copy=False)


def open_image(
    path: str | os.PathLike[str], axes: str | None = None, level: int = 0, time: int | None = None
) -> ImageArray:
    """Open an image without reading it, as an input for :py:func:`chunked_sliding_window_inference`.

    Its voxels are those of MONAI's ``LoadImage`` with ``EnsureChannelFirst``, and so is its metadata, which outputs
    take over. A ``.nii`` or ``.npy`` is mapped to memory. A ``.nii.gz`` can only be read from the first slice (along
    z) to the last: its rows along x or y are the whole of it, decompressed once and kept in memory, or in
    ``scratch_dir`` beyond 1 GiB. With ``buffer_steps=1, buffer_dim=2`` windows advance along z and few slices are kept.

    Args:
        path: ``.nii``, ``.nii.gz`` or ``.npy``; anything else is a Zarr array, or a group with an OME-Zarr image
            (0.4 or 0.5), on disk or at a URL.
        axes: what the dimensions of a ``.npy`` or a Zarr array are, for instance ``"czyx"``: letters out of ``t``
            (time points, which become the batch), ``c`` (the channel) and ``x``, ``y``, ``z``, which come in this order
            in the image. By default as its metadata says, and for a ``.npy`` of up to three dimensions ``"xyz"``.
        level: of the resolution pyramid of an OME-Zarr image, 0 for the finest.
        time: one point of a time series, from 0 on; ``None``: all of them, as a batch. Outputs write a result for each
            point, with ``_t000``, ``_t001``, ... behind its name.

    Raises:
        FileNotFoundError: when there is nothing at ``path``.
        ImportError: when a package that the format needs is missing.
        ValueError: when ``axes``, ``level`` or ``time`` do not fit, or the metadata say too little.
        TypeError: when the image holds something else than integers or floats.

    Example::

        labels = inferer(open_image("brain.nii.gz"), network)  # (1, 1, *spatial), with the affine of the file

    for time in range(len(open_image("movie.ome.zarr"))):  # one after the other, which can be resumed one by one
        inferer(open_image("movie.ome.zarr", time=time), network)
    """
    text = os.fspath(path)
    if "://" not in text:
        if not Path(text).exists():
            raise FileNotFoundError(errno.ENOENT, "there is no image", text)
        if Path(text).name in ("", ".."):  # of ".", which has a name nevertheless
            text = os.path.abspath(text)
    text = text.rstrip("/") or text
    name = text.lower()
    if name.endswith((".nii", ".nii.gz")):
        if time is not None:
            raise ValueError(
                f"time={time} is for time series in OME-Zarr, Zarr and .npy; the 4th dimension of {text} is c"
            )
        return _open_nifti(text)
    if name.endswith(".npy"):
        array = np.load(text, mmap_mode="r")
        default = "xyz"[: array.ndim] if array.ndim <= 3 else None
        return _arrange(array, axes or default, text, np.eye(4), _axes_of(axes) if axes else {}, time)
    return _open_zarr(text, axes, level, time)


class _Scaled:
    """A map of a NIfTI file, scaled as nibabel does it."""

    def __init__(self, array: np.ndarray, slope: float, inter: float) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.slope = slope
        self.inter = inter

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(apply_read_scaling(self.array[index], np.float64(self.slope), np.float64(self.inter)))


class _GzipStream:
    """The voxels of a ``.nii.gz``, decompressed once as long as they are asked for in the order of the file.

    ``indexed_gzip`` decompresses what it has not come to yet twice: for its index, then to return it. So what lies
    ahead is read from a plain stream, and only what lies behind through the index.

    Args:
        path: of the file.
        proxy: the ``dataobj`` of nibabel, which goes through the index.
    """

    def __init__(self, path: str, proxy: Any) -> None:
        self.path = path
        self.proxy = proxy
        self.shape = proxy.shape
        self.dtype = proxy.dtype
        self._stream: gzip.GzipFile | None = None
        self._lock = threading.Lock()

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        bounds = [part.indices(n) for part, n in zip(index, self.shape)]
        lengths = [len(range(*bound)) for bound in bounds]
        last = max((d for d, length in enumerate(lengths) if length > 1), default=0)
        in_one_run = list(lengths[:last]) == list(self.shape[:last]) and all(step == 1 for _, _, step in bounds)
        first = sum(start * prod(self.shape[:d]) for d, (start, _, _) in enumerate(bounds))
        with self._lock:
            if in_one_run and (first == 0 or (self._stream is not None and self._stream.tell() <= self._at(first))):
                data = self._read(first, prod(lengths)).reshape(lengths, order="F")
                if (self.proxy.slope, self.proxy.inter) == (1, 0):
                    return data
                scaling = np.float64(self.proxy.slope), np.float64(self.proxy.inter)
                return np.asarray(apply_read_scaling(data, *scaling))
            return np.asarray(self.proxy[index])

    def _at(self, voxel: int) -> int:
        return int(self.proxy.offset + voxel * self.dtype.itemsize)

    def _read(self, first: int, count: int) -> np.ndarray:
        if self._stream is None:
            self._stream = gzip.open(self.path)  # noqa: SIM115  stays open from read to read
        self._stream.seek(self._at(first))
        data = self._stream.read(count * self.dtype.itemsize)
        if len(data) < count * self.dtype.itemsize:
            raise OSError(errno.EIO, "the file ends before its last voxel", self.path)
        return np.frombuffer(data, self.dtype)


class _Header(NibabelReader):
    """MONAI's reader, for the metadata only."""

    def _get_array_data(self, img: Any, *_: Any) -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.uint8), img.shape)


def _open_nifti(path: str) -> ImageArray:
    compressed = path.lower().endswith(".gz")
    if compressed and not optional_import("indexed_gzip")[1]:
        raise ImportError("reading .nii.gz piece by piece needs indexed_gzip: pip install indexed_gzip")
    reader = _Header(squeeze_non_spatial_dims=True)
    image: Any = reader.read(path)
    shown, header = reader.get_data(image)
    header = switch_endianness(header, "<")
    header[ImageMetaKey.FILENAME_OR_OBJ] = path
    small: Any = MetaTensor.ensure_torch_and_prune_meta(np.zeros((1,) * shown.ndim), header)
    meta = dict(small.meta)

    proxy = image.dataobj
    dims = len(meta[MetaKeys.SPATIAL_SHAPE])
    behind = [axis for axis in range(dims, len(proxy.shape)) if proxy.shape[axis] > 1]
    if len(behind) > 1:
        raise ValueError(f"{path} of shape {proxy.shape} has more than one dimension behind the spatial ones")
    axes = (None, behind[0] if behind else None, *range(dims))
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    if compressed:
        chunks = [n if axis < 2 else 1 for axis, n in enumerate(proxy.shape)]
        return ImageArray(_GzipStream(path, proxy), axes, meta, chunks, scaled)
    mapped = proxy.get_unscaled()
    return ImageArray(_Scaled(mapped, proxy.slope, proxy.inter) if scaled else mapped, axes, meta, scaled=scaled)


def _axes_of(names: str, units: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Metadata for outputs that write axes in the order of the input."""
    spatial = [letter for letter in names if letter in "xyz"]
    return {"axes": tuple(spatial), "axis_units": tuple((units or {}).get(letter, "") for letter in spatial)}


def _arrange(
    array: Any, axes: str | None, path: str, affine: np.ndarray, known: Mapping[str, Any], time: int | None
) -> ImageArray:
    """An array with named dimensions, and what is known of it besides."""
    shape = tuple(array.shape)
    if axes is None:
        raise ValueError(f"axes must say what the dimensions of {path} of shape {shape} are, for instance 'czyx'")
    if (
        len(axes) != len(shape)
        or len(set(axes)) != len(axes)
        or not set(axes) <= set("tcxyz")
        or not set(axes) & set("xyz")
    ):
        raise ValueError(
            f"axes={axes!r} must be a letter for each dimension of {path} of shape {shape}: out of t, c, x, y and z, "
            f"none twice, and at least one of x, y and z"
        )
    spatial = [letter for letter in "xyz" if letter in axes]
    order = tuple(axes.index(letter) if letter in axes else None for letter in ["t", "c", *spatial])
    meta = {
        MetaKeys.AFFINE: torch.as_tensor(affine, dtype=torch.float64),
        MetaKeys.ORIGINAL_AFFINE: np.array(affine),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.array([shape[axes.index(letter)] for letter in spatial]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: axes.index("c") if "c" in axes else float("nan"),
        ImageMetaKey.FILENAME_OR_OBJ: path,
        **known,
    }
    chunks = getattr(array, "chunks", None)
    points = shape[axes.index("t")] if "t" in axes else 1
    if time is not None and not 0 <= time < points:
        raise ValueError(f"time={time} must be at least 0 and less than {points}, the time points of {path}")
    digits = max(3, len(str(points - 1)))
    names = [{ImageMetaKey.PATCH_INDEX: f"t{point:0{digits}}"} if points > 1 else {} for point in range(points)]
    if time is None or "t" not in axes:
        return ImageArray(array, order, [{**meta, **name} for name in names], chunks)
    meta.update(names[time])
    return ImageArray(array, (None, *order[1:]), [meta], chunks, time=(axes.index("t"), time))


def _open_zarr(path: str, axes: str | None, level: int, time: int | None) -> ImageArray:
    try:
        import zarr
    except ImportError:
        raise ImportError("reading Zarr needs zarr 3: pip install 'zarr>=3'") from None
    try:
        node = zarr.open(path, mode="r")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is no .nii, .nii.gz or .npy file, nor a Zarr array or group") from error
    if isinstance(node, zarr.Array):
        names = getattr(node.metadata, "dimension_names", None)
        known = "".join(map(str, names)) if names and all(names) else None
        letters = axes or known
        return _arrange(node, letters, path, np.eye(4), _axes_of(letters or ""), time)
    attributes: Any = dict(node.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise ValueError(
            f"{path} is a Zarr group without an OME-Zarr image (multiscales); pass the path of an array in it"
        )
    image = multiscales[0]
    if not 0 <= level < len(image["datasets"]):
        raise ValueError(
            f"level={level} must be at least 0 and less than {len(image['datasets'])}, the levels of {path}"
        )
    described = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image["axes"]]
    names = "".join(axis["name"] for axis in described)
    dataset = image["datasets"][level]
    affine = _affine(
        described, dataset.get("coordinateTransformations", []), image.get("coordinateTransformations", [])
    )
    units = {axis["name"]: axis.get("unit") or "" for axis in described}
    more = {**_axes_of(axes or names, units), "ome_zarr": path}
    return _arrange(node[dataset["path"]], axes or names, path, affine, more, time)


def _affine(axes: Sequence[Mapping[str, Any]], *steps: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """From voxels to millimeters, along x, y and z, after scales and translations in turn."""
    scale, translation = np.ones(len(axes)), np.zeros(len(axes))
    for transformation in (t for step in steps for t in step):
        if transformation["type"] == "scale":
            scale, translation = scale * transformation["scale"], translation * transformation["scale"]
        elif transformation["type"] == "translation":
            translation = translation + transformation["translation"]
        elif transformation["type"] != "identity":
            raise ValueError(f"coordinate transformation {dict(transformation)} is no scale, translation or identity")
    affine = np.eye(4)
    spatial = [k for letter in "xyz" for k, axis in enumerate(axes) if axis["name"] == letter]
    for d, k in enumerate(spatial):
        millimeters = MILLIMETERS.get(axes[k].get("unit", ""), 1.0)
        affine[d, d], affine[d, 3] = scale[k] * millimeters, translation[k] * millimeters
    return affine
