"""Buffered windows come in MONAI's buffered order and batches, and the values are MONAI's."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from tests.side_by_side import (
    STRUCTURES,
    Recorder,
    assert_same,
    assert_same_calls,
    infer,
    monai,
    random,
    scores,
    volume,
)

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


@pytest.mark.parametrize("buffer_steps", [1, 2, 3, 100])
@pytest.mark.parametrize("buffer_dim", [0, 1, 2, -1])
@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_buffered_windows_come_in_monais_buffered_order_and_batches_and_the_values_are_monais(
    buffer_steps: int, buffer_dim: int, sw_batch_size: int
) -> None:
    parameters = {"buffer_steps": buffer_steps, "buffer_dim": buffer_dim, "sw_batch_size": sw_batch_size}
    ours, reference = Recorder(), Recorder()
    result, expected = infer(volume(), ours, **parameters), monai(volume(), reference, **parameters)
    assert_same_calls(ours, reference)
    assert result.dtype == expected.dtype
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(result, monai(volume(), scores, sw_batch_size=sw_batch_size), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(23, 30), (41,), (6, 5, 7, 4)], ids=len)
@pytest.mark.parametrize("buffer_steps", [1, 3])
def test_buffered_windows_are_monais_in_any_number_of_dimensions(size: tuple[int, ...], buffer_steps: int) -> None:
    inputs = random(2, 1, *size)
    parameters = {"roi_size": 4, "buffer_steps": buffer_steps, "buffer_dim": 0, "sw_batch_size": 2}
    ours, reference = Recorder(), Recorder()
    assert torch.allclose(infer(inputs, ours, **parameters), monai(inputs, reference, **parameters), atol=1e-6)
    assert_same_calls(ours, reference)


def test_without_overlap_buffered_values_are_monais_bit_for_bit() -> None:
    parameters = {"overlap": 0, "roi_size": (3, 4, 7), "buffer_steps": 1, "buffer_dim": 0}
    assert_same(infer(volume(), scores, **parameters), monai(volume(), scores, **parameters))


@pytest.mark.parametrize("structure", ["tuple", "dict in another order", "mixed sizes in a tuple"])
def test_buffered_every_output_comes_back(structure: str) -> None:
    network = STRUCTURES[structure]
    inputs = random(2, 1, 6, 8, 4)
    ours = infer(inputs, network, roi_size=4, buffer_steps=1, buffer_dim=1)
    reference = monai(inputs, network, roi_size=4)  # MONAI's buffered mode keeps the first only
    assert isinstance(ours, type(reference))
    if isinstance(reference, Mapping):
        assert list(ours) == list(reference)
        ours, reference = tuple(ours.values()), tuple(reference.values())
    assert len(ours) == len(reference) > 1
    for one, other in zip(ours, reference):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_chunk_is_buffer_steps_scan_steps_long_along_buffer_dim() -> None:
    lengths = set()

    def postprocessing(chunk: torch.Tensor) -> torch.Tensor:
        lengths.add(chunk.shape[2])
        return chunk

    inputs = random(1, 1, 5, 24, 4)  # windows start at 0, 4, 8, 12 and 16
    infer(inputs, scores, roi_size=8, postprocessing=postprocessing, buffer_steps=2, buffer_dim=1)
    assert lengths == {8}  # two steps of four voxels
