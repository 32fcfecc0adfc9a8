"""Postprocessing of each finished chunk is the postprocessing of MONAI's whole result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Activations,
    AsDiscrete,
    Compose,
)

from tests.side_by_side import SIZE, assert_same, infer, monai, scores, volume, with_and_without_gradients

pytestmark = pytest.mark.usefixtures("one_thread", "grad")


@pytest.mark.parametrize("chunk_size", [None, (2, 3, 7), 1], ids=str)
def test_argmax_is_that_of_torch_on_monais_scores_the_first_of_several_included(chunk_size: Any) -> None:
    def coarse(windows: torch.Tensor) -> torch.Tensor:
        """Three values for five classes: nearly every voxel has several highest ones."""
        return torch.stack([(windows[:, 0] * k).sin().round() for k in (1, 2, 3, 5, 1)], 1)

    reference = monai(volume(), coarse)
    ties = (reference == reference.amax(1, keepdim=True)).sum(1) > 1
    assert ties.float().mean() > 0.2
    labels = infer(volume(), coarse, postprocessing="argmax", chunk_size=chunk_size)
    assert labels.shape == (2, 1, *SIZE)
    assert torch.equal(labels.long(), torch.argmax(reference, 1, keepdim=True))


def test_argmax_of_scores_that_are_infinite_or_no_number_is_that_of_torch() -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        result = scores(windows, 5)
        result[:, 3:4][windows > 1] = torch.nan
        result[:, 1:2][windows > 1.5] = torch.nan
        result[:, 2:3][windows < -1] = torch.inf
        result[(windows > 0.2).logical_and(windows < 0.4).expand_as(result)] = -torch.inf
        return result

    reference = monai(volume(), network)
    assert reference.isnan().any()
    assert reference.isinf().any()
    labels = infer(volume(), network, postprocessing="argmax")
    assert torch.equal(labels.long(), torch.argmax(reference, 1, keepdim=True))


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(2, torch.uint8), (256, torch.uint8), (257, torch.uint16)],
)
def test_argmax_gives_one_channel_of_the_smallest_unsigned_type_that_holds_the_classes(
    classes: int, dtype: torch.dtype
) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows.new_zeros(len(windows), classes - 1, *windows.shape[2:]), windows], 1)

    labels = infer(volume(1), network, postprocessing="argmax")
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), monai(volume(1), network).argmax(1, keepdim=True))
    assert labels.long().max() == classes - 1


TRANSFORMS: dict[str, tuple[Callable[[torch.Tensor], Any], bool]] = {
    "softmax": (Activations(softmax=True), False),
    "sigmoid": (Activations(sigmoid=True), False),
    "argmax": (AsDiscrete(argmax=True), True),
    "one hot": (AsDiscrete(argmax=True, to_onehot=3), True),
    "threshold": (AsDiscrete(threshold=0.5), True),
    "softmax, then argmax": (Compose([Activations(softmax=True), AsDiscrete(argmax=True)]), True),
    "function": (lambda chunk: chunk[1:] - chunk[:1], True),
    "in place": (lambda chunk: chunk.mul_(2).sub_(1), True),
    "none": (lambda chunk: chunk, True),
}


@with_and_without_gradients
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("meta", [False, True], ids=["tensor", "MetaTensor"])
@pytest.mark.parametrize("output", ["cpu", "disk"])
def test_a_transform_of_each_chunk_is_the_transform_of_monais_whole(transform: str, meta: bool, output: str) -> None:
    postprocessing, exact = TRANSFORMS[transform]
    inputs = MetaTensor(volume()) if meta else volume()
    ours = infer(inputs, scores, postprocessing=postprocessing, output=output, chunk_size=4)
    reference = torch.stack([postprocessing(image) for image in monai(volume(), scores)])
    assert isinstance(ours, MetaTensor) == meta
    assert ours.dtype == reference.dtype
    if exact:
        assert torch.equal(torch.as_tensor(ours), reference)
    else:  # how PyTorch vectorises an exponential depends on how much is contiguous
        assert torch.allclose(torch.as_tensor(ours), reference, rtol=1e-6, atol=1e-7)


def test_postprocessing_sees_every_finished_chunk_once_and_all_of_its_voxels() -> None:
    shapes: Counter[tuple[int, ...]] = Counter()
    total = torch.zeros((), dtype=torch.float64)

    def postprocessing(chunk: torch.Tensor) -> torch.Tensor:
        shapes[tuple(chunk.shape)] += 1
        total.add_(chunk.double().sum())
        return chunk

    infer(volume(), scores, postprocessing=postprocessing, chunk_size=(4, 8, 3))
    # 9 = 4 + 4 + 1, 8 = 8, 7 = 3 + 3 + 1, in each of two images
    assert shapes == {(3, 4, 8, 3): 8, (3, 4, 8, 1): 4, (3, 1, 8, 3): 4, (3, 1, 8, 1): 2}
    assert total.item() == pytest.approx(monai(volume(), scores).double().sum().item(), rel=1e-12)


def test_several_outputs_share_one_postprocessing_or_have_one_each() -> None:
    def in_tuple(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return scores(windows), scores(-windows)

    def in_dict(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"second": scores(-windows), "first": scores(windows)}

    first, second = monai(volume(), in_tuple)
    labels = first.argmax(1, keepdim=True).to(torch.uint8), second.argmax(1, keepdim=True).to(torch.uint8)
    assert_same(infer(volume(), in_tuple, postprocessing="argmax"), labels)
    assert_same(infer(volume(), in_tuple, postprocessing=("argmax", None)), (labels[0], second))
    assert_same(infer(volume(), in_tuple, postprocessing=[None, "argmax"]), (first, labels[1]))
    assert_same(infer(volume(), in_dict, postprocessing="argmax"), {"first": labels[0], "second": labels[1]})
    each = {"second": torch.neg, "first": "argmax"}
    assert_same(infer(volume(), in_dict, postprocessing=each), {"first": labels[0], "second": -second})
