"""Inference over slices is that of MONAI's SliceInferer, with all that volumes have."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer

from monai_chunked import ChunkedSliceInferer
from tests.side_by_side import Recorder, assert_same, assert_same_calls, needs_condition, scores, volume

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


def flat_network(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    assert windows.dim() == 4
    return scores(windows) + windows.mean()


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_slices_give_monais_bits_for_each_spatial_dim(spatial_dim: int, sw_batch_size: int) -> None:
    parameters: dict[str, Any] = {"roi_size": (5, 4), "overlap": 0.5, "mode": "gaussian"}
    parameters.update(spatial_dim=spatial_dim, sw_batch_size=sw_batch_size)
    reference = SliceInferer(**parameters)(volume(), flat_network)
    ours, calls, their_calls = ChunkedSliceInferer(**parameters), Recorder(flat_network), Recorder(flat_network)
    assert_same(ours(volume(), calls), reference)
    SliceInferer(**parameters)(volume(), their_calls)
    assert_same_calls(calls, their_calls)
    for structure in (lambda w: (scores(w), w.sin()), lambda w: {"b": scores(w), "a": w.sin()}):
        assert_same(ours(volume(), structure), SliceInferer(**parameters)(volume(), structure))


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
def test_slices_are_chunked_postprocessed_and_written_like_volumes(spatial_dim: int, tmp_path: Any) -> None:
    reference = SliceInferer(spatial_dim, (5, 4))(volume(), flat_network).argmax(1, keepdim=True)
    labels = ChunkedSliceInferer(
        spatial_dim, (5, 4), chunk_size=(2, 3, 4), postprocessing="argmax", output="disk", output_dir=tmp_path
    )(volume(), flat_network)
    assert torch.equal(labels.long(), reference)
    assert np.array_equal(np.load(tmp_path / "prediction-0001.npy"), reference.numpy())


@needs_condition
@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
def test_slices_of_a_condition_reach_the_network_as_with_monai(spatial_dim: int) -> None:
    def network(windows: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        assert condition.shape == windows.shape
        return scores(windows) * condition

    condition = volume(seed=1)
    reference = SliceInferer(spatial_dim, (5, 4))(volume(), network, condition=condition)
    assert_same(ChunkedSliceInferer(spatial_dim, (5, 4))(volume(), network, condition=condition), reference)


def test_slices_take_further_arguments_along() -> None:
    ours = Recorder(flat_network)
    ChunkedSliceInferer(1, (5, 4))(volume(), ours, "positional", gain=2, output="logits")
    assert set(ours.args) == {("positional",)}
    assert all(kwargs == {"gain": 2, "output": "logits"} for kwargs in ours.kwargs)
    with_coord = Recorder(flat_network)
    ChunkedSliceInferer(1, (5, 4), with_coord=True)(volume(), with_coord)
    ((first,),) = with_coord.args[0]
    assert list(first) == [slice(0, 1), slice(None), slice(0, 5), slice(0, 1), slice(0, 4)]


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
def test_slices_with_a_cached_weight_map_are_those_without(spatial_dim: int) -> None:
    parameters: dict[str, Any] = {"spatial_dim": spatial_dim, "roi_size": (5, 4), "overlap": 0.5, "mode": "gaussian"}
    reference = SliceInferer(**parameters)(volume(), flat_network)  # MONAI's own cached map fits spatial_dim=0 only
    assert_same(ChunkedSliceInferer(**parameters, cache_roi_weight_map=True)(volume(), flat_network), reference)


def test_slices_leave_the_inferer_as_it_was() -> None:
    inferer = ChunkedSliceInferer(2, (5, 4))
    before = copy.deepcopy(vars(inferer))
    inferer(volume(), flat_network)
    assert vars(inferer) == before
