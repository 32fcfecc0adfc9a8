"""Preprocessing of windows gives the bits of preprocessing the volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, ScaleIntensityRange

from tests.inputs.lazy_cases import Recording, infer, monai, tensor, volume

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

TRANSFORMS = {
    "ScaleIntensityRange": ScaleIntensityRange(-100, 90, 0, 1, clip=True),
    "NormalizeIntensity": NormalizeIntensity(subtrahend=3.7, divisor=41.3),
    "Compose": Compose([ScaleIntensityRange(-100, 90), NormalizeIntensity(subtrahend=0.1, divisor=1.7)]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("roi_size", [(6, 5, 7), (16, 5, 19)], ids=str)
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_preprocessing_of_windows_gives_the_bits_of_preprocessing_the_volume(
    name: str, lazy: bool, roi_size: Any, sw_batch_size: int
) -> None:
    parameters = {"roi_size": roi_size, "sw_batch_size": sw_batch_size, "cval": 0.5}
    data = volume()
    before = data.copy()
    reference = monai(TRANSFORMS[name](tensor(data.copy())), **parameters)
    inputs = Recording(data) if lazy else torch.from_numpy(data)
    result = infer(inputs, preprocessing=TRANSFORMS[name], **parameters)
    assert torch.equal(result, torch.as_tensor(reference))
    assert np.array_equal(data, before)


def test_preprocessing_may_write_to_what_it_gets() -> None:
    data = tensor(volume())
    before = data.clone()
    result = infer(data, preprocessing=lambda window: window.mul_(2))
    assert torch.equal(result, monai(2 * before))
    assert torch.equal(data, before)


def test_preprocessing_may_change_the_number_of_channels() -> None:
    def ranges(window: torch.Tensor) -> torch.Tensor:
        return torch.cat([window.clamp(-10, 10), window.clamp(0, 90), window / 4])

    result = infer(Recording(volume()), preprocessing=ranges)
    reference = monai(torch.stack([ranges(image) for image in tensor(volume())]))
    assert torch.equal(result, reference)


def test_metadata_stay_with_preprocessing() -> None:
    inputs = MetaTensor(tensor(volume(1, 2, 13, 11, 15)), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    result = infer(inputs, preprocessing=TRANSFORMS["NormalizeIntensity"])
    assert torch.equal(result.affine, inputs.affine)


def test_gradients_reach_the_input_through_preprocessing() -> None:
    inputs = tensor(volume(1, 2, 13, 11, 15)).requires_grad_()
    with torch.enable_grad():
        infer(inputs, lambda windows: windows.clone(), preprocessing=lambda window: 3 * window).sum().backward()
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, torch.tensor(3.0))


@pytest.mark.parametrize("inputs", [tensor(volume()), volume()], ids=["tensor", "array"])
def test_preprocessing_that_changes_the_size_is_refused_with_what_it_returned(inputs: Any) -> None:
    with pytest.raises(
        ValueError, match=r"preprocessing.*\(6, 5, 7\).*\(2, 6, 5, 6\).*window image 0 \[0:6, 0:5, 0:7\]"
    ):
        infer(inputs, preprocessing=lambda window: window[..., 1:])
    with pytest.raises(ValueError, match=r"preprocessing.*NoneType"):
        infer(inputs, preprocessing=lambda window: None)
    with pytest.raises(TypeError, match="preprocessing='zscore'"):
        infer(inputs, preprocessing="zscore")
