"""An input that is an array is read piece by piece, and the result has MONAI's bits and metadata all the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer, chunked_sliding_window_inference
from monai_chunked.inputs import kept_rows
from tests.inputs.lazy_cases import ARRAYS, SETTINGS, Recording, cases, infer, monai, network, stored, tensor, volume

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


# ---------------------------------------------------------------- MONAI's bits


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases(), st.booleans())
def test_any_array_gives_the_bits_of_the_tensor_and_each_voxel_is_read_once(case: Any, in_file: bool) -> None:
    recording, parameters = case
    if parameters["buffer_steps"]:  # MONAI adds up its buffers in another order
        reference = infer(tensor(recording.array), **parameters)
    else:
        reference = monai(tensor(recording.array), **parameters)
    with pytest.MonkeyPatch.context() as patch:
        if in_file:
            patch.setattr(kept_rows, "IN_MEMORY", 0)
        patch.setattr(kept_rows, "READ_BYTES", 64)
        assert torch.equal(infer(recording, **parameters), reference)
    assert (recording.reads == 1).all()


@pytest.mark.parametrize("padding_mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("roi_size", [(16, 5, 7), (16, 14, 18), (6, 5, 19)], ids=str)
def test_padding_acts_at_the_border_of_the_image_only(padding_mode: str, roi_size: Any) -> None:
    parameters = {"roi_size": roi_size, "padding_mode": padding_mode}
    parameters |= {"cval": 2.5} if padding_mode == "constant" else {}  # MONAI refuses others
    assert torch.equal(infer(Recording(volume()), **parameters), monai(tensor(volume()), **parameters))


def test_what_cannot_be_padded_is_refused_before_anything_is_read() -> None:
    recording = Recording(volume(1, 1, 4, 11, 15))
    with pytest.raises(ValueError, match="padding_mode='reflect' cannot pad"):
        infer(recording, roi_size=(20, 5, 7), padding_mode="reflect")
    assert not recording.reads.any()


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_what_libraries_store_is_read_as_it_is(kind: str, sw_batch_size: int, tmp_path: Path) -> None:
    array = stored(kind, volume(dtype=">i2"), tmp_path)
    reference = tensor(np.asarray(array[...]))
    assert torch.equal(infer(array, sw_batch_size=sw_batch_size), monai(reference, sw_batch_size=sw_batch_size))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_of_other_precision_are_treated_as_tensors_of_it(dtype: Any) -> None:
    array = volume(dtype=dtype)
    result, reference = infer(Recording(array)), infer(torch.from_numpy(array))
    assert result.dtype == reference.dtype
    assert torch.equal(result, reference)


def test_a_condition_is_read_piece_by_piece_too() -> None:
    def conditioned(windows: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return network(windows) * condition[:, :1].sigmoid()

    inputs, condition = Recording(volume()), Recording(volume()[::-1].copy())
    expected = SlidingWindowInferer(**SETTINGS)(tensor(inputs.array), conditioned, condition=tensor(condition.array))
    result = ChunkedSlidingWindowInferer(**SETTINGS)(inputs, conditioned, condition=condition)
    assert torch.equal(result, expected)
    assert (condition.reads == 1).all()


# ---------------------------------------------------------------- metadata and errors


def test_metadata_of_an_array_go_to_the_result() -> None:
    meta = {"affine": torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])).double(), "filename_or_obj": "brain.nii"}
    array = volume(1, 2, 13, 11, 15)
    result = infer(Recording(array, meta=meta))
    reference = infer(MetaTensor(tensor(array), meta=meta))
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, reference.affine)
    assert result.meta["filename_or_obj"] == reference.meta["filename_or_obj"]
    assert torch.equal(result.as_tensor(), reference.as_tensor())


def test_metadata_of_several_images_go_to_the_result() -> None:
    meta = [{"affine": torch.eye(4), "filename_or_obj": name} for name in ("a.nii", "b.nii")]
    result = infer(Recording(volume(), meta=meta))
    assert result.meta["filename_or_obj"] == ["a.nii", "b.nii"]
    with pytest.raises(ValueError, match=r"inputs\.meta must be a dict for each of 2"):
        infer(Recording(volume(), meta=meta[0]))


@pytest.mark.parametrize(
    ("broken", "error", "words"),
    [
        (lambda part: part[..., 1:], ValueError, "shape"),
        (lambda part: part.astype(np.float64), TypeError, "although its dtype is float32"),
        (lambda part: 1 / 0, ZeroDivisionError, "division"),
    ],
    ids=["shape", "dtype", "error"],
)
def test_an_error_of_the_array_names_the_window(broken: Any, error: type[Exception], words: str) -> None:
    class Broken(Recording):
        def __getitem__(self, index: Any) -> Any:
            part = super().__getitem__(index)
            return broken(part) if index[2].stop > 6 else part

    with pytest.raises(error, match=rf"{words}.*while reading window image 0 \[3:9, 0:5, 0:7\]"):
        infer(Broken(volume()))


class Shapeless:
    dtype = np.dtype(np.float32)

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError


class OfNoKnownSize(Shapeless):
    shape = (1, 1, math.nan, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (Shapeless(), TypeError, "array with shape, dtype and slicing, got Shapeless"),
        (OfNoKnownSize(), ValueError, "got \\(1, 1, nan, 8, 8\\)"),
        (volume(13, 11), ValueError, "at least one spatial dimension"),
        (volume(1, 1, 13, 11, 15).astype(complex), TypeError, "real and imaginary part as channels"),
        (volume(1, 1, 13, 11, 15).astype([("r", "u1"), ("g", "u1")]), TypeError, "bool, integers and floats"),
    ],
    ids=["no shape", "no known shape", "no batch", "complex", "colours"],
)
def test_what_is_no_array_of_images_is_refused(inputs: Any, error: type[Exception], words: str) -> None:
    for condition in (False, True):
        call = (tensor(volume()), 6, 1, network) if condition else (inputs, 6, 1, network)
        with pytest.raises(error, match=words):
            chunked_sliding_window_inference(*call, **({"condition": inputs} if condition else {}))
