"""``ChunkedEvaluator`` gives handlers, metrics and files what ``SupervisedEvaluator`` gives them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.handlers import MeanDice, from_engine
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.networks.nets import UNet
from monai.transforms import (
    Activationsd,
    AsDiscrete,
    AsDiscreted,
    Compose,
    EnsureTyped,
    FillHolesd,
    Flipd,
    Invertd,
    LabelFilterd,
    Lambdad,
    SaveImaged,
    ToDeviced,
)
from monai.utils import set_determinism

from monai_chunked import (
    ChunkedEvaluator,
    ChunkedSliceInferer,
    ChunkedSlidingWindowInferer,
    ChunkedSlidingWindowInfererAdapt,
    each_voxel,
)
from monai_chunked.api.evaluator.replacing import chunked_inferer

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS: dict[str, Any] = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.25}
BOTH = AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    set_determinism(None)


def unet(dims: int = 3) -> torch.nn.Module:
    torch.manual_seed(1)
    return UNet(dims, 1, 3, channels=[4, 8], strides=[2], num_res_units=1)


def images(number: int = 3, size: tuple[int, ...] = (11, 10, 9)) -> list[dict[str, MetaTensor]]:
    generator = torch.Generator().manual_seed(0)
    affine = torch.diag(torch.tensor([-1.5, 2, 3, 1], dtype=torch.float64))
    return [
        {
            "image": MetaTensor(torch.rand(1, *size, generator=generator), affine, {"filename_or_obj": f"{k}.nii"}),
            "label": MetaTensor(torch.randint(0, 3, (1, *size), generator=generator), affine),
        }
        for k in range(number)
    ]


def evaluator(kind: type, postprocessing: Any, **options: Any) -> Any:
    loader = DataLoader(Dataset(options.pop("data", None) or images()), batch_size=options.pop("batch_size", 2))
    given = {"inferer": SlidingWindowInferer(**WINDOWS), "network": unet(), **options}
    return kind(device="cpu", val_data_loader=loader, postprocessing=postprocessing, **given)


def run(engine: Any) -> list[dict[str, Any]]:
    """The items of all images."""
    seen: list[dict[str, Any]] = []
    engine.add_event_handler("ITERATION_COMPLETED", lambda engine: seen.extend(engine.state.output))
    engine.run()
    return seen


def assert_same(ours: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    for item, expected in zip(ours, reference, strict=True):
        assert list(item) == list(expected)
        for key, value in expected.items():
            assert type(item[key]) is type(value)
            if isinstance(value, torch.Tensor):
                assert item[key].dtype == value.dtype
                assert item[key].device == value.device
                assert torch.equal(torch.as_tensor(item[key]), torch.as_tensor(value))
            if isinstance(value, MetaTensor):
                assert item[key].meta.get("filename_or_obj") == value.meta.get("filename_or_obj")
                assert torch.equal(item[key].affine, value.affine)
                assert item[key].applied_operations == value.applied_operations
                assert set(item[key].meta) == set(value.meta)


def both(postprocessing: Any, **options: Any) -> Any:
    """Run both evaluators; the one that works in chunks, after a comparison."""
    engine = evaluator(ChunkedEvaluator, postprocessing, **options)
    assert_same(run(engine), run(evaluator(SupervisedEvaluator, postprocessing, **options)))
    return engine


def text(transforms: Compose | None) -> list[str]:
    return [] if transforms is None else [type(each).__name__ for each in transforms.transforms]


CASES: dict[str, tuple[Callable[[], Any], list[str], list[str]]] = {
    "labels": (lambda: AsDiscreted("pred", argmax=True), ["AsDiscreted"], []),
    "one hot": (lambda: Compose([BOTH]), ["AsDiscreted"], ["AsDiscreted"]),
    "mask": (
        lambda: Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5), FillHolesd("pred")]),
        ["Activationsd", "AsDiscreted"],
        ["FillHolesd"],
    ),
    "labels twice": (
        lambda: Compose([AsDiscreted("pred", argmax=True), LabelFilterd("pred", [1]), Lambdad("pred", torch.neg)]),
        ["AsDiscreted", "LabelFilterd"],
        ["Lambdad"],
    ),
    "integers": (lambda: Compose([AsDiscreted("pred", argmax=True, dtype=torch.uint8)]), ["AsDiscreted"], []),
    "a device": (
        lambda: Compose([ToDeviced("pred", "cpu"), AsDiscreted("pred", argmax=True), EnsureTyped(["pred", "label"])]),
        ["AsDiscreted", "EnsureTyped"],
        ["ToDeviced", "EnsureTyped"],
    ),
    "argmax of labels": (
        lambda: Compose([BOTH, AsDiscreted("pred", argmax=True), FillHolesd("pred"), AsDiscreted("pred", argmax=True)]),
        ["AsDiscreted"] * 2,
        ["AsDiscreted", "FillHolesd", "AsDiscreted"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_output_of_each_iteration_is_monais(case: str) -> None:
    make, streamed, behind = CASES[case]
    engine = both(make())
    assert (text(engine.streamed), text(engine.behind)) == (streamed, behind)


@pytest.mark.parametrize("options", [{"amp": True}, {"mode": "train"}, {"non_blocking": True}, {"batch_size": 1}])
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_options_of_monais_evaluator_go_on_working(options: dict[str, Any]) -> None:
    assert both(Compose([AsDiscreted("pred", argmax=True)]), **options).streamed is not None


@pytest.mark.parametrize(
    "inferer",
    [
        SlidingWindowInferer(
            (8,) * 3, overlap=0.5, mode="gaussian", sigma_scale=0.2, cache_roi_weight_map=True, device="cpu"
        ),
        SlidingWindowInferer((8, 16, 20), 3, padding_mode="reflect", sw_device="cpu", cpu_thresh=10),
        SlidingWindowInfererAdapt(8, buffer_steps=2),
        ChunkedSlidingWindowInferer(**WINDOWS, chunk_size=5),
    ],
)
def test_sliding_windows_of_monai_are_replaced_with_all_their_parameters(inferer: Any) -> None:
    before = dict(vars(inferer))
    engine = both(Compose([AsDiscreted("pred", argmax=True)]), inferer=inferer)
    assert engine.streamed is not None
    assert engine.inferer is inferer
    assert vars(inferer) == before
    replacing = chunked_inferer(inferer)
    adapts = isinstance(inferer, SlidingWindowInfererAdapt)
    assert type(replacing) is (ChunkedSlidingWindowInfererAdapt if adapts else ChunkedSlidingWindowInferer)
    assert replacing is not inferer
    for name, value in before.items():
        if name not in ("postprocessing", "buffer_steps"):
            assert getattr(replacing, name) is value
    assert replacing.buffer_steps is None  # what adapts itself buffers when memory runs out, not before


def test_slices_are_replaced_too() -> None:
    inferer = SliceInferer(spatial_dim=2, roi_size=(8, 8))
    engine = both(Compose([AsDiscreted("pred", argmax=True)]), inferer=inferer, network=unet(2))
    assert engine.streamed is not None
    assert type(chunked_inferer(inferer)) is ChunkedSliceInferer


def test_saved_files_and_metrics_are_monais(tmp_path: Path) -> None:
    values = []
    for kind, name in ((ChunkedEvaluator, "ours"), (SupervisedEvaluator, "monai")):
        save = SaveImaged("pred", output_dir=tmp_path / name, separate_folder=False, print_log=False)
        metric = MeanDice(include_background=True, output_transform=from_engine(["pred", "label"]))
        engine = evaluator(kind, Compose([BOTH, save]), key_val_metric={"dice": metric})
        engine.run()
        values.append((engine.state.metrics["dice"], engine.state.best_metric))
    assert values[0] == values[1]
    files = sorted((tmp_path / "monai").iterdir())
    assert len(files) == 3
    for path in files:
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()


def test_images_without_metadata_are_evaluated_too() -> None:
    plain = [{key: value.as_tensor() for key, value in image.items()} for image in images()]
    both(Compose([Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)]), data=plain)


# ---------------------------------------------------------------- what is left as it is


class Own(SlidingWindowInferer):
    """May do with scores what it likes."""


class OwnInChunks(ChunkedSlidingWindowInferer):
    """The same."""


def update(engine: Any, batch: Any) -> Any:
    scores = engine.inferer(batch["image"], engine.network)
    engine.state.output = {"image": batch["image"], "label": batch["label"], "pred": -scores}
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    return engine.state.output


def softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(0)


ARGMAX = AsDiscreted("pred", argmax=True)


AS_THEY_ARE = "leaves inferer and postprocessing as they are: "
BLENDED = "leaves postprocessing as it is, and blends windows in chunks: "


@pytest.mark.parametrize(
    ("postprocessing", "options", "reason"),
    [
        (ARGMAX, {"inferer": Own(**WINDOWS)}, AS_THEY_ARE + "the inferer is Own, not a sliding window"),
        (ARGMAX, {"inferer": OwnInChunks(**WINDOWS)}, "the inferer is OwnInChunks, which may need scores itself"),
        (ARGMAX, {"inferer": SimpleInferer(), "data": images(1, (8, 8, 8))}, "the inferer is SimpleInferer"),
        (Compose([FillHolesd("pred")]), {}, BLENDED + "FillHolesd(pred) looks at whole components"),
        (Activationsd("pred", softmax=True), {}, BLENDED + "postprocessing ends in scores"),
        (Lambdad("pred", torch.neg), {}, BLENDED + "Lambdad(pred) calls a function that may look at other voxels"),
        (ARGMAX, {"decollate": False, "batch_size": 1}, "with decollate=False postprocessing gets batches"),
        (Compose([ARGMAX]), {"inferer": ChunkedSlidingWindowInferer(**WINDOWS, postprocessing=softmax)},
         AS_THEY_ARE + "the inferer has a postprocessing of its own"),
    ],
)  # fmt: skip
def test_one_warning_says_why_all_is_left_as_it_is(postprocessing: Any, options: dict[str, Any], reason: str) -> None:
    engine = evaluator(ChunkedEvaluator, postprocessing, **options)
    assert engine.streamed is None
    assert engine.behind is postprocessing
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = run(engine)
    (told,) = [each for each in caught if "ChunkedEvaluator" in str(each.message)]
    assert reason in str(told.message)
    assert told.filename == __file__
    if options.get("decollate", True):
        assert_same(ours, run(evaluator(SupervisedEvaluator, postprocessing, **options)))


@pytest.mark.parametrize("calls_monais", [False, True])
def test_an_iteration_of_ones_own_is_left_alone(calls_monais: bool) -> None:
    def own(engine: Any, batch: Any) -> Any:
        return engine._iteration(engine, batch) if calls_monais else update(engine, batch)

    engine = evaluator(ChunkedEvaluator, ARGMAX, iteration_update=own)
    assert engine.streamed is None
    with pytest.warns(UserWarning, match="an iteration of its own .* does with scores what it likes"):
        ours = run(engine)
    assert_same(ours, run(evaluator(SupervisedEvaluator, ARGMAX, iteration_update=own)))


def test_without_postprocessing_there_is_nothing_to_do_or_to_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = evaluator(ChunkedEvaluator, None)
    assert (engine.streamed, engine.behind) == (None, None)
    assert type(engine.inferer) is SlidingWindowInferer
    assert_same(run(engine), run(evaluator(SupervisedEvaluator, None)))


class Scores:
    """A handler that looks at scores before they are postprocessed."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        self.seen.append(engine.state.output["pred"].as_tensor().clone())


