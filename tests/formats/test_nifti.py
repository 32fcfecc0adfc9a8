"""NIfTI files are those that SaveImage writes, for any shape and any chunks."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import EnsureChannelFirst, LoadImage, SaveImage

from monai_chunked import ChunkedSlidingWindowInferer, Expected, NiftiOutput, Result
from monai_chunked.formats.nifti import output as nifti
from monai_chunked.formats.nifti.spans import SpanLayout
from tests.formats.nifti_cases import (
    AFFINE,
    EXTENSIONS,
    chunks,
    files_in,
    image,
    in_file,
    result_for,
    stacked,
    voxels,
    write,
)
from tests.outputs.cases import SETTINGS, infer_into, network
from tests.refusals import never

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------- the file that SaveImage writes


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("postprocessing", [None, "argmax"])
@pytest.mark.parametrize("chunk_size", [None, (4, 3, 11), (2, 10, 1)], ids=str)
def test_the_file_is_the_one_that_save_image_writes(
    extension: str, postprocessing: Any, chunk_size: Any, tmp_path: Path
) -> None:
    inputs = image(1, 1, 9, 10, 11)
    reference = SlidingWindowInferer(**SETTINGS)(inputs, network)
    if postprocessing:
        reference = reference.argmax(1, keepdim=True).to(torch.uint8)
    names = {"output_postfix": "seg", "output_ext": extension}
    ours, monai = tmp_path / "ours", tmp_path / "monai"
    ours.mkdir()
    result = infer_into(inputs, NiftiOutput(ours, **names), postprocessing=postprocessing, chunk_size=chunk_size)
    SaveImage(monai, **names, output_dtype=None, print_log=False)(reference[0])

    assert files_in(ours) == files_in(monai) == [f"scan/scan_seg{extension}"]
    both = [folder / files_in(folder)[0] for folder in (ours, monai)]
    read = gzip.decompress if extension == ".nii.gz" else bytes
    assert read(both[0].read_bytes()) == read(both[1].read_bytes())
    assert isinstance(result, MetaTensor)
    assert result.dtype == reference.dtype
    assert torch.equal(result, reference)
    again = EnsureChannelFirst()(LoadImage(image_only=True)(both[0]))
    assert torch.equal(again.as_tensor(), reference[0].as_tensor().to(again.dtype))
    assert torch.allclose(again.affine, AFFINE)


@pytest.mark.parametrize("shape", [(3, 7), (3, 5, 6), (2, 5, 6, 1), (3, 1, 1, 4), (1, 5, 6, 7), (1, 5, 1, 2)], ids=str)
def test_any_number_of_dimensions_is_written_as_save_image_does(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = voxels(1, *shape)
    meta = {"filename_or_obj": "scan0.nii", "affine": AFFINE}
    SaveImage(tmp_path / "monai", ".nii", output_ext=".nii", print_log=False)(MetaTensor(values[0], meta=meta))
    writer = NiftiOutput(tmp_path, ".nii").create(result_for(values))
    write(writer, values, chunks(result_for(values)))
    assert torch.equal(writer.finish(), values)
    ours, monai = (path.read_bytes() for path in sorted(tmp_path.rglob("scan0_.nii.nii"), key=lambda p: len(p.parts)))
    assert ours == monai


@pytest.mark.parametrize(
    ("shape", "in_file_shape"), [((1, 7), (7,)), ((1, 5, 6), (5, 6)), ((1, 5, 6, 1), (5, 6))], ids=str
)
def test_trailing_dimensions_of_size_one_are_left_out(
    shape: tuple[int, ...], in_file_shape: tuple[int, ...], tmp_path: Path
) -> None:
    """SaveImage says so too, but fails on these."""
    values = voxels(1, *shape)
    writer = NiftiOutput(tmp_path, separate_folder=False).create(result_for(values))
    write(writer, values, chunks(result_for(values)))
    assert torch.equal(writer.finish(), values)
    assert np.array_equal(in_file(tmp_path / "scan0_trans.nii"), values.numpy().reshape(in_file_shape))


def test_a_fourth_spatial_dimension_comes_before_channels(tmp_path: Path) -> None:
    values = voxels(1, 2, 3, 4, 5, 6)
    writer = NiftiOutput(tmp_path, separate_folder=False).create(result_for(values))
    write(writer, values, chunks(result_for(values)))
    assert torch.equal(writer.finish(), values)
    assert np.array_equal(in_file(tmp_path / "scan0_trans.nii"), np.moveaxis(values[0].numpy(), 0, -1))


@pytest.mark.parametrize("size", [(32767, 2, 1), (32768, 2, 1)], ids=str)
def test_a_dimension_that_does_not_fit_nifti_1_makes_it_nifti_2(size: tuple[int, ...], tmp_path: Path) -> None:
    values = voxels(1, 1, *size, dtype=torch.uint8)
    result = result_for(values, 10_000)
    writer = NiftiOutput(tmp_path, separate_folder=False).create(result)
    write(writer, values, chunks(result))
    writer.finish()
    saved = nibabel.load(tmp_path / "scan0_trans.nii")
    assert type(saved) is (nibabel.Nifti2Image if size[0] > 32767 else nibabel.Nifti1Image)
    assert np.array_equal(np.asanyarray(saved.dataobj), values[0, 0, :, :, 0].numpy())
    assert np.allclose(saved.affine, AFFINE)


DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"]


@pytest.mark.parametrize("name", DTYPES)
def test_a_file_holds_the_dtype_of_the_result(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    values = voxels(1, 2, 4, 5, 6).sub(50).abs().to(dtype)
    output = NiftiOutput(tmp_path, separate_folder=False)
    writer = output.create(result_for(values))
    write(writer, values, chunks(result_for(values)))
    assert torch.equal(writer.read(0, (slice(0, 3), slice(3, 5), slice(3, 6))), values[0, :, 0:3, 3:5, 3:6])
    finished = writer.finish()
    assert finished.dtype == dtype
    assert torch.equal(finished, values)
    saved = in_file(tmp_path / "scan0_trans.nii")
    assert saved.dtype == np.dtype("uint8" if name == "bool" else name)
    assert np.array_equal(saved, np.moveaxis(values[0].numpy(), 0, -1))


def test_units_and_the_code_of_the_affine_come_from_the_image(tmp_path: Path) -> None:
    source = nibabel.Nifti1Image(np.zeros((9, 10, 11), np.float32), AFFINE.numpy())
    source.set_sform(AFFINE.numpy(), 4)  # in MNI space
    source.header.set_xyzt_units("micron", "msec")
    nibabel.save(source, tmp_path / "scan.nii")
    inputs = EnsureChannelFirst()(LoadImage(image_only=True)(tmp_path / "scan.nii"))[None]
    infer_into(inputs, NiftiOutput(tmp_path, separate_folder=False))
    saved = nibabel.load(tmp_path / "scan_trans.nii")
    assert saved.header.get_xyzt_units() == ("micron", "unknown")
    assert int(saved.header["sform_code"]) == 4
    assert saved.header.get_slope_inter() == (None, None)
    assert np.allclose(saved.affine, AFFINE)
    assert np.allclose(saved.get_qform(), AFFINE, atol=0.2)  # which cannot shear


def test_an_image_without_metadata_lies_at_the_origin(tmp_path: Path) -> None:
    inputs = image(1, 1, 9, 10, 11).as_tensor()
    result = infer_into(inputs, NiftiOutput(tmp_path))
    assert type(result) is torch.Tensor
    assert files_in(tmp_path) == ["image/image_trans.nii"]
    assert np.array_equal(nibabel.load(tmp_path / "image/image_trans.nii").affine, np.eye(4))


def test_an_affine_in_lps_is_written_as_save_image_does_with_a_warning(tmp_path: Path) -> None:
    inputs = image(1, 1, 9, 10, 11)
    inputs.meta["space"] = "LPS"
    with pytest.warns(UserWarning, match="LPS"):
        infer_into(inputs, NiftiOutput(tmp_path, separate_folder=False))
    SaveImage(tmp_path, "monai", ".nii", separate_folder=False, print_log=False)(inputs[0])
    affines = [nibabel.load(tmp_path / f"scan_{name}.nii").affine for name in ("trans", "monai")]
    assert np.array_equal(*affines)


def test_a_batch_is_one_file_for_each_image_and_a_list_of_tensors(tmp_path: Path) -> None:
    images = [image(1, 9, 10, 11, name=f"scan{k}.nii") + k for k in range(3)]
    inputs = list_data_collate([{"image": each} for each in images])["image"]
    result = infer_into(inputs, NiftiOutput(tmp_path, separate_folder=False), sw_batch_size=2)
    reference = SlidingWindowInferer(**SETTINGS, sw_batch_size=2)(inputs, network)
    assert isinstance(result, list)
    assert all(torch.equal(ours, monai.as_tensor()) for ours, monai in zip(result, reference))
    for k, expected in enumerate(reference):
        assert np.array_equal(in_file(tmp_path / f"scan{k}_trans.nii"), np.moveaxis(expected.numpy(), 0, -1))


def test_what_is_written_to_the_result_is_in_the_nii_file(tmp_path: Path) -> None:
    result = infer_into(image(1, 1, 9, 10, 11), NiftiOutput(tmp_path, separate_folder=False))
    result[0, 1, 2, 3, 4] = 7
    assert in_file(tmp_path / "scan_trans.nii")[2, 3, 4, 1] == 7


def test_a_compressed_file_is_the_same_every_time(tmp_path: Path) -> None:
    written = []
    for name in "ab":
        (tmp_path / name).mkdir()
        infer_into(image(1, 1, 9, 10, 11), NiftiOutput(tmp_path / name, output_ext=".nii.gz", separate_folder=False))
        assert files_in(tmp_path / name) == ["scan_trans.nii.gz"]
        written.append((tmp_path / name / "scan_trans.nii.gz").read_bytes())
    assert written[0] == written[1]
    assert written[0][4:8] == bytes(4)  # the time at which it was written


# ---------------------------------------------------------------- any shape, any chunks


@st.composite
def results(draw: st.DrawFn) -> tuple[Result, int]:
    dims = draw(st.integers(1, 4))
    size = draw(st.lists(st.integers(1, 6), min_size=dims, max_size=dims))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *size)
    cuts = [(0, *sorted(draw(st.sets(st.integers(1, max(side - 1, 1)))) - {side}), side) for side in size]
    dtype = draw(st.sampled_from([torch.uint8, torch.int16, torch.float64]))
    metadata = tuple({"filename_or_obj": f"scan{k}.nii"} for k in range(shape[0]))
    return Result("prediction", shape, dtype, tuple(cuts), metadata, overwrite=True, resumable=True), draw(
        st.integers(1, 500)
    )


@given(results())
@settings(deadline=None)
def test_pieces_lie_in_their_spans_without_gaps_and_chunks_and_spans_agree(drawn: tuple[Result, int]) -> None:
    result, span_bytes = drawn
    layout = SpanLayout(result.shape[1:], result.cuts, 1, span_bytes)
    end = 0
    of_spans = set()
    for span in layout.spans():
        assert span.offset == end
        end += span.count
        kept = sorted((piece.offset, np.prod(piece.size)) for piece in layout.of_span(span))
        assert [offset for offset, _ in kept] == [sum(count for _, count in kept[:k]) for k in range(len(kept))]
        assert sum(count for _, count in kept) == span.count
        of_spans |= {(span.offset, piece.offset, piece.size) for piece in layout.of_span(span)}
    assert end == np.prod(result.shape[1:])
    of_chunks = [(p.span.offset, p.offset, p.size) for box in layout.boxes() for p in layout.of_chunk(box)]
    assert sorted(of_chunks) == sorted(of_spans)


@given(results(), st.sampled_from(EXTENSIONS), st.data())
@settings(deadline=None, max_examples=60)
def test_any_chunks_in_any_order_with_a_break_at_any_time_are_the_whole_image(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Result, int], extension: str, data: st.DataObject
) -> None:
    result, span_bytes = drawn
    output = NiftiOutput(tmp_path_factory.mktemp("any"), output_ext=extension)
    values = voxels(*result.shape, dtype=result.dtype)
    order = data.draw(st.permutations(chunks(result)))
    stop = data.draw(st.integers(0, len(order)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nifti, "SPAN_BYTES", span_bytes)
        writer = output.create(result)
        write(writer, values, order[:stop])
        writer.flush()
        writer.abandon()
        writer = output.resume(result)
        assert not writer.complete
        for k, box in order[:stop]:
            assert torch.equal(writer.read(k, box), values[k][(slice(None), *box)])
        write(writer, values, order[stop:])
        assert torch.equal(stacked(writer.finish()), values)
    for path, expected in zip(output.paths(result.metadata), values):
        saved = in_file(path)
        assert np.array_equal(saved, np.moveaxis(expected.numpy(), 0, -1).reshape(saved.shape))
        assert saved.dtype == expected.numpy().dtype
    assert torch.equal(stacked(output.load(result)), values)


# ---------------------------------------------------------------- names and files on the way


def test_a_file_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    values = voxels(1, 2, 5, 6, 7)
    result = result_for(values)
    writer = NiftiOutput(tmp_path, separate_folder=False).create(result)
    assert nibabel.Nifti1Header.from_fileobj((tmp_path / "scan0_trans.nii.partial").open("rb")).get_data_shape()
    write(writer, values, chunks(result))
    assert files_in(tmp_path) == ["scan0_trans.nii.chunks", "scan0_trans.nii.partial"]
    writer.finish()
    assert files_in(tmp_path) == ["scan0_trans.nii"]


def test_a_run_that_starts_afresh_does_not_see_what_an_earlier_one_left(tmp_path: Path) -> None:
    values = voxels(1, 2, 5, 6, 7)
    result = result_for(values)
    output = NiftiOutput(tmp_path)
    writer = output.create(result_for(voxels(1, 3, 9, 9, 9)))
    write(writer, voxels(1, 3, 9, 9, 9), chunks(result_for(voxels(1, 3, 9, 9, 9))))
    writer.abandon()
    writer = output.create(result)
    assert not writer.read(0, (slice(0, 5), slice(0, 6), slice(0, 7))).any()
    write(writer, values, chunks(result))
    assert torch.equal(writer.finish(), values)


def test_an_existing_file_is_replaced_only_where_it_may_be(tmp_path: Path) -> None:
    values = voxels(1, 2, 5, 6, 7)
    output = NiftiOutput(tmp_path, separate_folder=False)
    path = tmp_path / "scan0_trans.nii"
    path.write_text("old")
    told = r"scan0_trans.nii exists; overwrite=True replaces it"
    with pytest.raises(FileExistsError, match=told):
        output.check(Expected(0, None, result_for(values).metadata, overwrite=False))
    with pytest.raises(FileExistsError, match=told):
        output.create(result_for(values))
    assert files_in(tmp_path) == ["scan0_trans.nii"]
    assert path.read_text() == "old"
    writer = output.create(result_for(values, overwrite=True))
    write(writer, values, chunks(result_for(values)))
    assert path.read_text() == "old"
    writer.finish()
    assert np.array_equal(in_file(path), np.moveaxis(values[0].numpy(), 0, -1))


def test_images_that_would_have_the_same_file_are_refused(tmp_path: Path) -> None:
    metadata = ({"filename_or_obj": "/a/scan.nii"}, {"filename_or_obj": "/b/scan.nii.gz"})
    with pytest.raises(FileExistsError, match=r"2 images of the batch would be written to .*scan_trans.nii"):
        NiftiOutput(tmp_path).check(Expected(0, None, metadata))
    NiftiOutput(tmp_path, data_root_dir="/").check(Expected(0, None, metadata))
    with pytest.raises(FileExistsError, match=r"2 images of the batch"):
        infer_into(voxels(2, 1, 9, 9, 9), NiftiOutput(tmp_path))  # neither has a name
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_dtype_that_nifti_does_not_know_is_refused_before_the_network_runs(name: str, tmp_path: Path) -> None:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, output=NiftiOutput(tmp_path))
    with pytest.raises(TypeError, match=rf"NIfTI file cannot hold torch.{name}; pass float32 inputs"):
        inferer(voxels(1, 1, 9, 9, 9).to(getattr(torch, name)), never)
    with pytest.raises(TypeError, match=f"torch.{name}"):
        NiftiOutput(tmp_path).create(result_for(voxels(1, 1, 9, 9, 9).to(getattr(torch, name))))
    assert files_in(tmp_path) == []


def test_another_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output_ext='.mha' must be '.nii' or '.nii.gz'"):
        NiftiOutput(tmp_path, output_ext=".mha")
