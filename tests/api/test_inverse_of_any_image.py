"""``Invertd`` undoes what was done to whichever image of the batch it names, as behind ``SupervisedEvaluator``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CastToTyped,
    Compose,
    ConcatItemsd,
    CopyItemsd,
    EnsureTyped,
    Flipd,
    Invertd,
    Lambdad,
    LoadImaged,
    MapLabelValued,
    Orientationd,
    ResizeWithPadOrCropd,
    SaveImaged,
    Spacingd,
    ToDeviced,
    ToTensord,
)
from monai.utils import set_determinism

from monai_chunked import ChunkedEvaluator, ChunkedSlidingWindowInferer, each_voxel, split_postprocessing
from monai_chunked.api.evaluator.split import images_of, split
from tests.side_by_side import random
from tests.transforms.inverted import LABELS, Network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    set_determinism(None)


KEYS = ["t1", "t2"]
SIZES = {"t1": (19, 22, 13), "t2": (24, 15, 21)}
AFFINES = {
    "t1": torch.tensor([[-1.5, 0, 0, 9], [0, 1.25, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1]], dtype=torch.float64),
    "t2": torch.tensor([[0, 0, 1.5, 2], [1.75, 0, 0, 4], [0, -1.25, 0, 1], [0, 0, 0, 1]], dtype=torch.float64),
}
WINDOWS: dict[str, Any] = {"roi_size": (9, 8, 10), "sw_batch_size": 2, "overlap": 0.25}


def loaded() -> list[dict[str, Any]]:
    """Two patients, each with two images on grids of their own."""
    return [
        {
            key: MetaTensor(
                (random(1, *SIZES[key], seed=seed).sin() + 1) / 2,
                affine=AFFINES[key],
                meta={"filename_or_obj": f"/data/{key}_{seed}.nii.gz"},
            )
            for key in KEYS
        }
        for seed in range(2)
    ]


def preprocessing() -> Compose:
    """To a grid of their own that both have in common, where they become one image."""
    return Compose(
        [
            Orientationd(KEYS, axcodes="RAS", labels=LABELS),
            Spacingd(KEYS, pixdim=(2.0, 2.0, 2.0)),
            ResizeWithPadOrCropd(KEYS, (14, 13, 15)),
            ConcatItemsd(KEYS, "image"),
            EnsureTyped("image"),
        ]
    )


class OfBoth(Network):
    """The network of one image, for two."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return super().forward(windows.mean(1, keepdim=True))


