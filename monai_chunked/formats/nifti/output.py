"""Finished chunks in NIfTI files, one for each image of the batch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from monai_chunked.formats.nifti.header import header, stored_dtype
from monai_chunked.formats.nifti.spans import SpanLayout
from monai_chunked.formats.nifti.volume import CHUNKS, PLAIN, NiftiVolume
from monai_chunked.machine.files import beside, make_folder
from monai_chunked.outputs.base import Expected, Result, ResumableWriter
from monai_chunked.outputs.file_output import FileOutput
from monai_chunked.outputs.stored_images import StoredImages
from monai_chunked.plan.boxes import Box

__all__ = ["NiftiOutput"]


SPAN_BYTES = 2**24
"""Bytes of a file that are put in order at a time; three times as many are in memory then."""


class NiftiOutput(FileOutput):
    """One NIfTI file for each image, with the name, shape, voxels and affine that MONAI's ``SaveImage`` gives it.

    One channel is written as a 3D volume, several channels as the 4th dimension; trailing dimensions of size one are
    left out. The dtype is that of the result, with ``torch.bool`` as uint8. Spatial unit and the code of the affine
    (qform and sform) are taken over where the metadata has them. A dimension of more than 32,767 makes it NIfTI-2.

    ``<name>.nii.chunks`` and ``<name>.nii.partial`` lie beside the file until it is complete; a file of this name that
    was there before stays until then. ``.nii.gz`` is made from the complete ``<name>.nii.gz.plain`` in one pass, at
    nibabel's default compression level, and takes its own space besides.

    The result is a tensor ``(1, C, *spatial)`` over the map of the file; for a batch of several images it is a list of
    tensors ``(C, *spatial)``, one a file, and MONAI's engines take it apart into just these. Of a ``.nii.gz`` the
    uncompressed voxels are mapped, in a file without a name in the same folder, which is gone with the tensor.

    Args:
        output_dir: the folder, which is created if it is missing.
        output_postfix, separate_folder, data_root_dir: as in MONAI's ``SaveImage``.
        output_ext: ``".nii"`` or ``".nii.gz"``.

    Raises:
        ValueError: when ``output_ext`` is neither.
        TypeError: when NIfTI cannot hold the dtype of the result, such as float16 or bfloat16.
        NotADirectoryError, PermissionError, FileExistsError, OSError: as :py:class:`FileOutput`.

    Example::

        output = NiftiOutput("results", output_postfix="seg")
        inferer = ChunkedSlidingWindowInferer(96, mode="gaussian", postprocessing="argmax", output=output)
        labels = inferer(image, network)  # results/scan/scan_seg.nii
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        output_postfix: str = "trans",
        output_ext: str = ".nii",
        separate_folder: bool = True,
        data_root_dir: str | os.PathLike[str] = "",
    ) -> None:
        super().__init__(output_dir, output_postfix, separate_folder, data_root_dir)
        if output_ext not in (".nii", ".nii.gz"):
            raise ValueError(f"output_ext={output_ext!r} must be '.nii' or '.nii.gz'")
        self.extension = output_ext
        self.beside_result = (CHUNKS, PLAIN, ".partial") if output_ext == ".nii.gz" else (CHUNKS, ".partial")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "output_ext": self.extension}

    def check(self, expected: Expected) -> None:
        if expected.dtype is not None:
            stored_dtype(expected.dtype)
        # space that an earlier run took is used again
        left = [beside(path, CHUNKS) for path in self.paths(expected.metadata)]
        held = sum(path.stat().st_size for path in left if path.exists())
        super().check(replace(expected, least_bytes=max(expected.least_bytes - held, 0)))

    def create(self, result: Result) -> ResumableWriter:
        volumes = self._volumes(result)
        self.check_result(result)
        for volume in volumes:
            make_folder(volume.path.parent)
        try:
            for volume in volumes:
                volume.create()
        except BaseException:
            for volume in volumes:
                volume.discard()
            raise
        return _NiftiWriter(volumes, result)

    def resume(self, result: Result) -> ResumableWriter:
        volumes = self._volumes(result)
        writer = _NiftiWriter(volumes, result)
        try:
            begun = [volume.resume() for volume in volumes]
            if any(begun):  # so all chunks of all volumes were written
                for volume in volumes:
                    volume.complete()
                    volume.partial.unlink(missing_ok=True)
                writer.complete = True
        except BaseException:
            writer.abandon()
            raise
        return writer

    def load(self, result: Result) -> torch.Tensor | list[torch.Tensor]:
        return _packed([volume.load() for volume in self._volumes(result)], result.dtype)

    def _volumes(self, result: Result) -> list[NiftiVolume]:
        shape, dtype = result.shape[1:], stored_dtype(result.dtype)
        paths = self.paths(result.metadata, result.name)
        layout = SpanLayout(shape, result.cuts, dtype.itemsize, SPAN_BYTES)
        return [
            NiftiVolume(path, shape=shape, dtype=dtype, header=header(shape, dtype, metadata), layout=layout)
            for path, metadata in zip(paths, result.metadata)
        ]


class _NiftiWriter(ResumableWriter):
    def __init__(self, volumes: list[NiftiVolume], result: Result) -> None:
        self.volumes = volumes
        self.dtype = result.dtype
        self.resumable = result.resumable

    def write(self, image: int, box: Box, chunk: torch.Tensor) -> None:
        self.volumes[image].write(box, chunk.detach().cpu().numpy())

    def read(self, image: int, box: Box) -> torch.Tensor:
        return torch.from_numpy(self.volumes[image].read(box)).view(self.dtype)

    def flush(self, last: bool = False) -> None:
        for volume in self.volumes:
            volume.flush()

    def finish(self) -> torch.Tensor | list[torch.Tensor]:
        return _packed([volume.finish() for volume in self.volumes], self.dtype)

    def abandon(self) -> None:
        for volume in self.volumes:
            if self.resumable:
                volume.close()
            else:
                volume.discard()


def _packed(volumes: list[np.ndarray], dtype: torch.dtype) -> torch.Tensor | list[torch.Tensor]:
    tensors = [torch.from_numpy(volume).view(dtype) for volume in volumes]
    return StoredImages(tensors) if len(tensors) > 1 else tensors[0][None]
