"""``ChunkedEvaluator`` runs what it has at each iteration, whatever was changed when, as ``SupervisedEvaluator``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.utils import train_mode
from monai.transforms import (
    Compose,
    LabelFilterd,
    Lambdad,
)

from monai_chunked import ChunkedEvaluator, ChunkedSlidingWindowInferer
from tests.api.evaluators import ARGMAX, INVERT, SIZE, SOFTMAX, WINDOWS, Network, compare, evaluator, images

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

# ---------------------------------------------------------------- what may change


class Negated(SlidingWindowInferer):
    """Does with scores what it likes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return -super().__call__(*args, **kwargs)


class Scores:
    """A handler that changes scores before they are postprocessed."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        engine.state.output["pred"] = -engine.state.output["pred"]


NEGATE = Scores()


def set_inferer(make: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda engine: setattr(engine, "inferer", make())


def set_of_inferer(**values: Any) -> Callable[[Any], None]:
    """The object that was handed over is changed."""
    return lambda engine: vars(engine.handed["inferer"]).update(values)


def set_of_engine(**values: Any) -> Callable[[Any], None]:
    return lambda engine: vars(engine).update(values)


def mirroring(batch: Any, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
    return batch["image"].flip(2), batch["label"]


def preparing_the_inferer(batch: Any, device: Any, non_blocking: bool, engine: Any) -> Any:
    """As bundles whose windows depend on the image."""
    engine.inferer.roi_size = (5, 5, 5)
    return batch["image"], batch["label"]


def update(engine: Any, batch: Any) -> Any:
    """A whole iteration of one's own."""
    scores = engine.inferer(batch["image"], engine.network)
    engine.state.output = {"image": batch["image"], "label": batch["label"], "pred": -scores}
    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    return engine.state.output


def set_weights(engine: Any) -> None:
    engine.network.load_state_dict(Network(5).state_dict())


def prepare_the_inferer(engine: Any) -> None:
    engine.prepare_batch = lambda *args, **kwargs: preparing_the_inferer(*args[:3], engine=engine)


def set_transforms(*transforms: Any) -> Callable[[Any], None]:
    def change(engine: Any) -> None:
        chain = engine.handed["postprocessing"]
        chain.transforms = (*transforms, *chain.transforms[-1:])

    return change


def remove_handler(engine: Any) -> None:
    if engine.has_event_handler(NEGATE, IterationEvents.FORWARD_COMPLETED):
        engine.remove_event_handler(NEGATE, IterationEvents.FORWARD_COMPLETED)


def ahead_of_the_postprocessing(engine: Any) -> None:
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, NEGATE)
    handlers = engine._event_handlers[IterationEvents.MODEL_COMPLETED]
    handlers.insert(0, handlers.pop())


CHANGES: dict[str, Callable[[Any], None]] = {
    "inferer": set_inferer(lambda: SlidingWindowInferer((5, 8, 7), overlap=0.5, mode="gaussian")),
    "inferer that is no sliding window": set_inferer(SimpleInferer),
    "inferer of one's own": set_inferer(lambda: Negated(**WINDOWS)),
    "inferer in chunks": set_inferer(lambda: ChunkedSlidingWindowInferer(**{**WINDOWS, "overlap": 0.5}, chunk_size=4)),
    "overlap of the inferer": set_of_inferer(overlap=0.75),
    "roi_size of the inferer": set_of_inferer(roi_size=(7, 5, 7)),
    "roi_size of the inferer, larger than the image": set_of_inferer(roi_size=(7, 5, 40)),
    "mode of the inferer": set_of_inferer(mode="gaussian"),
    "inferer, by prepare_batch": prepare_the_inferer,
    "network": lambda engine: setattr(engine, "network", Network(3)),
    "weights of the network": set_weights,
    "prepare_batch": set_of_engine(prepare_batch=mirroring),
    "compile": set_of_engine(compile=True),
    "amp": set_of_engine(amp=True, amp_kwargs={}),
    "to_kwargs": set_of_engine(to_kwargs={"dtype": torch.float64}),
    "mode": set_of_engine(mode=train_mode),
    "device": lambda engine: setattr(engine.state, "device", torch.device("cpu", 0)),
    "what has no effect": set_of_engine(
        postprocessing=LabelFilterd("pred", [1]), decollate=False, iteration_update=None
    ),
    "postprocessing": set_transforms(SOFTMAX, ARGMAX, LabelFilterd("pred", [1])),
    "postprocessing of scores": set_transforms(Lambdad("pred", torch.neg), INVERT),
    "postprocessing once more": lambda engine: engine._register_postprocessing(LabelFilterd("pred", [2])),
    "iteration": set_of_engine(_process_function=update),
    "handler that sees scores": NEGATE.attach,
    "handler removed": remove_handler,
    "handler ahead of the postprocessing": ahead_of_the_postprocessing,
}