@pytest.mark.parametrize("late", [False, True])
def test_a_handler_that_looks_at_scores_gets_them(late: bool) -> None:
    found = []
    for kind in (ChunkedEvaluator, SupervisedEvaluator):
        handler = Scores()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine = evaluator(kind, ARGMAX, val_handlers=None if late else [handler])
            if late:
                handler.attach(engine)
            seen = run(engine)
        told = [str(each.message) for each in caught if "ChunkedEvaluator" in str(each.message)]
        assert len(told) == (kind is ChunkedEvaluator)
        assert all("a handler at FORWARD_COMPLETED sees scores" in each for each in told)
        found.append((seen, handler.seen))
    assert_same(found[0][0], found[1][0])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[0][1], found[1][1], strict=True))


# ---------------------------------------------------------------- an inverse, whose image has to be known

PREPROCESSING = Compose([Flipd("image", 0)])


def inverting(**options: Any) -> Any:
    chain = [ARGMAX, Invertd("pred", PREPROCESSING, "image")]
    return evaluator(ChunkedEvaluator, Compose(chain), **options)


def test_an_inverse_stays_behind_where_a_compiled_network_sees_no_metadata() -> None:
    assert text(inverting().streamed) == ["AsDiscreted", "Invertd"]
    compiled = inverting(data=[PREPROCESSING(images(1)[0])], batch_size=1)
    compiled.compile = True
    assert text(compiled.streamed) == ["AsDiscreted"]
    with pytest.warns(UserWarning, match="with compile=True the network sees an image without metadata, and the"):
        compiled.run()


