"""Dictionary transforms of the prediction, a chunk at a time, give what MONAI's Compose gives of the whole volume."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscrete,
    AsDiscreted,
    CastToTyped,
    Compose,
    EnsureTyped,
    FillHoles,
    FillHolesd,
    Flipd,
    Identityd,
    Invertd,
    LabelFilterd,
    LabelToMaskd,
    Lambdad,
    MapLabelValued,
    MapTransform,
    NormalizeIntensityd,
    OneOf,
    RandGaussianNoised,
    RepeatChanneld,
    ScaleIntensityRanged,
    ShiftIntensityd,
    ThresholdIntensityd,
    ToDeviced,
    ToNumpyd,
    ToTensord,
)

from monai_chunked import ChunkedSlidingWindowInferer, NumpyOutput, each_voxel
from monai_chunked.transforms.chain import chains_of, of_each
from tests.refusals import never

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS: dict[str, Any] = {"roi_size": (4, 5, 6), "overlap": 0.25}

SCORES: dict[str, Callable[[], MapTransform]] = {
    "sigmoid": lambda: Activationsd("pred", sigmoid=True),
    "softmax": lambda: Activationsd("pred", softmax=True),
    "tanh": lambda: Activationsd("pred", other=torch.tanh),
    "cast": lambda: CastToTyped("pred", dtype=torch.float64),
    "ensure": lambda: EnsureTyped("pred", dtype=torch.float32),
    "identity": lambda: Identityd("pred"),
    "normalize": lambda: NormalizeIntensityd("pred", subtrahend=0.2, divisor=3.0),
    "range": lambda: ScaleIntensityRanged("pred", -1, 1, 0, 2, clip=True),
    "shift": lambda: ShiftIntensityd("pred", 0.5),
    "threshold": lambda: ThresholdIntensityd("pred", 0.1, cval=-1.0),
    "device": lambda: ToDeviced("pred", "cpu"),
    "numpy": lambda: ToNumpyd("pred"),
    "tensor": lambda: ToTensord("pred"),
    "repeat": lambda: RepeatChanneld("pred", 2),
    "lambda": lambda: Lambdad("pred", _swapped),
    "own": lambda: Own("pred"),
    "vouched": lambda: each_voxel(Lambdad("pred", _swapped)),
}
LABELS: dict[str, Callable[[], MapTransform]] = {
    "argmax": lambda: AsDiscreted("pred", argmax=True),
    "one hot": lambda: AsDiscreted("pred", argmax=True, to_onehot=8),
    "mask": lambda: AsDiscreted("pred", threshold=0.3),
    "rounding": lambda: AsDiscreted("pred", rounding="torchrounding"),
}
AFTERWARDS: dict[str, Callable[[], MapTransform]] = {
    "map": lambda: MapLabelValued("pred", [0, 1, 2], [3, 1, 7]),
    "filter": lambda: LabelFilterd("pred", [1, 3]),
    "to mask": lambda: LabelToMaskd("pred", [1, 2]),
    "integers": lambda: CastToTyped("pred", dtype=torch.uint8),
}


def _swapped(scores: torch.Tensor) -> torch.Tensor:
    return scores.flip(0) * 2


class Own(MapTransform):
    """A transform of the user's, which is taken at its word."""

    def __call__(self, data: Any) -> dict[Any, Any]:
        return {**data, **{key: data[key] + 1 for key in self.keys}}


def network(windows: torch.Tensor) -> torch.Tensor:
    x = windows.as_subclass(torch.Tensor).sum(1, keepdim=True)
    return torch.cat([x.sin(), (3 * x).cos(), x, x**2 - 0.2], 1)


