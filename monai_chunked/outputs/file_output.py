"""What outputs that write files have in common: a folder, names for the files in it, and what a file can hold."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.folder_layout import FolderLayout

from monai_chunked.machine.files import LONGEST_NAME, beside, check_folder
from monai_chunked.machine.store_names import without_store_endings
from monai_chunked.outputs.apart import check_apart
from monai_chunked.outputs.base import Expected, Metadata, Result, ResumableOutput

__all__ = ["FileOutput", "check_different", "check_forgotten", "check_new", "ending", "numpy_dtype", "partial_path"]


IMAGES = (
    "images of the batch would be written to {path}; give them different names (filename_or_obj), or set data_root_dir"
)


HEADS = "heads of the network would be written to {path}; let it return a dict with other keys"


BESIDE_JOURNAL = (".lock", ".new")
"""Endings of what lies beside a journal while a run lasts."""


class FileOutput(ResumableOutput):
    """Names files as MONAI's ``SaveImage`` does.

    Args:
        output_dir: the folder, which is created if it is missing.
        output_postfix: appended to the name of the image, with an underscore between.
        separate_folder: whether the files of each image go to a folder of their own, with the name of the image.
        data_root_dir: the part of the image's path that is not repeated in ``output_dir``.

    Raises:
        NotADirectoryError, PermissionError: when ``output_dir`` is not, or cannot become, a folder for files.
        FileExistsError: when a result exists and may not be replaced; when two images would have the same file; when
            it would take the place of what the run reads, lie around it, or in it.
        OSError: when its disk has less free space than the results need, or a name is too long.
    """

    extension: str
    """Of the files, with its dot."""

    beside_result: tuple[str, ...] = (".partial",)
    """Endings of what lies beside a result until it is complete."""

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        output_postfix: str = "trans",
        separate_folder: bool = True,
        data_root_dir: str | os.PathLike[str] = "",
    ) -> None:
        self.output_dir = output_dir
        self.output_postfix = output_postfix
        self.separate_folder = separate_folder
        self.data_root_dir = data_root_dir

    def check(self, expected: Expected) -> None:
        check_folder("output_dir", self.output_dir, expected.least_bytes)
        self.check_names(expected)

    def check_names(self, expected: Expected) -> None:
        """Check that the files can have their names, and that nothing is lost."""
        paths_of_heads = [self.paths(expected.metadata, name) for name in expected.names]
        paths = [path for paths_of_head in paths_of_heads for path in paths_of_head]
        for path in paths:
            check_length(path)
        for paths_of_head in paths_of_heads:
            check_different(paths_of_head)
        check_different(paths, HEADS)
        check_new([path for path in paths if self.exists(path)], expected.overwrite)
        for path in paths:
            self.check_kind(path)
        if expected.used and expected.metadata:
            taken = [file for name in expected.names for file in self.taken(expected.metadata, name)]
            check_apart(taken, expected.used, self.meant_for_results(expected.metadata))

    def check_result(self, result: Result) -> None:
        """Check what is known of a result before its first chunk."""
        size = prod(result.shape) * result.dtype.itemsize
        self.check(Expected(size, result.dtype, result.metadata, result.overwrite, names=(result.name,)))

    def exists(self, path: Path) -> bool:
        """Whether an earlier result has this name."""
        return os.path.lexists(path)

    def check_kind(self, path: Path) -> None:
        """Check that what a result replaces may be an earlier result.

        Raises:
            OSError: when it is something else.
        """
        for file in (path, *self.all_beside(path)):
            if file.is_dir():
                raise IsADirectoryError(
                    errno.EISDIR, "a result is to have this name, but it is a folder; move it away", str(file)
                )

    def taken(self, metadata: Sequence[Metadata], name: str = "prediction") -> list[Path]:
        """All files of results of these images, with those that are there until the results are complete."""
        journal = self.journal(metadata)
        logs = [] if journal is None else [journal, *(beside(journal, ending) for ending in BESIDE_JOURNAL)]
        return [*logs, *(file for path in self.paths(metadata, name) for file in (path, *self.all_beside(path)))]

    def beside(self, path: Path, ending: str) -> Path:
        """A file that belongs to a result."""
        return beside(path, ending)

    def all_beside(self, path: Path) -> list[Path]:
        """All that lies beside a result until it is complete."""
        return [self.beside(path, ending) for ending in self.beside_result]

    def meant_for_results(self, metadata: Sequence[Metadata]) -> list[Path]:
        """Folders for results that lie in the files of the images."""
        return []

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"output_postfix": self.output_postfix, "separate_folder": self.separate_folder}

    def paths(self, metadata: Sequence[Metadata], name: str = "prediction") -> list[Path]:
        """The file of each image. Makes no folder."""
        return [self._path(image, name, self.extension) for image in metadata]

    def folders(self, metadata: Sequence[Metadata]) -> list[Path]:
        return [path.parent for path in self.paths(metadata)]

    def journal(self, metadata: Sequence[Metadata]) -> Path | None:
        return self.beside(self.paths(metadata[:1])[0], ".journal")

    def _path(self, metadata: Metadata, name: str, extension: str) -> Path:
        # "prediction-key" of a network with several heads becomes "<image>_<postfix>-key"
        layout = FolderLayout(
            self.output_dir,
            postfix=self.output_postfix + ending(name),
            extension=extension,
            parent=self.separate_folder,
            makedirs=False,
            data_root_dir=self.data_root_dir,
        )
        subject = subject_of(metadata, self.data_root_dir)
        path = Path(layout.filename(subject, metadata.get("patch_index")))
        folder = os.path.abspath(self.output_dir)
        if (
            os.path.basename(subject) in ("", ".", "..")
            or os.path.commonpath([folder, os.path.abspath(path)]) != folder
        ):
            raise ValueError(
                f"the result of an image named {metadata.get('filename_or_obj')!r} (filename_or_obj) would be {path}, "
                f"which is no file in output_dir={str(self.output_dir)!r}; give it another name, or see to "
                f"output_postfix and data_root_dir"
            )
        return path


def ending(name: str) -> str:
    """What the file name of a head has behind the postfix."""
    return re.sub(r"[^\w.-]+", "_", name.removeprefix("prediction"))[:50]


def check_length(path: Path) -> None:
    """Check that the system takes such a name.

    Raises:
        OSError: when it is too long.
    """
    if (length := len(os.fsencode(path.name))) > LONGEST_NAME:
        reason = (
            f"the name of the result has {length} bytes, and {LONGEST_NAME} are possible; give the image a shorter one "
            f"(filename_or_obj), or set output_postfix"
        )
        raise OSError(errno.ENAMETOOLONG, reason, str(path))


def check_new(existing: Sequence[Path] | Sequence[str], overwrite: bool) -> None:
    """Check that results which exist already may be replaced."""
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists; overwrite=True replaces it, another output_dir keeps it")


def check_different(paths: Sequence[Path] | Sequence[str], what: str = IMAGES) -> None:
    """Check that no two images of a batch, or heads of the network, have the same file."""
    for path, count in Counter(paths).items():
        if count > 1:
            raise FileExistsError(f"{count} {what.format(path=path)}")


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """The same dtype of NumPy.

    Raises:
        TypeError: when NumPy has none.
    """
    return torch.empty(0, dtype=dtype).numpy().dtype


def partial_path(path: Path) -> Path:
    """What a file is called until it is complete."""
    return beside(path, ".partial")


def subject_of(metadata: Metadata, data_root_dir: str | os.PathLike[str]) -> str:
    """The path by which MONAI's ``FolderLayout`` names the result of an image.

    ``FolderLayout`` takes off one ending, or ``.nii.gz``. Those of a Zarr store are taken off here, at the end of the
    path only. An image in a larger store, where all are called ``0`` or so, has the name that
    :py:func:`open_image` gave it, unless the folders below ``data_root_dir`` tell it from others.

    >>> subject_of({"filename_or_obj": "/a.ome.zarr/embryo.ome.zarr/"}, "")
    '/a.ome.zarr/embryo.zarr'
    >>> well = {"filename_or_obj": "/plate.ome.zarr/A/1/0", "image_name": "plate_A_1_0"}
    >>> subject_of(well, ""), subject_of(well, "/plate.ome.zarr")
    ('/plate.ome.zarr/A/1/plate_A_1_0.zarr', '/plate.ome.zarr/A/1/0.zarr')
    """
    path = str(metadata.get("filename_or_obj") or "image").rstrip("/")
    folder, last = os.path.split(path)
    given, bare = metadata.get("image_name"), without_store_endings(last)
    if given is None and bare == last:
        return path
    return os.path.join(folder, f"{bare if given is None or data_root_dir else given}.zarr")


def check_forgotten(path: Path, overwrite: bool) -> None:
    """Check that a run without a journal does not leave its result beside the journal of another run.

    Raises:
        FileExistsError: when there is one, and its result may not be replaced.
    """
    if path.exists() and not overwrite:
        reason = "an earlier run began or finished this result, and this one cannot be compared with it"
        advice = "overwrite=True starts afresh, another output_dir keeps both"
        raise FileExistsError(errno.EEXIST, f"{reason}; {advice}", str(path))
