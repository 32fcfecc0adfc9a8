"""What of a bundle's postprocessing runs in chunks, and what stays behind: both in turn are the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CastToTyped,
    Compose,
    CopyItemsd,
    EnsureTyped,
    FillHolesd,
    Flipd,
    Identityd,
    Invertd,
    KeepLargestConnectedComponentd,
    LabelFilterd,
    Lambdad,
    MapLabelValued,
    MeanEnsembled,
    NormalizeIntensityd,
    OneOf,
    RandomOrder,
    SaveImaged,
    SelectItemsd,
    SomeOf,
    ToDeviced,
    ToNumpyd,
)

from monai_chunked import each_voxel, split_postprocessing
from monai_chunked.inference.chains import chain_of
from monai_chunked.inference.splitting import split

PREPROCESSING = Compose([Flipd("image")])
SOFTMAX = Activationsd("pred", softmax=True)
ARGMAX = AsDiscreted("pred", argmax=True)
INVERT = Invertd("pred", PREPROCESSING, "image", nearest_interp=False)
SAVE = SaveImaged("pred")
BOTH = AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=[None, 3])


class Squared(Lambdad):
    """Built on what is on the list, but not on it."""


def names(transforms: Compose | None) -> list[str]:
    """As in ``AsDiscreted pred label``."""
    return [] if transforms is None else [" ".join([type(t).__name__, *t.keys]) for t in transforms.transforms]


CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "nothing": (None, [], []),
    "an empty list": ([], [], []),
    "one transform": (ARGMAX, ["AsDiscreted pred"], []),
    "of a file": ([SOFTMAX, ARGMAX, SAVE], ["Activationsd pred", "AsDiscreted pred"], ["SaveImaged pred"]),
    "components": (
        [ARGMAX, KeepLargestConnectedComponentd("pred"), LabelFilterd("pred", 1)],
        ["AsDiscreted pred"],
        ["KeepLargestConnectedComponentd pred", "LabelFilterd pred"],
    ),
    "holes first": ([FillHolesd("pred"), ARGMAX], [], ["FillHolesd pred", "AsDiscreted pred"]),
    "two keys": ([SOFTMAX, BOTH], ["Activationsd pred", "AsDiscreted pred"], ["AsDiscreted label"]),
    "another key": (
        [EnsureTyped("label"), AsDiscreted("label", to_onehot=3), ARGMAX],
        ["AsDiscreted pred"],
        ["EnsureTyped label", "AsDiscreted label"],
    ),
    "a device": ([ToDeviced("pred", "cpu"), ARGMAX], ["AsDiscreted pred"], ["ToDeviced pred"]),
    "a key twice": ([Identityd(["pred", "pred"]), ARGMAX], [], ["Identityd pred pred", "AsDiscreted pred"]),
    "a lambda": ([ARGMAX, Lambdad("pred", torch.tanh)], ["AsDiscreted pred"], ["Lambdad pred"]),
    "a lambda that writes": (
        [Lambdad("label", torch.tanh, overwrite="pred"), ARGMAX],
        [],
        ["Lambdad label", "AsDiscreted pred"],
    ),
    "a lambda of others": ([Lambdad("label", torch.tanh), ARGMAX], ["AsDiscreted pred"], ["Lambdad label"]),
    "a vouched lambda": (
        [each_voxel(Lambdad("pred", torch.tanh)), ARGMAX],
        ["EachVoxeld pred", "AsDiscreted pred"],
        [],
    ),
    "a vouched function": (
        [each_voxel(lambda data: data, keys="pred"), ARGMAX],
        ["EachVoxeld pred", "AsDiscreted pred"],
        [],
    ),
    "vouched for two": (
        [each_voxel(Identityd(["pred", "label"])), ARGMAX],
        [],
        ["EachVoxeld pred label", "AsDiscreted pred"],
    ),
    "an activation": ([Activationsd("pred", other=torch.tanh)], [], ["Activationsd pred"]),
    "a vouched activation": ([Activationsd("pred", other=each_voxel(torch.tanh))], ["Activationsd pred"], []),
    "along space": ([AsDiscreted("pred", argmax=True, dim=1)], [], ["AsDiscreted pred"]),
    "without channel": ([AsDiscreted("pred", argmax=True, keepdim=False)], [], ["AsDiscreted pred"]),
    "no metadata": ([EnsureTyped("pred", track_meta=False)], [], ["EnsureTyped pred"]),
    "numpy": ([EnsureTyped("pred", data_type="numpy")], [], ["EnsureTyped pred"]),
    "numpy too": ([ToNumpyd("pred")], [], ["ToNumpyd pred"]),
    "of the volume": ([NormalizeIntensityd("pred")], [], ["NormalizeIntensityd pred"]),
    "a copy": (
        [SOFTMAX, CopyItemsd("pred", names="scores"), ARGMAX],
        ["Activationsd pred"],
        ["CopyItemsd pred", "AsDiscreted pred"],
    ),
    "a selection": ([SelectItemsd("label"), ARGMAX], [], ["SelectItemsd label", "AsDiscreted pred"]),
    "an ensemble": ([MeanEnsembled(["a", "b"], "pred"), ARGMAX], [], ["MeanEnsembled a b", "AsDiscreted pred"]),
    "a subclass": ([ARGMAX, Squared("pred", torch.square)], ["AsDiscreted pred"], ["Squared pred"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_longest_beginning_that_is_known_is_streamed(case: str) -> None:
    transforms, streamed, behind = CASES[case]
    assert tuple(map(names, split_postprocessing(transforms))) == (streamed, behind)
    if isinstance(transforms, list):
        assert tuple(map(names, split_postprocessing(Compose(transforms)))) == (streamed, behind)


INVERSES: dict[str, tuple[list[Any], list[str], list[str]]] = {
    "of scores": (
        [SOFTMAX, INVERT, ARGMAX, SAVE],
        ["Activationsd pred", "Invertd pred", "AsDiscreted pred"],
        ["SaveImaged pred"],
    ),
    "of two keys": (
        [Invertd(["pred", "label"], PREPROCESSING, "image", nearest_interp=[False, True], device=["cpu", None]), BOTH],
        ["Invertd pred", "AsDiscreted pred"],
        ["Invertd label", "ToDeviced pred", "AsDiscreted label"],
    ),
    "of another image": ([Invertd("pred", PREPROCESSING, "label"), ARGMAX], [], ["Invertd pred", "AsDiscreted pred"]),
    "of itself": ([Invertd("pred", PREPROCESSING), ARGMAX], [], ["Invertd pred", "AsDiscreted pred"]),
    "to numpy": ([Invertd("pred", PREPROCESSING, "image", to_tensor=False)], [], ["Invertd pred"]),
    "and more": ([Invertd("pred", PREPROCESSING, "image", post_func=torch.tanh)], [], ["Invertd pred"]),
    "twice": ([INVERT, ARGMAX, INVERT], ["Invertd pred", "AsDiscreted pred"], ["Invertd pred"]),
    "of a changed image": ([SOFTMAX, Flipd("image"), INVERT], ["Activationsd pred"], ["Flipd image", "Invertd pred"]),
    "of an image without metadata": (
        [EnsureTyped(["pred", "image"]), INVERT],
        ["EnsureTyped pred"],
        ["EnsureTyped image", "Invertd pred"],
    ),
    "of a saved image": ([SaveImaged("image"), INVERT], ["Invertd pred"], ["SaveImaged image"]),
    "of another key first": ([Invertd("label", PREPROCESSING, "image"), INVERT], ["Invertd pred"], ["Invertd label"]),
}


@pytest.mark.parametrize("case", INVERSES)
def test_an_inverse_is_streamed_once_and_of_the_image_as_the_network_saw_it(case: str) -> None:
    transforms, streamed, behind = INVERSES[case]
    assert tuple(map(names, split(transforms, "pred", "image", True))) == (streamed, behind)


@pytest.mark.parametrize(
    "compose",
    [
        Compose([ARGMAX], lazy=True),
        Compose([ARGMAX], lazy=None),
        OneOf([ARGMAX]),
        SomeOf([ARGMAX]),
        RandomOrder([ARGMAX]),
        Compose([Compose([ARGMAX], map_items=False)]),
        Compose([OneOf([ARGMAX])]),
    ],
)
def test_a_compose_that_is_not_plain_stays_behind_as_it_is(compose: Compose) -> None:
    streamed, behind = split_postprocessing(compose)
    assert streamed is None
    assert behind is compose


def test_options_of_a_compose_stay_with_what_is_behind() -> None:
    whole = Compose([ARGMAX, SAVE], map_items=2, unpack_items=True, log_stats="logger")
    _, behind = split_postprocessing(whole)
    assert behind is not None
    assert (behind.map_items, behind.unpack_items, behind.log_stats) == (2, True, "logger")
    assert len(whole.transforms) == 2


def test_other_keys_can_be_named() -> None:
    transforms = [AsDiscreted("scores", argmax=True), Invertd("scores", PREPROCESSING, "ct")]
    assert names(split(transforms, "scores", "ct", True)[0]) == ["AsDiscreted scores", "Invertd scores"]
    assert split_postprocessing(transforms, key="scores", image_key="ct")[0] is not None
    assert split_postprocessing(transforms)[0] is None


@pytest.mark.parametrize(
    "transforms",
    [
        [SOFTMAX, BOTH, LabelFilterd("pred", [1, 2]), LabelFilterd("label", [1]), FillHolesd("pred")],
        [CastToTyped(["label", "pred"], dtype=[torch.uint8, torch.float64]), Identityd("label"), ARGMAX],
        [
            ToDeviced(["pred", "label"], "cpu"),
            Activationsd(["label", "pred"], sigmoid=[False, True]),
            MapLabelValued("label", [1], [2]),
        ],
    ],
)
def test_both_parts_in_turn_are_the_whole(transforms: list[Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = MetaTensor(torch.rand(3, 5, 6, 7, generator=generator))
    data = {"pred": scores, "label": MetaTensor(torch.randint(0, 3, (1, 5, 6, 7), generator=generator))}
    streamed, behind = split_postprocessing(transforms)
    chain = chain_of(streamed)
    assert chain is not None
    assert behind is not None
    expected = Compose(transforms)(data)
    result = behind({**data, "pred": MetaTensor(chain(scores))})
    for key, value in expected.items():
        assert torch.equal(result[key].as_tensor(), value.as_tensor())
        assert result[key].dtype == value.dtype


def test_an_activation_behind_an_inverse_stays_behind() -> None:
    preprocessing = Compose([Flipd("image", 0)])
    transforms = [Invertd("pred", preprocessing, "image"), Activationsd("pred", sigmoid=True)]
    streamed, behind = split_postprocessing([*transforms, AsDiscreted("pred", threshold=0.5)])
    assert [type(each) for each in streamed.transforms] == [Invertd]
    assert [type(each) for each in behind.transforms] == [Activationsd, AsDiscreted]