def image(seed: int, size: tuple[int, ...] = (9, 10, 11), images: int = 1) -> MetaTensor:
    return MetaTensor(torch.rand(images, 2, *size, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_chain_in_chunks_is_monais_compose_over_the_whole_volume(data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(SCORES)), max_size=3, unique=True))
    chain = [SCORES[name]() for name in names]
    if (label := data.draw(st.sampled_from([None, *LABELS]))) is not None:
        chain.append(LABELS[label]())
        after = data.draw(st.lists(st.sampled_from(sorted(AFTERWARDS)), max_size=2))
        chain += [AFTERWARDS[name]() for name in after]
    if not chain:
        return
    cut = data.draw(st.integers(0, len(chain)))
    given = data.draw(st.sampled_from([chain, Compose(chain), Compose([*chain[:cut], Compose(chain[cut:])])]))
    size = tuple(data.draw(st.lists(st.integers(5, 11), min_size=3, max_size=3)))
    volume = image(data.draw(st.integers(0, 99)), size)
    chunk_size = data.draw(st.sampled_from([None, 3, (2, 7, 5)]))
    scores = SlidingWindowInferer(**WINDOWS)(volume, network)
    reference = torch.as_tensor(Compose(chain)({"pred": scores[0]})["pred"]).as_subclass(torch.Tensor)
    ours = ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=given, chunk_size=chunk_size)(volume, network)
    result = ours[0].as_subclass(torch.Tensor)
    assert result.dtype == reference.dtype
    if {"sigmoid", "softmax", "tanh"} & set(names):  # of a chunk they have other last bits, as documented
        assert torch.allclose(result, reference, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(result, reference)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_chain_gets_scores_in_the_dtype_in_which_monai_returns_them(dtype: torch.dtype) -> None:
    chain = Compose([ThresholdIntensityd("pred", 0.3), EnsureTyped("pred")])
    for volume in (image(0).to(dtype), image(0).as_tensor().to(dtype)):
        reference = chain({"pred": SlidingWindowInferer(**WINDOWS)(volume, network)[0]})["pred"]
        ours = ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=chain)(volume, network)[0]
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(reference))
        assert ours.dtype == reference.dtype


def test_a_chain_of_a_batch_keeps_what_monai_says_of_each_image() -> None:
    chain = Compose([Activationsd("pred", other=torch.tanh), AsDiscreted("pred", argmax=True, dtype=torch.int32)])
    for ours, scores in zip(
        decollate_batch(ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=chain)(image(1, images=3), network)),
        decollate_batch(SlidingWindowInferer(**WINDOWS)(image(1, images=3), network)),
    ):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(chain({"pred": scores})["pred"]))


def test_labels_of_a_chain_are_guarded_as_labels_of_array_transforms_are() -> None:
    """Whoever forgets to remove the transforms behind the inferer is told."""
    chain = Compose([Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)])
    labels = ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=chain)(image(0), network)
    with pytest.raises(ValueError, match="softmax over dimension 0 of labels"):
        chain.transforms[0]({"pred": labels[0]})


def test_a_chain_can_be_sent_to_another_process() -> None:
    chain = chains_of(Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)]))
    scores = network(image(0))[0]
    assert torch.equal(pickle.loads(pickle.dumps(chain))(scores), chain(scores))


def test_a_run_on_disk_with_another_chain_is_another_run(tmp_path: Any) -> None:
    def run(threshold: float) -> Any:
        chain = Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=threshold)])
        inferer = ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=chain, output=NumpyOutput(tmp_path))
        return inferer(image(0), torch.nn.Conv3d(2, 2, 1, bias=False).requires_grad_(False).apply(_ones))

    first = run(0.5)
    with pytest.warns(UserWarning, match="without running the network"):
        assert torch.equal(run(0.5), first)  # one chain made twice is one chain
    with pytest.raises(FileExistsError, match="postprocessing"):
        run(0.6)


def _ones(module: torch.nn.Module) -> None:
    torch.nn.init.ones_(module.weight)  # type: ignore[arg-type]


def test_a_plan_knows_the_size_of_what_monais_transforms_make() -> None:
    voxels = 9 * 10 * 11
    for chain, size in (
        (AsDiscreted("pred", argmax=True), 4 * voxels),
        ([AsDiscreted("pred", argmax=True, dtype=torch.uint8)], voxels),
        ([Activationsd("pred", softmax=True), CastToTyped("pred", dtype=torch.float16)], 2 * 5 * voxels),
        ([AsDiscreted("pred", argmax=True, to_onehot=7)], 4 * 7 * voxels),
        (Lambdad("pred", never), None),
    ):
        inferer = ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=chain)
        assert inferer.plan((1, 2, 9, 10, 11), 5).output_bytes == size


