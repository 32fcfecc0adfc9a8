"""Predictions on the patient's grid in files: MONAI's voxels and affines, also where a run was interrupted."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CropForegroundd,
    ResampleToMatchd,
    Rotated,
    SaveImaged,
    Spacingd,
    SpatialResampled,
)

from monai_chunked import NiftiOutput, ZarrOutput
from tests.outputs.recorded import voxels
from tests.transforms.inverted import KEY, Case, affine_of, assert_same_voxels, cases, oriented

pytestmark = [pytest.mark.usefixtures("one_thread")]

OUTPUTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nii": lambda folder: {"output": NiftiOutput(folder, output_ext=".nii")},
    "nii.gz": lambda folder: {"output": NiftiOutput(folder)},
    "zarr": lambda folder: {"output": ZarrOutput(folder, storage_chunk_size=8, levels=1)},
    "disk": lambda folder: {"output": "disk", "output_dir": folder},
}


class Stopped(Exception):
    pass


def case_of(kind: str = "oblique", images: int = 1, argmax: bool = True, folder: Path | None = None) -> Case:
    return Case(
        [oriented(), Spacingd(KEY, pixdim=(1.3, 1.0, 1.5)), CropForegroundd(KEY, KEY, select_fn=lambda x: x > 0.5)],
        size=(24, 20, 26),
        affine=affine_of(kind, (1.1, 0.9, 1.7)),
        images=images,
        before=[Activationsd("pred", softmax=True)],
        after=[AsDiscreted("pred", argmax=True)] if argmax else [],
        folder=folder,
        parameters={"network_id": "conv"},
    )


def one_image(result: Any) -> torch.Tensor:
    """``(C, *spatial)``; an array in a store has no dimension for the one image."""
    found = torch.as_tensor(result[:])
    return found[0] if found.dim() == 5 else found


def stop_at(case: Case, window: int) -> None:
    """Its network fails after so many windows."""

    def fail(*_: Any) -> None:
        if case.network.predicted >= window:
            raise Stopped

    case.handle = case.network.register_forward_pre_hook(fail)  # type: ignore[attr-defined]


def all_windows(case: Case) -> int:
    case.ours()
    return case.network.predicted


@pytest.mark.parametrize("kind", ["plain", "flipped", "permuted", "oblique"])
@pytest.mark.parametrize("argmax", [True, False])
def test_a_nifti_file_is_the_one_that_save_imaged_writes(kind: str, argmax: bool, tmp_path: Path) -> None:
    case = case_of(kind, argmax=argmax, folder=tmp_path)
    saved = SaveImaged("pred", output_dir=tmp_path / "monai", output_postfix="pred", resample=False, print_log=False)
    case.monai(Compose([*case.chain.transforms, saved]))
    case.ours(output=NiftiOutput(tmp_path / "ours"))
    (theirs,), (ours,) = tmp_path.glob("monai/**/*.nii.gz"), tmp_path.glob("ours/**/*.nii")
    one, other = nibabel.load(ours), nibabel.load(theirs)
    assert np.array_equal(one.get_fdata(), other.get_fdata())
    assert np.array_equal(one.affine, other.affine)
    assert one.shape == other.shape


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_on_disk_holds_the_same_bits(output: str, tmp_path: Path) -> None:
    case = case_of(images=2)
    reference = case.monai()
    result = voxels(case.ours(**OUTPUTS[output](tmp_path)))
    for one, other in zip(result, reference):
        assert_same_voxels(one, other)


@pytest.mark.parametrize("argmax", [True, False])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_an_interrupted_run_goes_on(output: str, part: float, argmax: bool, tmp_path: Path) -> None:
    case = case_of(images=2, argmax=argmax)
    reference, windows = case.monai(), all_windows(case)
    stop_at(case, int(part * windows))
    with pytest.raises(Stopped):
        case.ours(**OUTPUTS[output](tmp_path))
    case.handle.remove()  # type: ignore[attr-defined]
    result = voxels(case.ours(**OUTPUTS[output](tmp_path)))
    for one, other in zip(result, reference):
        assert_same_voxels(one, other)
    # what is finished is not predicted again: the windows that go on are those left and a layer or two before them
    assert windows - int(part * windows) <= case.network.predicted
    if part > 0.6 and output != "zarr":  # a store writes chunks of its own, later
        assert case.network.predicted <= windows / 2  # the first image is not predicted again


def check_goes_on(case: Case, part: float) -> None:
    """An interrupted run of any inverse ends in MONAI's bits."""
    case.parameters["network_id"] = "conv"
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.filterwarnings("ignore")
        reference, windows = case.monai(), all_windows(case)
        stop_at(case, int(part * windows))
        with suppress(Stopped):  # of few windows there may be one batch
            case.ours(**OUTPUTS["disk"](Path(folder)))
        case.handle.remove()  # type: ignore[attr-defined]
        result = voxels(case.ours(**OUTPUTS["disk"](Path(folder))))
        for one, other in zip(result, reference):
            assert_same_voxels(one, other)


CASES = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