@pytest.mark.parametrize("other", [{"image_transforms": []}, {"image_meta_dict": {}}])
def test_an_inverse_stays_behind_where_a_batch_says_otherwise(other: dict[str, Any]) -> None:
    data = [{**PREPROCESSING(images(1)[0]), **other}]
    engine = inverting(data=data, batch_size=1)
    assert text(engine.streamed) == ["AsDiscreted", "Invertd"]
    with pytest.warns(UserWarning, match="and what comes behind it as they are: Invertd.pred. reads and writes"):
        ours = run(engine)
    chain = Compose([ARGMAX, Invertd("pred", PREPROCESSING, "image")])
    reference = run(evaluator(SupervisedEvaluator, chain, data=data, batch_size=1))
    assert torch.equal(torch.as_tensor(ours[0]["pred"]), torch.as_tensor(reference[0]["pred"]))


# ---------------------------------------------------------------- what is said


def test_the_log_says_what_runs_in_chunks_what_stays_behind_and_what_the_first_image_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "monai_chunked"):
        chain = [each_voxel(Lambdad("pred", torch.neg)), BOTH, FillHolesd("pred")]
        engine = evaluator(ChunkedEvaluator, Compose(chain))
        run(engine)
    messages = [record.message for record in caplog.records if record.name == "monai_chunked"]
    assert messages[0] == "in chunks: Lambdad(pred), AsDiscreted(pred)"
    assert messages[1] == "behind: AsDiscreted(label), FillHolesd(pred)"
    assert messages[2] == "because FillHolesd(pred) looks at whole components, which reach from chunk to chunk"
    planning = chunked_inferer(engine.inferer)
    planning.postprocessing = engine.streamed
    assert messages[3] == f"the first image:\n{planning.plan((2, 1, 11, 10, 9), 3)}"
    assert len(messages) == 4
    assert not engine.network._forward_hooks


