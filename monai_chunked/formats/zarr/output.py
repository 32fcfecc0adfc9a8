"""Finished chunks in OME-Zarr images and labels. Zarr is imported only when somebody makes such an output."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from monai_chunked.formats.zarr.store_layout import StoreLayout, store_layout
from monai_chunked.machine.files import beside, check_folder, make_folder
from monai_chunked.machine.store_names import is_url
from monai_chunked.outputs.apart import check_apart
from monai_chunked.outputs.base import Expected, Metadata, Result, ResumableWriter
from monai_chunked.outputs.file_output import FileOutput, check_different, check_new, ending, numpy_dtype
from monai_chunked.plan.sizes import check_positive

if TYPE_CHECKING:
    from monai_chunked.formats.zarr.images import ZarrImage, ZarrImages
    from monai_chunked.formats.zarr.places import LocalPlace, Place, RemotePlace
    from monai_chunked.formats.zarr.writer import ZarrWriter

__all__ = ["ZarrOutput"]


REPLACED = ".monai_chunked-replaced"
"""Ending of an earlier result while a new one gets its name."""


OF_LAYOUT = ("label_names", "label", "levels", "storage_chunk_size", "shard_size", "compression_level")
"""Parameters that say how a result is stored."""


OWN_FILES = ("zarr.json", "zarr.json.unfinished")
"""Files that an unfinished store may have beside its levels."""


class ZarrOutput(FileOutput):
    """An OME-Zarr 0.5 image or label (Zarr 3) for each image of the batch, ``<image>_<postfix>.ome.zarr``.

    Array ``"0"`` of the store is the result. Of an OME-Zarr input (:py:func:`open_image`) it has the order, names and
    units of the axes, so that viewers lay one over the other. Of others it is ``(C, *spatial)`` in MONAI's order, and
    axes are called ``c`` and after the axes of the world that they are closest to: ``c, x, y, z`` for what
    ``LoadImage`` reads; ``c, z, y, x`` where nothing is known of the world. Scale and translation come from the
    metadata's ``affine``; as OME-Zarr knows no rotation, the affine itself is beside them, in the attribute
    ``monai_chunked`` of the group. Labels have colours, names and, where it is an OME-Zarr image, their input.

    A store is written under its name with ``.partial`` behind it, and renamed when it is complete. What a run returns
    is the ``zarr.Array`` ``"0"``, opened for reading; a list of them for a batch of several images.

    With ``place="labels"`` the result becomes ``labels/<postfix>`` in the OME-Zarr 0.5 image that was opened, in a
    folder, where viewers find it with the image. Until it is complete it lies beside the image, as do its journal and
    what is left of a run that failed; the image's own arrays and attributes are never written to. Where the image, or
    the plate that it is in, has consolidated metadata, the labels are added to these.

    ``output_dir`` may also be a URL that fsspec opens (or else obstore), such as ``"s3://bucket/folder"``. Nothing can
    be renamed there, so the store is written in place, says that it is an image only when it is complete, and is
    removed when the run fails; such a run cannot be resumed. Where a store has the name already, the new one is written
    with ``.partial`` behind it; when it is complete, the old one is removed and the new one copied to its place, which
    sends it twice. What ends the process in between leaves the new one under ``.partial``.

    Storage chunks are written once, whole, unless all of their voxels are zero. Their size is chosen by the cuts of the
    chunks, so that next to nothing has to be held in memory until one is whole, and never more than 512 MiB an image.

    Args:
        output_dir: the folder, which is created if it is missing, or a URL; not with ``place="labels"``.
        output_postfix, separate_folder, data_root_dir: as in MONAI's ``SaveImage``.
        place: ``"labels"``: in the image that was opened; ``None``: in ``output_dir``.
        label_names: of labels, for viewers, as in ``{1: "nucleus"}``.
        label: whether voxels are labels. ``None``: they are if the result has one channel of integers.
        levels: of resolution; each has half the one before it, in every dimension. Labels and integers keep the first
            voxel of each two, others have the mean.
        storage_chunk_size: spatial size of a storage chunk of one channel in voxels. By default it is some 2 MiB that
            suit the chunks, of several channels where one is much less.
        shard_size: spatial size of a shard in voxels, a multiple of the storage chunk's, which has one channel then. By
            default every storage chunk is a file.
        compression_level: of zstd, from 1 to 22; ``None``: no compression.
        storage_options: for the URL, such as credentials.

    Raises:
        ImportError: when zarr 3 is missing.
        ValueError: when a parameter does not fit, or a result has another number of spatial dimensions than 2 or 3.
        TypeError: when Zarr cannot hold the dtype, or labels are not of integers.
        FileNotFoundError, NotADirectoryError, PermissionError: when ``output_dir`` is not a folder for files.
        FileExistsError: when a result exists and may not be replaced, or is no Zarr store; when two images would have
            the same store; when it would take the place of what the run reads, lie around it, or in it.
        OSError: when its disk has less free space than results without compression need, or a name is too long.

    Example::

        output = ZarrOutput("/results", output_postfix="labels", levels=4)
        labels = ChunkedSlidingWindowInferer(96, postprocessing="argmax", output=output)(image, network)
    """

    extension = ".ome.zarr"
    beside_result = (".partial", REPLACED)

    def __init__(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        output_postfix: str = "trans",
        separate_folder: bool = True,
        data_root_dir: str | os.PathLike[str] = "",
        *,
        place: str | None = None,
        label_names: Mapping[int, str] | None = None,
        label: bool | None = None,
        levels: int = 1,
        storage_chunk_size: Sequence[int] | int | None = None,
        shard_size: Sequence[int] | int | None = None,
        compression_level: int | None = 3,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        if place not in (None, "labels"):
            raise ValueError(f"place={place!r} must be 'labels' or None")
        if (output_dir is None) != (place == "labels"):
            raise ValueError(
                f"output_dir={output_dir!r} and place={place!r}: a result goes to output_dir, or with place='labels' "
                f"into the store of its image; give one of them"
            )
        if label is False and (place == "labels" or label_names):
            raise ValueError("label=False does not go with place='labels' or label_names")
        super().__init__("" if output_dir is None else output_dir, output_postfix, separate_folder, data_root_dir)
        _zarr_writer()  # raises early if zarr is missing
        self.place = place
        self.label_names = {int(label): str(name) for label, name in (label_names or {}).items()}
        self.label = True if place == "labels" else label
        self.levels = check_positive("levels", levels)
        self.storage_chunk_size = storage_chunk_size
        self.shard_size = shard_size
        if compression_level is not None and not 1 <= compression_level <= 22:
            raise ValueError(f"compression_level={compression_level} must be from 1 to 22, or None")
        self.compression_level = compression_level
        self.storage_options = storage_options

    @property
    def is_remote(self) -> bool:
        """Whether ``output_dir`` is a URL."""
        return is_url(self.output_dir)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, **{name: getattr(self, name) for name in ("place", *OF_LAYOUT)}}

    def check(self, expected: Expected) -> None:
        from monai_chunked.formats.zarr.places import RemotePlace

        self._check_dtype(expected.dtype)
        if self.compression_level is not None:
            expected = replace(expected, least_bytes=0)
        if self.place == "labels":
            for path in self.paths(expected.metadata):
                check_folder("output_dir", path.parents[2], expected.least_bytes)
            self.check_names(expected)
        elif not self.is_remote:
            super().check(expected)
        else:
            # raises early if a package for it is missing
            RemotePlace(str(self.output_dir), self.storage_options).open()
            places = [place for name in expected.names for place in self._remote_places(expected.metadata, name)]
            check_different([place.name for place in places])
            check_new([place.name for place in places if place.is_published], expected.overwrite)
            for url in filter(None, (place.other() for place in places)):
                raise _other_kind(url, "is no Zarr store")
            check_apart([name for place in places for name in (place.name, place.partial)], expected.used)

    def exists(self, path: Path) -> bool:
        """Whether an earlier result has this name, or lost it to one whose process ended meanwhile."""
        return os.path.lexists(path) or os.path.lexists(self.beside(path, REPLACED))

    def check_kind(self, path: Path) -> None:
        from monai_chunked.formats.zarr.places import METADATA

        for folder in (path, self.beside(path, REPLACED)):
            if folder.exists() and not (_is_empty(folder) or any((folder / name).is_file() for name in METADATA)):
                raise _other_kind(folder, "is no Zarr store")
        partial = self.beside(path, ".partial")
        if partial.exists() and not (partial.is_dir() and all(map(_is_own, partial.iterdir()))):
            raise _other_kind(partial, "is no store that a run left unfinished")

    def beside(self, path: Path, ending: str) -> Path:
        """A file that belongs to a result. For labels it lies beside the store of the image."""
        if self.place is None:
            return super().beside(path, ending)
        image = path.parents[1]
        stem = image.name.removesuffix(".zarr").removesuffix(".ome")
        return beside(image.with_name(f"{stem}_{path.name}.labels"), ending)

    def meant_for_results(self, metadata: Sequence[Metadata]) -> list[Path]:
        return [] if self.place is None else [self._image(image) / "labels" for image in metadata]

    def create(self, result: Result) -> ResumableWriter:
        self.check_result(result)
        layout = self._layout(result)
        for path in () if self.is_remote or self.place else self.paths(result.metadata, result.name):
            make_folder(path.parent)
        return _zarr_writer().create(result, self._places(result.metadata, result.name), layout)

    def journal(self, metadata: Sequence[Metadata]) -> Path | None:
        """The journal beside the store; ``None`` for a URL, where a run cannot be resumed."""
        return None if self.is_remote else super().journal(metadata)

    def paths(self, metadata: Sequence[Metadata], name: str = "prediction") -> list[Path]:
        if self.place is None:
            return super().paths(metadata, name)
        return [self._image(image) / "labels" / self._label_name(image, name) for image in metadata]

    def folders(self, metadata: Sequence[Metadata]) -> list[Path]:
        return [] if self.is_remote else super().folders(metadata)

    def resume(self, result: Result) -> ResumableWriter:
        places = self._local_places(result.metadata, result.name)
        return _zarr_writer().resume(result, places, self._layout(result))

    def load(self, result: Result) -> ZarrImage | ZarrImages:
        """The array, or arrays, as a run returns them."""
        return _zarr_writer().load(result, self._places(result.metadata, result.name))

    def _check_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype is None:
            return
        try:
            numpy_dtype(dtype)
        except TypeError:
            raise TypeError(f"Zarr cannot hold {dtype}; pass float32 inputs, or choose output='cpu'") from None
        if self.label and (dtype.is_floating_point or dtype == torch.bool):
            raise TypeError(f"label=True needs a result of integers, as postprocessing='argmax' returns, not {dtype}")

    def _image(self, metadata: Metadata) -> Path:
        """The store of the image, for labels in it."""
        image = Path(metadata.get("ome_zarr") or "")
        if not (image / "zarr.json").is_file() or image == Path():
            raise ValueError(
                f"place='labels' needs an OME-Zarr 0.5 image in a folder that open_image has opened, not "
                f"{metadata.get('filename_or_obj')!r}; output_dir takes the result of any image"
            )
        attributes = json.loads((image / "zarr.json").read_text()).get("attributes", {})
        version = attributes.get("ome", {}).get("version", "0.5")
        if not str(version).startswith("0.5"):
            raise ValueError(
                f"place='labels' writes OME-Zarr 0.5, and {image} is of version {version}, which must be the same "
                f"throughout a store; output_dir takes the result of any image"
            )
        return image.resolve()

    def _label_name(self, metadata: Metadata, name: str) -> str:
        number = metadata.get("patch_index")
        label = self.output_postfix + ending(name) + ("" if number is None else f"_{number}")
        if label in ("", ".", "..") or Path(label).name != label:
            raise ValueError(f"output_postfix={self.output_postfix!r} must be the name of a label, without a folder")
        return label

    def _places(self, metadata: Sequence[Metadata], name: str) -> Sequence[Place]:
        return self._remote_places(metadata, name) if self.is_remote else self._local_places(metadata, name)

    def _local_places(self, metadata: Sequence[Metadata], name: str) -> Sequence[LocalPlace]:
        from monai_chunked.formats.zarr.places import LabelPlace, LocalPlace

        kind = LocalPlace if self.place is None else LabelPlace
        paths = self.paths(metadata, name)
        return [kind(path, self.beside(path, ".partial"), self.beside(path, REPLACED)) for path in paths]

    def _remote_places(self, metadata: Sequence[Metadata], name: str) -> Sequence[RemotePlace]:
        from monai_chunked.formats.zarr.places import RemotePlace

        url, folder = str(self.output_dir).rstrip("/"), os.path.normpath(self.output_dir)
        # FolderLayout takes the URL for a path
        names = [path.relative_to(folder).as_posix() for path in self.paths(metadata, name)]
        return [RemotePlace(f"{url}/{path}", self.storage_options) for path in names]

    def _layout(self, result: Result) -> StoreLayout:
        return store_layout(result, **{name: getattr(self, name) for name in OF_LAYOUT})


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_own(path: Path) -> bool:
    """Whether a path is metadata or a level, which a run may have left unfinished."""
    return path.name.isdigit() if path.is_dir() else path.name in OWN_FILES


def _other_kind(path: Path | str, reason: str) -> OSError:
    text = f"a result is to have this name, but what is there {reason}; move it away, or choose another output_dir"
    return FileExistsError(errno.EEXIST, text, str(path))


def _zarr_writer() -> type[ZarrWriter]:
    try:
        from monai_chunked.formats.zarr.writer import ZarrWriter
    except ImportError as error:
        raise ImportError("ZarrOutput needs zarr 3: pip install 'zarr>=3'") from error
    return ZarrWriter