def apply(change: str, engine: Any) -> None:
    torch.manual_seed(7)
    CHANGES[change](engine)


# ---------------------------------------------------------------- when it may change


def at(event: Any) -> Callable[[Any, str], None]:
    """In a handler, while the evaluator runs."""

    def run(engine: Any, change: str) -> None:
        engine.add_event_handler(event, lambda engine: apply(change, engine))
        engine.run()

    return run


def before_the_run(engine: Any, change: str) -> None:
    apply(change, engine)
    engine.run()


def between_runs(engine: Any, change: str) -> None:
    engine.run()
    apply(change, engine)
    engine.run()


MOMENTS: dict[str, Callable[[Any, str], None]] = {
    "before the run": before_the_run,
    "between runs": between_runs,
    "between iterations": at(Events.ITERATION_COMPLETED(once=1)),
}


# ---------------------------------------------------------------- the promise


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_files_and_state_are_monais_whatever_is_changed_when(change: str, moment: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"val_handlers": lambda: [NEGATE]} if change == "handler removed" else {}
    compare(tmp_path, lambda engine: MOMENTS[moment](engine, change), **options)


@settings(max_examples=10, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(sorted(CHANGES))), min_size=2, max_size=5))
def test_files_and_state_are_monais_after_any_changes(
    changes: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    def drive(engine: Any) -> None:
        for iteration, change in changes:
            when = Events.GET_BATCH_COMPLETED(lambda engine, event, iteration=iteration: event == iteration)
            engine.add_event_handler(when, lambda engine, change=change: apply(change, engine))
        engine.run()

    compare(tmp_path_factory.mktemp("changes"), drive, data=lambda: images(*[SIZE] * 6), batch_size=lambda: 2)


class SetsItLater(ChunkedEvaluator):
    """As subclasses do that find out what to run themselves."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "inferer": None})
        self.inferer = kwargs["inferer"]


def test_what_is_changed_can_be_read_back() -> None:
    inferer, other = SlidingWindowInferer(**WINDOWS), SlidingWindowInferer((5, 5, 5))
    before = dict(vars(inferer))
    engine = evaluator(SetsItLater, Path(), inferer=inferer, postprocessing=Compose([ARGMAX]))
    seen: list[Any] = []
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda engine: seen.append(engine.inferer))
    engine.run()
    assert seen == [inferer, inferer]
    assert engine.inferer is inferer
    assert vars(inferer) == before
    engine.inferer = other
    engine.run()
    assert engine.inferer is other
    assert seen[2:] == [other, other]


def test_a_subclass_that_sets_its_inferer_later_runs_in_chunks_without_a_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = evaluator(SetsItLater, Path(), postprocessing=Compose([SOFTMAX, ARGMAX]))
        engine.run()
    assert not [each for each in caught if "ChunkedEvaluator" in str(each.message)]
    assert len(engine.streamed.transforms) == 2
