"""A MetaTensor comes back with MONAI's metadata, so that transforms behind the inferer work as behind MONAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import (
    AsDiscrete,
    Compose,
    Flipd,
    Invertd,
    Orientationd,
    Spacingd,
)

from tests.side_by_side import STRUCTURES, infer, monai, random, scores, volume

pytestmark = pytest.mark.usefixtures("one_thread", "grad")

OUTPUTS: dict[str, dict[str, Any]] = {
    "memory": {"output": "cpu"},
    "disk": {"output": "disk"},
    "labels in memory": {"postprocessing": "argmax"},
    "labels on disk": {"postprocessing": "argmax", "output": "disk"},
}
PREPROCESSING = Compose(
    [
        Orientationd("image", axcodes="PLS", labels=None),
        Spacingd("image", pixdim=(1.5, 1.0, 2.0)),
        Flipd("image", spatial_axis=1),
    ]
)


def preprocessed(images: int = 2) -> dict[str, MetaTensor]:
    affine = np.diag([-1.0, 2.0, 1.5, 1.0])
    affine[:3, 3] = 11, -7, 3
    samples = [
        {"image": MetaTensor(random(1, 11, 9, 12, seed=seed), affine=affine, meta={"subject": str(seed)})}
        for seed in range(images)
    ]
    return list_data_collate([PREPROCESSING(sample) for sample in samples])


def inverted(batch: dict[str, MetaTensor], prediction: torch.Tensor) -> list[MetaTensor]:
    invert = Invertd("pred", transform=PREPROCESSING, orig_keys="image", nearest_interp=True, to_tensor=True)
    return [invert(sample)["pred"] for sample in decollate_batch({"image": batch["image"], "pred": prediction})]


def assert_same_metadata(ours: MetaTensor, reference: MetaTensor) -> None:
    assert isinstance(ours, MetaTensor)
    assert type(reference) is MetaTensor
    assert ours.is_batch == reference.is_batch
    assert ours.meta.keys() - {"holds_labels"} == reference.meta.keys()
    for key, value in reference.meta.items():
        if isinstance(value, (torch.Tensor, np.ndarray)):
            assert torch.equal(torch.as_tensor(ours.meta[key]), torch.as_tensor(value)), key
        else:
            assert ours.meta[key] == value, key
    assert repr(ours.applied_operations) == repr(reference.applied_operations)
    assert ours.affine.dtype == reference.affine.dtype
    assert torch.equal(ours.affine, reference.affine)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("images", [1, 2])
def test_a_metatensor_comes_back_with_the_metadata_and_applied_operations_of_monais(output: str, images: int) -> None:
    batch = preprocessed(images)["image"]
    ours, reference = infer(batch, scores, **OUTPUTS[output]), monai(batch, scores)
    assert len(reference.applied_operations) > 0
    assert_same_metadata(ours, reference)
    expected = reference.as_tensor()
    if "labels" in output:
        expected = expected.argmax(1, keepdim=True).to(torch.uint8)
    assert ours.dtype == expected.dtype
    assert torch.equal(ours.as_tensor(), expected)


@pytest.mark.parametrize("structure", ["tuple", "dict"])
def test_several_metatensors_come_back_with_the_metadata_of_monais(structure: str) -> None:
    batch = preprocessed()["image"]
    network = STRUCTURES[structure]
    ours, reference = infer(batch, network), monai(batch, network)
    if isinstance(reference, Mapping):
        assert list(ours) == list(reference)
        ours, reference = tuple(ours.values()), tuple(reference.values())
    for one, other in zip(ours, reference):
        assert_same_metadata(one, other)
        assert torch.equal(one.as_tensor(), other.as_tensor())


@pytest.mark.parametrize("output", OUTPUTS)
def test_invertd_works_behind_a_metatensor_as_behind_monais(output: str) -> None:
    batch = preprocessed()
    ours = inverted(batch, infer(batch["image"], scores, **OUTPUTS[output]))
    reference = monai(batch["image"], scores)
    if "labels" in output:
        labels = [AsDiscrete(argmax=True)(image) for image in reference]
        reference = torch.stack(labels).to(torch.uint8)
    expected = inverted(batch, reference)
    assert len(ours) == len(expected) == 2
    for one, other in zip(ours, expected):
        assert one.shape[1:] == (11, 9, 12)
        assert_same_metadata(one, other)
        assert one.dtype == other.dtype
        assert torch.equal(one.as_tensor(), other.as_tensor())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8])
def test_a_metatensor_of_any_dtype_gives_monais_dtype(dtype: torch.dtype) -> None:
    inputs = MetaTensor((volume() * 10).abs().to(dtype))
    reference = monai(inputs if dtype.is_floating_point else inputs.float(), lambda w: scores(w.float()).to(w.dtype))
    ours = infer(inputs, lambda w: scores(w.float()))
    assert ours.dtype == reference.dtype