def test_the_log_says_it_again_when_something_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    engine = evaluator(ChunkedEvaluator, Compose([ARGMAX]), batch_size=1)
    with caplog.at_level(logging.INFO, "monai_chunked"):
        engine.run()
        engine.inferer.roi_size = (8, 8, 4)
        engine.run()
    planned = [record.message for record in caplog.records if "\n" in record.message]
    assert [each.split("\n")[0] for each in planned] == [
        "the first image:",
        "the next image, as something has changed:",
    ]
    assert "of 8 x 8 x 8 voxels" in planned[0]
    assert "of 8 x 8 x 4 voxels" in planned[1]
    assert [record.message for record in caplog.records].count("in chunks: AsDiscreted(pred)") == 1


def test_wrong_arguments_are_monais_errors() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'network'"):
        ChunkedEvaluator("cpu", [])
    with pytest.raises(TypeError, match="unexpected keyword argument 'postprocesing'"):
        evaluator(ChunkedEvaluator, None, postprocesing=None)


def test_without_ignite_it_says_what_to_install(python: Callable[..., Any]) -> None:
    program = (
        "import sys; sys.modules['ignite'] = None\n"
        "import monai_chunked\n"
        "try:\n    monai_chunked.ChunkedEvaluator('cpu', [], None)\n"
        "except ImportError as error:\n    print(error)"
    )
    assert python(program).stdout == "ChunkedEvaluator needs PyTorch Ignite: pip install pytorch-ignite\n"


def test_array_transforms_are_no_postprocessing_of_dictionaries() -> None:
    engine = evaluator(ChunkedEvaluator, Compose([AsDiscrete(argmax=True)]))
    with pytest.warns(UserWarning, match="AsDiscrete is no dictionary transform with"), pytest.raises(RuntimeError):
        engine.run()