OVER_A_GRID = {
    "spacing": Case(
        [
            Spacingd(KEY, pixdim=(0.9, 2.4, 2.4), align_corners=False),
            SpatialResampled(KEY, dst_keys="affine", padding_mode="zeros", align_corners=False),
        ],
        size=(10, 22, 23),
        affine=affine_of("plain", (0.8, 2.1, 1.3)),
        roi_size=(9, 5, 7),
        parameters={"chunk_size": 3},
    ),
    "affine": Case(
        [
            SpatialResampled(KEY, dst_keys="affine", align_corners=True),
            ResampleToMatchd(KEY, key_dst="match", padding_mode="zeros", align_corners=True),
        ],
        size=(17, 21, 17),
        affine=affine_of("plain", (1.1, 2.1, 1.3)),
        roi_size=(8, 9, 5),
        parameters={"chunk_size": 2},
    ),
}


@pytest.mark.parametrize("name", OVER_A_GRID)
def test_an_inverse_over_a_grid_on_the_way_goes_on_though_faces_of_that_grid_are_missing(name: str) -> None:
    check_goes_on(OVER_A_GRID[name], 0.5)


@settings(CASES, max_examples=25)
@given(case=cases(), part=st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_any_inverse_goes_on(case: Case, part: float) -> None:
    note(f"{case.transforms}, {case.parameters}")
    check_goes_on(case, part)


@pytest.mark.long
@settings(CASES, max_examples=150)
@given(case=cases(), part=st.sampled_from([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]))
def test_many_inverses_go_on(case: Case, part: float) -> None:
    note(f"{case.transforms}, {case.parameters}")
    check_goes_on(case, part)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_finished_run_predicts_nothing_again(output: str, tmp_path: Path) -> None:
    case = case_of()
    reference = case.monai()
    case.ours(**OUTPUTS[output](tmp_path))
    with pytest.warns(UserWarning, match="finished"):
        result = case.ours(**OUTPUTS[output](tmp_path))
    assert case.network.predicted == 0
    assert_same_voxels(one_image(result), reference[0])


def test_a_run_does_not_go_on_with_another_inverse(tmp_path: Path) -> None:
    case = case_of()
    case.ours(**OUTPUTS["disk"](tmp_path))
    case.nearest = True
    with pytest.raises(FileExistsError, match="inverse"):
        case.ours(**OUTPUTS["disk"](tmp_path))


def test_a_run_does_not_go_on_where_the_patient_lies_elsewhere(tmp_path: Path) -> None:
    case_of().ours(**OUTPUTS["nii"](tmp_path))
    moved = case_of()
    moved.affine[:3, 3] += 5
    moved.__post_init__()
    with pytest.raises(FileExistsError):
        moved.ours(**OUTPUTS["nii"](tmp_path))


@pytest.mark.parametrize("inverse", ["image", "Invertd"])
def test_what_cannot_be_streamed_is_written_too(inverse: str, tmp_path: Path) -> None:
    case = case_of()
    case.transforms.append(Rotated(KEY, angle=(0.1, 0.0, 0.0), keep_size=True))
    case.__post_init__()
    reference = case.monai(Compose([case.invert, *case.after]))
    how = (
        {"inverse": "image", "postprocessing": case.after}
        if inverse == "image"
        else {"postprocessing": Compose([case.invert, *case.after])}
    )
    for name, output in OUTPUTS.items():
        with pytest.warns(UserWarning, match="as a whole.*the inverse of Rotate"):
            result = case.ours(**output(tmp_path / name), **how)
        assert_same_voxels(one_image(result), reference[0])


def test_labels_are_stored_in_a_byte(tmp_path: Path) -> None:
    case = case_of()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        result = case.ours(postprocessing="argmax", inverse="image", **OUTPUTS["nii"](tmp_path))
    assert torch.as_tensor(result[0]).dtype == torch.uint8


def whole(folder: Path) -> Case:
    """Whose inverse needs the whole prediction."""
    rotated = [oriented(), Rotated(KEY, angle=(0.1, 0.0, 0.0))]
    return Case(rotated, size=(24, 20, 26), affine=affine_of("plain", (1.1, 0.9, 1.7)), folder=folder)


@pytest.mark.filterwarnings("ignore:the prediction is brought")
def test_what_is_inverted_whole_takes_the_place_of_nothing_either(tmp_path: Path) -> None:
    (folder := tmp_path / "results").mkdir()
    case = whole(tmp_path)
    own = NiftiOutput(tmp_path, "", ".nii.gz", separate_folder=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii*")}
    with pytest.raises(FileExistsError, match="which inputs is read from"):
        case.ours(output=own, overwrite=True)
    assert case.network.predicted == 0
    case.ours(output=NiftiOutput(folder))
    with pytest.raises(FileExistsError, match="exists; overwrite=True replaces it"):
        case.ours(output=NiftiOutput(folder))
    assert case.network.predicted == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.filterwarnings("ignore:the prediction is brought")
def test_what_is_inverted_whole_is_not_returned_as_the_result_of_an_earlier_run(tmp_path: Path) -> None:
    (folder := tmp_path / "results").mkdir()
    how = {"network_id": "conv", "postprocessing": None, "output": NiftiOutput(folder)}
    whole(tmp_path).ours(**how)
    (path,) = folder.rglob("*.nii")
    first = path.read_bytes()
    whole(tmp_path).ours(output=NiftiOutput(folder), overwrite=True)
    assert path.read_bytes() != first
    with pytest.raises(FileExistsError, match="overwrite=True replaces it"):
        whole(tmp_path).ours(**how)