class Run(logging.Handler):
    """What an evaluator left.

    Attributes:
        items: of all images.
        batches: what became of their batches.
        told: what was logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Any] = []
        self.batches: list[Any] = []
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())

    @property
    def streamed(self) -> list[list[str]]:
        """What ran in chunks, as it was said: once for each time that it was another thing."""
        said = [each.removeprefix("in chunks: ") for each in self.told if each.startswith("in chunks: ")]
        return [[name.removesuffix("(pred)") for name in each.split(", ")] for each in said]


class Evaluation:
    """An evaluator, and what it evaluates."""

    def __init__(self, chain: Callable[[Compose], list[Any]], batch_size: int = 1, **options: Any) -> None:
        self.before = options.pop("preprocessing", None) or preprocessing()
        self.chain = Compose(chain(self.before))
        dataset = Dataset(options.pop("data", None) or loaded(), self.before)
        self.loader = DataLoader(dataset, batch_size=batch_size, collate_fn=options.pop("collate", list_data_collate))
        self.options = {"network": OfBoth("scores", 3), **options}

    def engine(self, kind: type) -> Any:
        inferer = SlidingWindowInferer(**WINDOWS)
        own = {"device": "cpu", "val_data_loader": self.loader, "inferer": inferer, "postprocessing": self.chain}
        return kind(**{**own, **self.options})

    def run(self, kind: type) -> Run:
        """All images."""
        done = Run()
        logger = logging.getLogger("monai_chunked")
        logger.addHandler(done)
        level = logger.level
        logger.setLevel(logging.INFO)

        def seen(engine: Any) -> None:
            done.items.extend(engine.state.output)
            done.batches.extend(engine.state.batch if isinstance(engine.state.batch, list) else [])

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                engine = self.engine(kind)
                engine.add_event_handler("ITERATION_COMPLETED", seen)
                engine.run()
        finally:
            logger.setLevel(level)
            logger.removeHandler(done)
        return done

    def compared(self) -> Run:
        """Ours, after a comparison."""
        ours, monais = self.run(ChunkedEvaluator), self.run(SupervisedEvaluator)
        assert_same_items(ours.items, monais.items)
        if ours.batches and isinstance(ours.batches[0], dict):
            assert_same_items(ours.batches, monais.batches)
        return ours


def assert_same_items(items: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(items) == len(expected) > 0
    for item, reference in zip(items, expected):
        assert set(item) == set(reference)
        for key, value in reference.items():
            assert_same(item[key], value)


def assert_same(ours: Any, reference: Any) -> None:
    """Voxels, class, and all that the metadata says."""
    assert type(ours) is type(reference)
    if not isinstance(reference, torch.Tensor):
        return
    assert (ours.dtype, ours.shape) == (reference.dtype, reference.shape)
    assert torch.equal(torch.as_tensor(ours), torch.as_tensor(reference))
    if isinstance(reference, MetaTensor):
        assert set(ours.meta) == set(reference.meta)
        assert ours.meta.get("filename_or_obj") == reference.meta.get("filename_or_obj")
        assert torch.equal(ours.affine, reference.affine)
        names = [[each["class"] for each in one.applied_operations] for one in (ours, reference)]
        assert names[0] == names[1]


def invert(before: Compose, key: str, **options: Any) -> Invertd:
    return Invertd("pred", before, orig_keys=key, nearest_interp=False, **options)


def regions(before: Compose, key: str = "t2", **options: Any) -> list[Any]:
    """As bundles of several images end: scores on the grid of one of them, then regions."""
    return [
        invert(before, key, **options),
        Activationsd("pred", sigmoid=True),
        AsDiscreted("pred", threshold=0.5),
    ]


# ---------------------------------------------------------------- several images as one

ENDINGS: dict[str, tuple[Callable[[Compose], list[Any]], list[str]]] = {
    "the first image": (lambda p: regions(p, "t1"), ["Invertd", "Activationsd", "AsDiscreted"]),
    "another image": (regions, ["Invertd", "Activationsd", "AsDiscreted"]),
    "a device": (
        lambda p: regions(p, device="cpu"),
        ["Invertd", "ToDeviced", "Activationsd", "AsDiscreted"],
    ),
    "a device of a type": (
        lambda p: [EnsureTyped("pred", device="cpu"), *regions(p)],
        ["EnsureTyped", "Invertd", "ToDeviced", "Activationsd", "AsDiscreted"],
    ),
    "a tensor first": (
        lambda p: [ToTensord("pred"), *regions(p), ToTensord("pred", dtype=torch.uint8)],
        ["EnsureTyped", "Invertd", "Activationsd", "AsDiscreted", "EnsureTyped"],
    ),
    "metadata dropped behind": (
        lambda p: [*regions(p), EnsureTyped("pred", track_meta=False), CastToTyped("pred", dtype=torch.uint8)],
        ["Invertd", "Activationsd", "AsDiscreted", "EnsureTyped", "CastToTyped"],
    ),
    "a function of its own": (
        lambda p: [invert(p, "t2", post_func=lambda scores: scores - scores.mean()), AsDiscreted("pred", argmax=True)],
        ["Invertd"],
    ),
    "a function that was vouched for": (
        lambda p: [invert(p, "t2", post_func=each_voxel(torch.neg)), AsDiscreted("pred", argmax=True)],
        ["Invertd", "PostFunc", "AsDiscreted"],
    ),
    "softmax and argmax": (
        lambda p: [invert(p, "t2"), Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)],
        ["Invertd", "Activationsd", "AsDiscreted"],
    ),
    "scores": (
        lambda p: [Activationsd("pred", softmax=True), invert(p, "t2", to_tensor=False)],
        ["Activationsd", "Invertd"],
    ),
    "a copy of the image": (
        lambda p: [CopyItemsd("t1", names="copy"), ToDeviced("t2", "cpu"), *regions(p)],
        ["Invertd", "Activationsd", "AsDiscreted"],
    ),
    "an image that is changed first": (
        lambda p: [AsDiscreted("pred", argmax=True), Orientationd("t2", "LPS", labels=LABELS), invert(p, "t1")],
        ["AsDiscreted", "Invertd"],
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_scores_of_several_images_are_brought_to_the_grid_of_one(name: str) -> None:
    chain, names = ENDINGS[name]
    assert Evaluation(chain, batch_size=2).compared().streamed[-1] == names


@st.composite
def endings(draw: st.DrawFn) -> list[Any]:
    """Whatever bundles put around the inverse, in any order; of an inverse only its options."""
    light = st.lists(
        st.sampled_from(
            [
                *(
                    {"kind": EnsureTyped},
                    {"kind": EnsureTyped, "device": "cpu"},
                    {"kind": EnsureTyped, "track_meta": False},
                ),
                *(
                    {"kind": ToTensord},
                    {"kind": ToTensord, "dtype": torch.float64},
                    {"kind": ToDeviced, "device": "cpu"},
                ),
                *({"kind": Activationsd, "softmax": True}, {"kind": Activationsd, "sigmoid": True}),
                *({"kind": AsDiscreted, "argmax": True}, {"kind": AsDiscreted, "threshold": 0.4}),
                *({"kind": CastToTyped, "dtype": torch.float32}, {"kind": EnsureTyped, "dtype": torch.float32}),
            ]
        ),
        max_size=3,
    )
    inverse = {"orig_keys": draw(st.sampled_from(["t1", "t2", "image"])), "nearest_interp": draw(st.booleans())}
    inverse |= {"device": draw(st.sampled_from([None, "cpu"])), "to_tensor": draw(st.booleans())}
    return [*draw(light), {"kind": Invertd, **inverse}, *draw(light)]


ANY: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
LIKELY = {"ending": endings(), "images": st.sampled_from(["meta", "meta", "plain"])}


@settings(max_examples=12, derandomize=True, **ANY)
@given(**LIKELY)
def test_any_ending_gives_what_monais_gives(ending: list[dict[str, Any]], images: str) -> None:
    note(str(ending))

    def chain(before: Compose) -> list[Any]:
        made = []
        for each in map(dict, ending):
            kind = each.pop("kind")
            made.append(kind("pred", before, **each) if kind is Invertd else kind("pred", **each))
        return made

    def prepared(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
        return (batch["image"].as_tensor() if images == "plain" else batch["image"]), None

    evaluation = Evaluation(chain, prepare_batch=prepared)
    try:
        expected = evaluation.run(SupervisedEvaluator).items
    except RuntimeError as error:  # what MONAI cannot do, it does not do in chunks either
        with pytest.raises(RuntimeError, match=str(error)[:20]):
            evaluation.run(ChunkedEvaluator)
        return
    assert_same_items(evaluation.run(ChunkedEvaluator).items, expected)


@pytest.mark.long
@settings(max_examples=300, **ANY)
@given(**LIKELY)
def test_many_endings(ending: list[dict[str, Any]], images: str) -> None:
    test_any_ending_gives_what_monais_gives.hypothesis.inner_test(ending, images)


# ---------------------------------------------------------------- what the network sees is prepared by others


def one_image(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
    return batch["t2"].to(device), None


def without_metadata(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
    return torch.cat([batch[key].as_tensor() for key in KEYS], 1).to(device), None


def in_place(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
    """It changes the batch too, of which the inverse hears."""
    batch["t1"], batch["t2"] = batch["t2"], batch["t1"]
    return batch["t1"].to(device), None


def with_label(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
    return batch["t1"].to(device), batch["t2"].to(device)


PREPARED: dict[str, tuple[Callable[..., Any], Callable[[Compose], list[Any]], bool]] = {
    "another image": (one_image, lambda p: regions(p, "t1"), True),
    "the image of the output": (one_image, lambda p: [*regions(p, "t2")], True),
    "no metadata, but labels have": (
        without_metadata,
        lambda p: [Activationsd("pred", softmax=True), invert(p, "t1"), AsDiscreted("pred", argmax=True)],
        True,
    ),
    "no metadata at all": (
        without_metadata,
        lambda p: [MapLabelValued("pred", [0.0], [0.5]), invert(p, "t1"), AsDiscreted("pred", argmax=True)],
        False,
    ),
    "a batch that is changed": (in_place, lambda p: regions(p, "t1"), True),
    "the label": (
        with_label,
        lambda p: [AsDiscreted("pred", argmax=True), Invertd("pred", renamed(p, "t2", "label"), orig_keys="label")],
        True,
    ),
}


def renamed(before: Compose, key: str, name: str) -> Compose:
    """The same preprocessing, of an image that has another name by now."""
    return Compose([Renamed(each, key, name) for each in before.transforms[:3]])


class Renamed(Flipd):
    """Undoes what a transform did to a key, under another one."""

    def __init__(self, transform: Any, key: str, name: str) -> None:
        super().__init__(name)
        self.transform, self.key, self.name = transform, key, name
        transform.allow_missing_keys = True

    def inverse(self, data: Any) -> Any:
        undone = self.transform.inverse({self.key: data[self.name]})
        return {**data, self.name: undone[self.key]}


@pytest.mark.parametrize("name", PREPARED)
def test_whatever_the_network_sees_the_inverse_is_that_of_the_batch(name: str) -> None:
    prepare_batch, chain, inverted = PREPARED[name]
    network = OfBoth("scores", 3)
    done = Evaluation(chain, batch_size=2, prepare_batch=prepare_batch, network=network).compared()
    assert ("Invertd" in done.streamed[-1]) == inverted


def pairs(items: list[dict[str, Any]]) -> list[Any]:
    """A batch that is no dictionary: an image and no label worth the name."""
    batch = list_data_collate(items)
    return [batch["image"], batch["image"][:, :1]]


def test_a_batch_that_is_a_list_is_inverted_by_what_the_network_saw() -> None:
    before = Compose([CopyItemsd("t1", names="image"), Flipd("image", 0), Spacingd("image", pixdim=(2.0, 2.0, 2.0))])
    chain: Callable[[Compose], list[Any]] = lambda p: regions(p, "image")  # noqa: E731
    assert "Invertd" in Evaluation(chain, preprocessing=before, collate=pairs).compared().streamed[-1]


# ---------------------------------------------------------------- what cannot be undone is named, at the batch


def plain_t2(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
    batch["t2"] = batch["t2"].as_tensor()
    return batch["t1"].to(device), None


def with_key(key: str) -> Callable[..., Any]:
    def prepared(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
        batch[key] = [[] for _ in range(len(batch["t1"]))]
        return batch["t1"].to(device), None

    return prepared


ARGMAX = AsDiscreted("pred", argmax=True)
UNDOES = "undoes what was done to"

LEFT: dict[str, tuple[Callable[..., Any], str, str]] = {
    "a key that is missing": (one_image, "t3", f"{UNDOES} 't3', which is not in the batch"),
    "no metadata": (plain_t2, "t2", f"{UNDOES} 't2', which is Tensor in the batch and does not say it"),
    "a trace": (with_key("t2_transforms"), "t2", "reads and writes 't2_transforms', which is in the batch"),
    "a meta dictionary": (with_key("t2_meta_dict"), "t2", "reads and writes 't2_meta_dict', which is in the batch"),
}


@pytest.mark.parametrize("name", LEFT)
def test_an_inverse_of_something_else_stays_behind_and_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    prepare_batch, key, reason = LEFT[name]
    evaluation = Evaluation(lambda p: [ARGMAX, invert(p, key)], prepare_batch=prepare_batch)
    with caplog.at_level("INFO", "monai_chunked"):
        try:
            evaluation.run(SupervisedEvaluator)
        except RuntimeError as error:  # of what MONAI cannot do either
            with pytest.raises(RuntimeError, match=str(error)[:20]):
                evaluation.run(ChunkedEvaluator)
        else:
            assert evaluation.compared().streamed[-1] == ["AsDiscreted"]
    assert f"because Invertd(pred) {reason}" in [record.message for record in caplog.records]


def test_images_of_another_number_or_with_operations_that_were_put_off_are_named() -> None:
    before = preprocessing()
    batch = list_data_collate([before(item) for item in loaded()])
    streamed = split([invert(before, "t1")], "pred", None).streamed
    assert streamed is not None
    told = "Invertd(pred) undoes what was done to 't1', "
    found = images_of(streamed, batch, batch["image"][:1])
    assert found == told + "of which there are 2 in the batch, but the network sees 1"
    lazy = Flipd("t1", 0, lazy=True)({"t1": loaded()[0]["t1"]})["t1"]
    found = images_of(streamed, {"t1": lazy[None]}, lazy[None])
    assert found == told + "which has pending operations (of transforms with lazy=True)"
    assert images_of(split([ARGMAX], "pred", None).streamed, {}, None) is None  # type: ignore[arg-type]


def test_each_batch_is_looked_at() -> None:
    """One whose inverse is taken, between others that MONAI does not invert, because they lack the image."""
    data = [*loaded(), loaded()[0]]

    def alternating() -> Evaluation:
        return Evaluation(lambda p: [ARGMAX, invert(p, "t2")], data=data, prepare_batch=Missing())

    done = alternating().run(ChunkedEvaluator)
    assert_same_items(done.items, alternating().run(SupervisedEvaluator).items)
    assert {"Invertd" in each for each in done.streamed} == {True, False}


class Missing:
    """Every other batch has lost an image."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls % 2:
            del batch["t2"]
        return batch["t1"].to(device), None


