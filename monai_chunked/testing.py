"""
The tests of an output: anyone who writes one can run them over it, see :py:class:`OutputTests`.

Nothing else in the package imports this module, which needs pytest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_chunked.outputs.base import Expected, Metadata, Output, OutputWriter, Result, ResumableOutput
from monai_chunked.plan.boxes import Box, intervals

try:
    import pytest
except ImportError as error:
    raise ImportError("monai_chunked.testing needs pytest: pip install pytest") from error

__all__ = ["OutputTests"]

Chunks = list[tuple[int, Box]]
"""Index in the input batch, and the voxels."""


class OutputTests:
    """What every output promises. Subclass it in a test module, and say how to make yours.

    An output that keeps other things than voxels also says how to tell whether a result is right, as does the one of
    the README that counts the voxels of each label. What a :py:class:`ResumableOutput` promises besides is skipped for
    others.

    Example::

        import torch
        from monai_chunked.testing import OutputTests

        class TestVolumeOutput(OutputTests):
            dtypes = (torch.uint8,)

            def make(self, folder):
                return VolumeOutput()

            def check(self, result, expected):
                for counts, image in zip(result, expected, strict=True):
                    assert torch.equal(counts, torch.bincount(image.flatten(), minlength=256))
    """

    shape: tuple[int, ...] = (2, 3, 9, 7, 8)
    """The shape of a result, ``(B, C, *spatial)``."""

    cuts: tuple[tuple[int, ...], ...] = ((0, 4, 6, 9), (0, 3, 7), (0, 8))
    """Where its chunks begin in each spatial dimension, and the size."""

    dtypes: tuple[torch.dtype, ...] = (torch.uint8, torch.float32)
    """Dtypes of results that the output can hold."""

    def make(self, folder: Path) -> Output:
        """A new output that may use this folder."""
        raise NotImplementedError

    def metadata(self, folder: Path) -> tuple[Metadata, ...]:
        """The metadata of each image of the batch. Different images have different names."""
        return tuple({"filename_or_obj": f"image{k}.nii"} for k in range(self.shape[0]))

    def voxels(self, result: Any) -> list[np.ndarray]:
        """The voxels of what :py:meth:`OutputWriter.finish` returned, ``(C, *spatial)`` for each image."""
        return [np.asarray(image) for image in result]

    def check(self, result: Any, expected: torch.Tensor) -> None:
        """What :py:meth:`OutputWriter.finish` returned has these voxels, ``(B, C, *spatial)``."""
        images = self.voxels(result)
        assert len(images) == len(expected)
        for image, voxels in zip(images, expected.numpy()):
            assert image.dtype == voxels.dtype
            np.testing.assert_array_equal(image, voxels)
            assert image.tobytes() == voxels.tobytes(), "zeros have another sign, or what is not a number other bits"

    @pytest.fixture(params=["first dtype", "last dtype", "first dtype, mostly zeros", "last dtype, mostly zeros"])
    def expected(self, request: pytest.FixtureRequest) -> torch.Tensor:
        """The voxels of a result, ``(B, C, *spatial)``."""
        dtype = self.dtypes[-1 if request.param.startswith("last") else 0]
        values = torch.randint(0, 200, self.shape, generator=torch.Generator().manual_seed(0))
        if request.param.endswith("zeros"):
            values[..., : self.shape[-1] - 1] = 0
            values[:, :, : self.cuts[0][1]] = 0
        values = values.to(dtype)
        if dtype.is_floating_point:
            values.view(-1)[-2:] = torch.tensor([float("nan"), float("-inf")])
            values[-1, -1].view(-1)[0] = -0.0
        return values

    def result(self, folder: Path, expected: torch.Tensor, **changes: Any) -> Result:
        """What is known of a result before its first chunk."""
        usual: dict[str, Any] = {"name": "prediction", "cuts": self.cuts, "metadata": self.metadata(folder)}
        return Result(**{**usual, "shape": tuple(expected.shape), "dtype": expected.dtype, **changes})

    def test_every_voxel_comes_back(self, tmp_path: Path, expected: torch.Tensor) -> None:
        writer = self.make(tmp_path).create(self.result(tmp_path, expected))
        _write(writer, expected, _chunks(expected, self.cuts))
        self.check(writer.finish(), expected)

    def test_chunks_come_in_any_order(self, tmp_path: Path, expected: torch.Tensor) -> None:
        writer = self.make(tmp_path).create(self.result(tmp_path, expected))
        _write(writer, expected, _chunks(expected, self.cuts)[::-1])
        self.check(writer.finish(), expected)

    def test_the_memory_of_a_chunk_is_used_again(self, tmp_path: Path, expected: torch.Tensor) -> None:
        writer = self.make(tmp_path).create(self.result(tmp_path, expected))
        for image, box in _chunks(expected, self.cuts):
            chunk = expected[image][(slice(None), *box)].clone()
            writer.write(image, box, chunk)
            chunk.fill_(7)
            writer.idle()
        self.check(writer.finish(), expected)

    def test_a_chunk_has_any_strides(self, tmp_path: Path, expected: torch.Tensor) -> None:
        writer = self.make(tmp_path).create(self.result(tmp_path, expected))
        for image, box in _chunks(expected, self.cuts):
            writer.write(image, box, expected[image][(slice(None), *box)].mT.contiguous().mT)
        self.check(writer.finish(), expected)

    def test_an_image_may_have_no_name(self, tmp_path: Path, expected: torch.Tensor) -> None:
        expected = expected[:1]
        unnamed = {key: value for key, value in self.metadata(tmp_path)[0].items() if key != "filename_or_obj"}
        writer = self.make(tmp_path).create(self.result(tmp_path, expected, metadata=(unnamed,)))
        _write(writer, expected, _chunks(expected, self.cuts))
        self.check(writer.finish(), expected)

    def test_several_results_do_not_mix(self, tmp_path: Path, expected: torch.Tensor) -> None:
        output, values = self.make(tmp_path), (expected, expected.flip(2))
        names = ["prediction-a", "prediction-b"]
        writers = [output.create(self.result(tmp_path, expected, name=name)) for name in names]
        for chunk in _chunks(expected, self.cuts):
            for writer, voxels in zip(writers, values):
                _write(writer, voxels, [chunk])
        for result, voxels in zip([writer.finish() for writer in writers], values):
            self.check(result, voxels)

    def test_memory_is_the_result(self, tmp_path: Path, expected: torch.Tensor) -> None:
        writer = self.make(tmp_path).create(self.result(tmp_path, expected))
        if writer.memory is None:
            writer.abandon()
            pytest.skip("results of this output are not in memory")
        assert (writer.memory.shape, writer.memory.dtype) == (expected.shape, expected.dtype)
        assert not writer.memory.any()
        writer.memory.copy_(expected)
        self.check(writer.finish(), expected)

    def test_to_ask_writes_nothing(self, tmp_path: Path, expected: torch.Tensor) -> None:
        metadata, output = self.metadata(tmp_path), self.make(tmp_path / "new")
        before = set(tmp_path.rglob("*"))
        output.check(Expected(0))
        output.check(Expected(expected.nbytes, expected.dtype, metadata, overwrite=False))
        output.reserve(torch.device("cpu"), 0)
        output.folders(metadata)
        if isinstance(output, ResumableOutput):
            output.journal(metadata)
        assert set(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("count", [0, 3, None], ids=["at once", "in the middle", "at the end"])
    def test_what_fails_leaves_nothing(self, tmp_path: Path, expected: torch.Tensor, count: int | None) -> None:
        result, output = self.result(tmp_path, expected), self.make(tmp_path)
        before = set(tmp_path.rglob("*"))
        writer = output.create(result)
        _write(writer, expected, _chunks(expected, self.cuts)[:count])
        writer.abandon()
        writer.abandon()
        folders = {path for folder in output.folders(result.metadata) for path in (folder, *folder.parents)}
        assert set(tmp_path.rglob("*")) - before - folders == set(), "folders that are left must be named by folders()"
        assert [path for path in folders if path.is_file()] == []

    def test_what_exists_is_replaced_only_if_it_may_be(self, tmp_path: Path, expected: torch.Tensor) -> None:
        def write(values: torch.Tensor, overwrite: bool) -> Any:
            output, result = self.make(tmp_path), self.result(tmp_path, values, overwrite=overwrite)
            output.check(Expected(values.nbytes, values.dtype, result.metadata, overwrite))
            writer = output.create(result)
            _write(writer, values, _chunks(values, self.cuts))
            return writer.finish()

        self.check(write(expected, False), expected)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with suppress(FileExistsError):  # or it has another name
            write(expected.flip(2), False)
        assert all(path.read_bytes() == content for path, content in before.items())
        self.check(write(expected.flip(2), True), expected.flip(2))

    @pytest.mark.parametrize(("how", "count"), [("failed", None), ("killed", 3)])
    def test_an_earlier_result_stays_until_another_one_is_complete(
        self, tmp_path: Path, expected: torch.Tensor, how: str, count: int | None
    ) -> None:
        writer = self.make(tmp_path).create(self.result(tmp_path, expected))
        _write(writer, expected, _chunks(expected, self.cuts))
        writer.finish()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        writer = self.make(tmp_path).create(self.result(tmp_path, expected, overwrite=True))
        _write(writer, expected.flip(2), _chunks(expected, self.cuts)[:count])
        if how == "failed":
            writer.abandon()
        assert {path: path.read_bytes() for path in before} == before

    def test_settings_do_not_say_where_results_are(self, tmp_path: Path) -> None:
        here, elsewhere = self.resumable(tmp_path / "a"), self.resumable(tmp_path / "b")
        assert here.settings == elsewhere.settings

    def test_what_was_written_is_safe_once(self, tmp_path: Path, expected: torch.Tensor) -> None:
        writer = self.resumable(tmp_path).create(self.result(tmp_path, expected, resumable=True))
        safe: Chunks = []
        chunks = _chunks(expected, self.cuts)
        for chunk in chunks:
            _write(writer, expected, [chunk])
            safe += _named(writer.flush(), [chunk])
            assert len(safe) <= chunks.index(chunk) + 1
        safe += _named(writer.flush(last=True), [])
        assert sorted(safe, key=chunks.index) == chunks
        self.check(writer.finish(), expected)

    @pytest.mark.parametrize("how", ["failed", "killed"])
    def test_a_run_that_stopped_goes_on(self, tmp_path: Path, expected: torch.Tensor, how: str) -> None:
        output, result = self.resumable(tmp_path), self.result(tmp_path, expected, resumable=True)
        chunks = _chunks(expected, self.cuts)
        half = len(chunks) // 2
        writer = output.create(result)
        assert not writer.complete
        _write(writer, expected, chunks[:half])
        safe = _named(writer.flush(), chunks[:half])
        assert all(chunk in chunks[:half] for chunk in safe)
        _write(writer, expected.flip(2), chunks[half : half + 2])  # what is not safe may be anything
        if how == "failed":
            writer.abandon()
            writer.abandon()

        writer = self.resumable(tmp_path).resume(result)
        assert not writer.complete
        for image, box in safe:
            read, written = writer.read(image, box), expected[image][(slice(None), *box)]
            assert read.dtype == written.dtype
            np.testing.assert_array_equal(read, written)
        rest = [chunk for chunk in chunks if chunk not in safe]
        _write(writer, expected, rest)
        assert sorted(_named(writer.flush(last=True), rest), key=chunks.index) == rest
        self.check(writer.finish(), expected)

    def test_what_was_finished_is_found(self, tmp_path: Path, expected: torch.Tensor) -> None:
        result = self.result(tmp_path, expected, resumable=True)
        writer = self.resumable(tmp_path).create(result)
        _write(writer, expected, _chunks(expected, self.cuts))
        writer.flush(last=True)
        writer.finish()
        writer = self.resumable(tmp_path).resume(result)
        assert writer.complete
        self.check(writer.finish(), expected)
        self.check(self.resumable(tmp_path).load(result), expected)

    def test_what_is_missing_is_not_found(self, tmp_path: Path, expected: torch.Tensor) -> None:
        output, result = self.resumable(tmp_path), self.result(tmp_path, expected, resumable=True)
        with pytest.raises(FileNotFoundError):
            output.load(result)
        with pytest.raises(OSError):  # noqa: PT011  of any kind
            output.resume(result)

    def resumable(self, folder: Path) -> ResumableOutput:
        """A new output whose runs can be gone on with."""
        output = self.make(folder)
        if not isinstance(output, ResumableOutput) or output.journal(self.metadata(folder)) is None:
            pytest.skip("runs with this output cannot be resumed")
        return output


def _chunks(expected: torch.Tensor, cuts: tuple[tuple[int, ...], ...]) -> Chunks:
    """All of a result, in raster order."""
    boxes = list(itertools.product(*map(intervals, cuts)))
    return list(itertools.product(range(len(expected)), boxes))


def _write(writer: OutputWriter, expected: torch.Tensor, chunks: Chunks) -> None:
    for image, box in chunks:
        writer.write(image, box, expected[image][(slice(None), *box)].clone())


def _named(safe: Iterable[tuple[int, Box]] | None, written: Chunks) -> Chunks:
    """What :py:meth:`ResumableWriter.flush` said is safe, where these have been written."""
    return written if safe is None else list(safe)
