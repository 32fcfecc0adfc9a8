"""What of a bundle's postprocessing runs in chunks, and what stays behind: both in turn are the whole."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from monai import config
from monai.data import MetaTensor, set_track_meta
from monai.transforms import (
    Activationsd,
    AsDiscrete,
    AsDiscreted,
    CastToTyped,
    Compose,
    ConcatItemsd,
    CopyItemsd,
    DataStatsd,
    DeleteItemsd,
    EnsureChannelFirstd,
    EnsureTyped,
    FillHolesd,
    Flipd,
    GaussianSmoothd,
    Identityd,
    Invertd,
    KeepLargestConnectedComponentd,
    LabelFilterd,
    Lambdad,
    LoadImaged,
    MapLabelValued,
    MeanEnsembled,
    NormalizeIntensityd,
    OneOf,
    Orientationd,
    RandomOrder,
    RemoveSmallObjectsd,
    SaveImaged,
    SelectItemsd,
    ShiftIntensityd,
    SomeOf,
    SqueezeDimd,
    ToDeviced,
    ToNumpyd,
    ToTensord,
)

from monai_chunked import each_voxel, split_postprocessing
from monai_chunked.api.evaluator.split import split
from monai_chunked.transforms.chain import chains_of

PREPROCESSING = Compose([Flipd("image")])
SOFTMAX = Activationsd("pred", softmax=True)
SIGMOID = Activationsd("pred", sigmoid=True)
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
    "no metadata": ([EnsureTyped("pred", track_meta=False)], ["EnsureTyped pred"], ["EnsureTyped pred"]),
    "a device of a type": (
        [EnsureTyped("pred", device="cpu"), ARGMAX],
        ["EnsureTyped pred", "AsDiscreted pred"],
        ["ToDeviced pred"],
    ),
    "an activation on a device": (
        [ToDeviced("pred", "cpu"), SOFTMAX, ARGMAX],
        ["ToDeviced pred", "Activationsd pred", "AsDiscreted pred"],
        ["ToDeviced pred"],
    ),
    "a tensor": ([ToTensord("pred"), ARGMAX], ["EnsureTyped pred", "AsDiscreted pred"], ["ToTensord pred"]),
    "others that come and go": (
        [
            *(LoadImaged("label"), EnsureChannelFirstd("label"), SqueezeDimd("label"), DataStatsd("label")),
            *(CopyItemsd("label", names="copy"), ConcatItemsd(["label", "copy"], "more"), DeleteItemsd("copy")),
            *(SelectItemsd(["pred", "label"]), each_voxel(Identityd("label")), ARGMAX),
        ],
        ["AsDiscreted pred"],
        [
            *("LoadImaged label", "EnsureChannelFirstd label", "SqueezeDimd label", "DataStatsd label"),
            *("CopyItemsd label", "ConcatItemsd label copy", "DeleteItemsd copy", "SelectItemsd pred label"),
            "Identityd label",
        ],
    ),
    "a lambda that writes others": (
        [Lambdad("label", torch.tanh, overwrite="other"), ARGMAX],
        ["AsDiscreted pred"],
        ["Lambdad label"],
    ),
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
        ["ToDeviced pred", "Invertd label", "AsDiscreted label"],
    ),
    "of another image": (
        [Invertd("pred", PREPROCESSING, "t1"), ARGMAX],
        ["Invertd pred", "AsDiscreted pred"],
        [],
    ),
    "of itself": ([Invertd("pred", PREPROCESSING), ARGMAX], [], ["Invertd pred", "AsDiscreted pred"]),
    "to a tensor or not": ([Invertd("pred", PREPROCESSING, "image", to_tensor=False)], ["Invertd pred"], []),
    "and more": (
        [Invertd("pred", PREPROCESSING, "image", device="cpu", post_func=torch.tanh), ARGMAX],
        ["Invertd pred"],
        ["ToDeviced pred", "PostFunc pred", "AsDiscreted pred"],
    ),
    "and more that was vouched for": (
        [Invertd("pred", PREPROCESSING, "image", post_func=each_voxel(torch.tanh)), ARGMAX],
        ["Invertd pred", "EachVoxeld pred", "AsDiscreted pred"],
        [],
    ),
    "of what was recorded": (
        [ToTensord("pred"), EnsureTyped("pred", track_meta=False), ARGMAX, INVERT],
        ["EnsureTyped pred", "EnsureTyped pred", "AsDiscreted pred", "Invertd pred"],
        [],
    ),
    "an activation": (
        [INVERT, EnsureTyped("pred"), SIGMOID, AsDiscreted("pred", threshold=0.5)],
        ["Invertd pred", "EnsureTyped pred", "Activationsd pred", "AsDiscreted pred"],
        [],
    ),
    "an activation on a device": (
        [Invertd("pred", PREPROCESSING, "image", device="cpu"), SOFTMAX, ARGMAX],
        ["Invertd pred", "ToDeviced pred", "Activationsd pred", "AsDiscreted pred"],
        ["ToDeviced pred"],
    ),
    "of an image that keeps what it says": (
        [EnsureTyped(["pred", "image"]), CopyItemsd("image", names="copy"), INVERT],
        ["EnsureTyped pred", "Invertd pred"],
        ["EnsureTyped image", "CopyItemsd image"],
    ),
    "twice": ([INVERT, ARGMAX, INVERT], ["Invertd pred", "AsDiscreted pred"], ["Invertd pred"]),
    "of a changed image": ([SOFTMAX, Flipd("image"), INVERT], ["Activationsd pred"], ["Flipd image", "Invertd pred"]),
    "of a saved image": ([SaveImaged("image"), INVERT], ["Invertd pred"], ["SaveImaged image"]),
    "of another key first": ([Invertd("label", PREPROCESSING, "image"), INVERT], ["Invertd pred"], ["Invertd label"]),
}


@pytest.mark.parametrize("case", INVERSES)
def test_an_inverse_is_streamed_once_and_of_the_image_as_the_network_saw_it(case: str) -> None:
    transforms, streamed, behind = INVERSES[case]
    found = split(transforms, "pred", None)
    assert (names(found.streamed), names(found.behind)) == (streamed, behind)


LAMBDA = Lambdad("pred", torch.tanh)
OTHER = Activationsd("pred", other=torch.tanh)
WHOLE = "looks at whole components, which reach from chunk to chunk"
UNKNOWN = "is none of the transforms that are known to treat each voxel by itself"
ALONE = "is none of the transforms that are known to leave 'pred' alone"
LATER = "calls a function that may look at other voxels; vouch for it with each_voxel"
VOUCH = "is not MONAI's own, so it may look at other voxels; vouch for it with each_voxel"
UNDOES = "Invertd(pred) undoes what was done to 'image'"

REASONS: dict[str, tuple[Any, str | None]] = {
    "nothing": (None, None),
    "all is taken": ([SOFTMAX, INVERT, ARGMAX], None),
    "others are left": ([BOTH, LabelFilterd("label", [1])], None),
    "a device is left": ([ToDeviced("pred", "cpu"), ARGMAX], None),
    "a file": ([ARGMAX, SAVE], "SaveImaged(pred) saves the whole volume as it is by then"),
    "components": ([ARGMAX, KeepLargestConnectedComponentd("pred")], f"KeepLargestConnectedComponentd(pred) {WHOLE}"),
    "holes": ([FillHolesd("pred")], f"FillHolesd(pred) {WHOLE}"),
    "small objects": ([RemoveSmallObjectsd("pred")], f"RemoveSmallObjectsd(pred) {WHOLE}"),
    "a lambda": ([LAMBDA], f"Lambdad(pred) {LATER}"),
    "a lambda of two": ([Lambdad(["label", "pred"], torch.tanh)], f"Lambdad(label, pred) {LATER}"),
    "an activation": (
        [OTHER],
        "Activationsd(pred) has other=, which may look at other voxels; vouch for it with each_voxel",
    ),
    "numpy": ([ToNumpyd("pred")], "ToNumpyd(pred) makes a NumPy array of the prediction"),
    "numpy too": ([EnsureTyped("pred", data_type="numpy")], "EnsureTyped(pred) makes a NumPy array of the prediction"),
    "a copy": ([CopyItemsd("pred", names="copy")], "CopyItemsd(pred) copies the prediction as it is by then"),
    "statistics": ([DataStatsd("pred")], "DataStatsd(pred) prints what is true of the whole volume"),
    "a deletion": ([DeleteItemsd("pred")], "DeleteItemsd(pred) deletes the prediction"),
    "a pattern": (
        [DeleteItemsd("p.*", use_re=True), ARGMAX],
        "DeleteItemsd(p.*) deletes keys by a pattern, or parts of them",
    ),
    "a part": (
        [DeleteItemsd("pred.meta"), ARGMAX],
        "DeleteItemsd(pred.meta) deletes keys by a pattern, or parts of them",
    ),
    "a dimension": ([SqueezeDimd("pred")], "SqueezeDimd(pred) takes a dimension away"),
    "along space": (
        [AsDiscreted("pred", argmax=True, dim=1)],
        "AsDiscreted(pred) does not treat each voxel by itself: use dim=0, the channels",
    ),
    "without channel": (
        [AsDiscreted("pred", argmax=True, keepdim=False)],
        "AsDiscreted(pred) has keepdim=False; use keepdim=True",
    ),
    "of the volume": (
        [NormalizeIntensityd("pred")],
        "NormalizeIntensityd(pred) does not treat each voxel by itself: give subtrahend and divisor, as numbers (with "
        "channel_wise=True one for each channel)",
    ),
    "a factor of the image": (
        [ShiftIntensityd("pred", 1, factor_key="factor")],
        "ShiftIntensityd(pred) has factor_key='factor'; use an offset with the factor in it",
    ),
    "others of MONAI": ([GaussianSmoothd("pred", 1.0)], f"GaussianSmoothd(pred) {UNKNOWN}"),
    "a subclass": ([Squared("pred", torch.square)], f"Squared(pred) {VOUCH}"),
    "an ensemble": ([MeanEnsembled(["a", "b"], "pred")], f"MeanEnsembled(a, b) {ALONE}"),
    "a subclass of others": ([Squared("label", torch.square)], f"Squared(label) {ALONE}"),
    "a key twice": ([Identityd(["pred", "pred"])], "Identityd(pred, pred) has the key 'pred' 2 times"),
    "an array transform": ([AsDiscrete(argmax=True)], "AsDiscrete is no dictionary transform with keys"),
    "a function": ([torch.tanh], "tanh is no dictionary transform with keys"),
    "vouched for two": (
        [each_voxel(Identityd(["pred", "label"]))],
        "Identityd(pred, label) is vouched for other keys than 'pred' alone",
    ),
    "vouched for others": (
        [each_voxel(Squared("label", torch.square))],
        "Squared(label) is vouched for other keys than 'pred' alone",
    ),
    "a lambda that writes": ([Lambdad("label", torch.tanh, overwrite="pred")], "Lambdad(label) writes 'pred'"),
    "a copy that writes": ([CopyItemsd("label", names="pred")], "CopyItemsd(label) writes 'pred'"),
    "a concatenation that writes": ([ConcatItemsd(["a", "b"], "pred")], "ConcatItemsd(a, b) writes 'pred'"),
    "a selection": ([SelectItemsd("label"), ARGMAX], "SelectItemsd(label) drops 'pred'"),
    "a choice": (OneOf([ARGMAX]), "OneOf chooses what it does, or in which order, each time"),
    "an order": (RandomOrder([ARGMAX]), "RandomOrder chooses what it does, or in which order, each time"),
    "a choice within": ([OneOf([ARGMAX])], "OneOf is no dictionary transform with keys"),
    "another compose within": ([Compose([ARGMAX], map_items=False)], "Compose is no dictionary transform with keys"),
    "a lazy compose": (Compose([ARGMAX], lazy=True), "Compose with lazy=True puts operations off"),
    "a second inverse": (
        [INVERT, INVERT],
        "Invertd(pred) is the second one, and what it undoes is on another grid by now",
    ),
    "its own inverse": (
        [Invertd("pred", PREPROCESSING)],
        "Invertd(pred) undoes what was done to 'pred', the prediction itself",
    ),
    "a changed image": ([Flipd("image"), INVERT], f"Flipd(image) {ALONE}"),
    "a turned image": ([Orientationd("image", "RAS"), INVERT], f"{UNDOES}, which Orientationd(image) changes before"),
    "a written image": (
        [Lambdad("t1", torch.tanh, overwrite="image"), INVERT],
        f"{UNDOES}, which Lambdad(t1) changes before",
    ),
    "a deleted image": ([DeleteItemsd("image"), INVERT], f"{UNDOES}, which DeleteItemsd(image) changes before"),
    "a dropped image": ([SelectItemsd("pred"), INVERT], f"{UNDOES}, which SelectItemsd drops before"),
    "no metadata": (
        [EnsureTyped("pred", track_meta=False), INVERT],
        "Invertd(pred) does nothing to a prediction without metadata, which EnsureTyped(pred) drops before",
    ),
    "no metadata either": (
        [ToTensord("pred", track_meta=False), INVERT],
        "Invertd(pred) does nothing to a prediction without metadata, which ToTensord(pred) drops before",
    ),
    "more than an inverse": (
        [Invertd("pred", PREPROCESSING, "image", post_func=torch.tanh)],
        "post_func of Invertd(pred) may look at other voxels; vouch for it with each_voxel",
    ),
    "late": (
        [INVERT, CastToTyped("pred", torch.float32), SIGMOID],
        "Activationsd(pred) has last bits that depend on where CastToTyped(pred), behind Invertd, leaves scores in "
        "memory",
    ),
    "late and vouched for": (
        [INVERT, Activationsd("pred", other=each_voxel(torch.tanh))],
        "Activationsd(pred) has other=, whose last bits may depend on where Invertd leaves scores in memory",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_the_first_transform_that_stays_behind_is_named_with_what_is_the_matter(case: str) -> None:
    transforms, reason = REASONS[case]
    assert split(transforms, "pred", None).reason == reason


def test_what_switches_metadata_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "USE_META_DICT", True)
    told = "Invertd(pred) writes metadata as a dictionary of its own, with monai.config.USE_META_DICT"
    assert split([INVERT], "pred", None).reason == told
    set_track_meta(False)
    try:
        told = "Invertd(pred) needs metadata, which set_track_meta(False) has switched off"
        assert split([INVERT], "pred", None).reason == told
    finally:
        set_track_meta(True)


def test_a_reason_of_who_asks_is_handed_on() -> None:
    found = split([SOFTMAX, INVERT, ARGMAX], "pred", None, "it is raining")
    assert (names(found.streamed), found.reason) == (["Activationsd pred"], "it is raining")
    assert split([SOFTMAX, ARGMAX], "pred", None, "it is raining").reason is None


def test_a_script_is_told_why_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "monai_chunked"):
        split_postprocessing([SOFTMAX, Invertd("pred", PREPROCESSING, "t1")])
        split_postprocessing([SOFTMAX, ARGMAX])
    told = (
        "Invertd(pred) undoes what was done to 't1', but the inferer gets 'image'; give split_postprocessing the batch="
    )
    assert [record.message for record in caplog.records] == [f"left behind the inferer: {told}"]


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
    assert split_postprocessing(transforms, key="scores", image_key="ct")[0] is not None
    assert split_postprocessing(transforms)[0] is None


@pytest.mark.parametrize(
    "transforms",
    [
        [SOFTMAX, BOTH, LabelFilterd("pred", [1, 2]), LabelFilterd("label", [1]), FillHolesd("pred")],
        [CastToTyped(["label", "pred"], dtype=[torch.uint8, torch.float64]), Identityd("label"), ARGMAX],
        [EnsureTyped(["pred", "label"], dtype=[torch.float64, torch.uint8], device="cpu"), ARGMAX],
        [EnsureTyped("pred", dtype=torch.float64, track_meta=False), FillHolesd("label")],
        [EnsureTyped("pred", track_meta=False), CastToTyped("pred", torch.float64), Identityd("label")],
        [EnsureTyped("pred", track_meta=False), ARGMAX, Identityd("label")],
        [ToTensord("pred"), ARGMAX],
        [ToTensord(["pred", "label"], dtype=torch.float64, device="cpu"), SOFTMAX],
        [ToTensord("pred", track_meta=False), SOFTMAX, ARGMAX],
        [EnsureTyped("pred", track_meta=False), ToTensord("pred"), ToTensord("label")],
        [SelectItemsd(["pred", "label"]), ToDeviced("pred", "cpu"), SOFTMAX, ARGMAX],
        [CopyItemsd("label", names="copy"), ARGMAX, DeleteItemsd("label"), CopyItemsd("pred", names="more"), SOFTMAX],
        [
            ToDeviced(["pred", "label"], "cpu"),
            Activationsd(["label", "pred"], sigmoid=[False, True]),
            MapLabelValued("label", [1], [2]),
        ],
    ],
)
def test_both_parts_in_turn_are_the_whole(transforms: list[Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    affine = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))
    scores = MetaTensor(torch.rand(3, 5, 6, 7, generator=generator), affine, {"filename_or_obj": "a.nii"})
    scores.push_applied_operation({"class": "Flip", "id": 1})
    data = {"pred": scores, "label": MetaTensor(torch.randint(0, 3, (1, 5, 6, 7), generator=generator))}
    streamed, behind = split_postprocessing(transforms)
    chain = chains_of(streamed)
    assert behind is not None
    ours = MetaTensor(chain(scores.as_tensor())).copy_meta_from(scores)
    expected = Compose(transforms)({key: value.clone() for key, value in data.items()})
    result = behind({**data, "pred": ours})
    assert set(result) == set(expected)
    for key, value in expected.items():
        assert type(result[key]) is type(value)
        if not isinstance(value, torch.Tensor):
            continue
        assert torch.equal(torch.as_tensor(result[key]), torch.as_tensor(value))
        assert result[key].dtype == value.dtype
        if isinstance(value, MetaTensor):
            assert torch.equal(result[key].affine, value.affine)
            assert result[key].meta.get("filename_or_obj") == value.meta.get("filename_or_obj")
            assert without_id(result[key].applied_operations) == without_id(value.applied_operations)


def without_id(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which object has recorded them is of no matter."""
    return [{name: value for name, value in each.items() if name != "id"} for each in operations]