# ---------------------------------------------------------------- a script


@pytest.mark.parametrize("name", ENDINGS)
def test_a_script_splits_for_each_batch(name: str) -> None:
    before = preprocessing()
    chain = Compose(ENDINGS[name][0](before))
    network = OfBoth("scores", 3)
    for batch in DataLoader(Dataset(loaded(), before), batch_size=1, collate_fn=list_data_collate):
        with torch.no_grad():
            scores = SlidingWindowInferer(**WINDOWS)(batch["image"], network)
            taken, behind = split_postprocessing(chain, batch=batch)
            assert any(isinstance(each, Invertd) for each in taken.transforms)
            ours = ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=taken)(batch["image"], network)
        items = [item if behind is None else behind(item) for item in decollate_batch({**batch, "pred": ours})]
        assert_same_items(items, [chain(item) for item in decollate_batch({**batch, "pred": scores})])


def test_a_script_without_the_batch_inverts_what_the_inferer_gets() -> None:
    before = preprocessing()
    chain = regions(before, "t1")
    assert split_postprocessing(chain)[0] is None
    taken, _ = split_postprocessing(chain, image_key="t1")
    assert [type(each) for each in taken.transforms] == [Invertd, Activationsd, AsDiscreted]


def test_a_split_for_another_batch_is_refused_before_the_first_window() -> None:
    before = preprocessing()
    batch = list_data_collate([before(item) for item in loaded()])
    taken, _ = split_postprocessing(regions(before), batch=batch)
    network = OfBoth("scores", 3)
    with pytest.raises(ValueError, match=r"split for a batch of 2 image\(s\), but the input has 1; call split_post"):
        ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=taken)(batch["image"][:1], network)
    assert network.predicted == 0


