"""Weights of windows: TorchIO's and nnU-Net's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked.windows.importance import MODES, Importance
from tests import reference_windows

CASES = settings(max_examples=60, deadline=None, derandomize=True)
SIZES = st.integers(1, 4).flatmap(
    lambda dims: st.lists(st.integers(1, [0, 200, 40, 20, 9][dims]), min_size=dims, max_size=dims)
)


def weights(mode: str, size: list[int], dtype: torch.dtype = torch.float32, sigma_scale: float = 0.125) -> torch.Tensor:
    return Importance(None, mode, sigma_scale, torch.device("cpu"), dtype)(tuple(size))


@CASES
@given(SIZES, st.sampled_from([torch.float32, torch.float64]), st.sampled_from([0.125, 0.05, 0.3]))
def test_nnunets_weights_are_scipys_rounded_to_half_precision(
    size: list[int], dtype: torch.dtype, sigma_scale: float
) -> None:
    ours, reference = weights("nnunet", size, dtype, sigma_scale), reference_windows.nnunet(size, sigma_scale)
    assert ours.dtype == dtype
    assert torch.equal(ours, reference.to(dtype))
    assert ours.max() == 10


@CASES
@given(SIZES)
def test_hann_weights_are_torchios(size: list[int]) -> None:
    torch.testing.assert_close(weights("hann", size), reference_windows.hann(size).float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights("hann", size, torch.float64), reference_windows.hann(size))


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("size", [(512,), (256, 512), (160, 160, 160), (24, 24, 24, 24)])
def test_every_voxel_of_a_window_counts(mode: str, size: tuple[int, ...]) -> None:
    assert (weights(mode, list(size)) > 1e-30).all()