# ---------------------------------------------------------------- what is no chain, and what is refused

PREPROCESSING = Compose([Flipd("image")])


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (
            AsDiscreted(["pred", "label"], argmax=True),
            r"AsDiscreted with keys=\['pred', 'label'\], but the inferer has",
        ),
        ([AsDiscreted("pred"), AsDiscreted("label")], "transforms of the keys 'pred', 'label'.*leave those of the oth"),
        (Compose([Identityd("pred"), FillHolesd("pred")]), "FillHolesd, which does not treat each voxel"),
        (Flipd("pred"), "Flipd, which does not treat each voxel"),
        (RandGaussianNoised("pred"), "RandGaussianNoised, which does not treat each voxel"),
        (OneOf([Identityd("pred")]), "OneOf, which does not treat each voxel"),
        (Activationsd("pred", softmax=True, dim=1), "use dim=0, the channels"),
        (Activationsd("pred", other=FillHoles()), "FillHoles, which does not treat each voxel"),
        (AsDiscreted("pred", argmax=True, dim=1), "use dim=0, the channels"),
        (AsDiscreted("pred", argmax=True, keepdim=False), "AsDiscreted with keepdim=False; use keepdim=True"),
        (Lambdad("pred", FillHoles()), "FillHoles, which does not treat each voxel"),
        (Lambdad("pred", torch.tanh, overwrite="other"), "Lambdad with overwrite='other'; use overwrite=True"),
        (NormalizeIntensityd("pred"), "give subtrahend and divisor"),
        (ShiftIntensityd("pred", 1, factor_key="a"), "ShiftIntensityd with factor_key='a'; use an offset with the"),
        ([Invertd("pred", PREPROCESSING, "image")] * 2, "Invertd 2 times"),
        (Invertd("pred", PREPROCESSING, "image", to_tensor=False), "Invertd with to_tensor=False; give to_tensor=True"),
        (Invertd("pred", PREPROCESSING, "image", post_func=torch.tanh), "Invertd with post_func=.*give post_func=None"),
        (Invertd("pred", PREPROCESSING, "image", device="cpu"), "Invertd with device='cpu'; give device=None"),
    ],
)
def test_what_cannot_be_done_in_chunks_is_refused_before_the_network_runs(chain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"postprocessing contains.*{message}"):
        ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=chain)(image(0), never)


def test_array_and_dictionary_transforms_are_not_mixed() -> None:
    mixed = Compose([AsDiscreted("pred"), AsDiscrete(argmax=True)])
    with pytest.raises(TypeError, match=r"dictionary transform AsDiscreted.*use the array transform, AsDiscrete$"):
        ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=mixed)(image(0), never)


@pytest.mark.parametrize("other", ["argmax", None, torch.tanh, AsDiscrete(argmax=True), ["argmax", None], {"a": None}])
def test_of_what_else_postprocessing_may_be_a_fingerprint_says_what_was_given(other: Any) -> None:
    assert of_each(lambda chain: chain.given, chains_of(other)) == other


# ---------------------------------------------------------------- a user's word


def test_a_word_is_believed_of_what_monai_would_be_refused_for() -> None:
    volume = image(0)
    scores = SlidingWindowInferer(**WINDOWS)(volume, network)
    alone = Compose([each_voxel(NormalizeIntensityd("pred"))])
    array = each_voxel(FillHoles())
    for postprocessing in (alone, array, Compose([array, torch.tanh])):
        ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=postprocessing)(volume, network)
    with_keys = each_voxel(lambda data: {**data, "pred": data["pred"] * 2}, keys="pred")
    doubled = ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=[with_keys])(volume, network)
    assert torch.equal(doubled.as_tensor(), scores.as_tensor() * 2)


def test_a_word_is_given_for_an_object() -> None:
    with pytest.raises(TypeError, match=r"transform=AsDiscreted must be an object that can be called, such as"):
        each_voxel(AsDiscreted)
    with pytest.raises(TypeError, match=r"keys='pred' are those of Identityd, \('pred',\); leave keys out"):
        each_voxel(Identityd("pred"), keys="pred")