# ---------------------------------------------------------------- files


def test_files_are_monais(tmp_path: Path) -> None:
    data: list[dict[str, str]] = []
    for number, item in enumerate(loaded()):
        paths = {key: str(tmp_path / f"{key}_{number}.nii.gz") for key in KEYS}
        for key, path in paths.items():
            nibabel.save(nibabel.Nifti1Image(item[key][0].numpy(), AFFINES[key].numpy()), path)
        data.append(paths)
    for kind in (ChunkedEvaluator, SupervisedEvaluator):
        load = LoadImaged(KEYS, ensure_channel_first=True)
        save = SaveImaged("pred", output_dir=tmp_path / kind.__name__, separate_folder=False, print_log=False)
        merge = Lambdad("pred", lambda masks: masks.amax(0, keepdim=True))
        before = Compose([load, *preprocessing().transforms])
        evaluation = Evaluation(lambda p, s=save, m=merge: [*regions(p), m, s], preprocessing=before, data=data)
        evaluation.run(kind)
    ours, monai = (sorted((tmp_path / kind.__name__).iterdir()) for kind in (ChunkedEvaluator, SupervisedEvaluator))
    assert [path.name for path in ours] == [path.name for path in monai] == ["t2_0_trans.nii.gz", "t2_1_trans.nii.gz"]
    for path, reference in zip(ours, monai):
        one, other = nibabel.load(path), nibabel.load(reference)
        assert np.array_equal(np.asanyarray(one.dataobj), np.asanyarray(other.dataobj))
        assert one.header == other.header
        assert len(np.unique(np.asanyarray(one.dataobj))) == 2
