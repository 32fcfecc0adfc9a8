"""What ``ChunkedEvaluator`` cannot do in chunks is done as ``SupervisedEvaluator`` does it, and blended in chunks."""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines.utils import PrepareBatchExtraInput
from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.transforms import Compose, Flipd, Lambdad, Resized, Rotated

from monai_chunked import ChunkedEvaluator, ChunkedSlidingWindowInferer
from tests.api.evaluators import ARGMAX, SIZE, SOFTMAX, WINDOWS, Network, compare, evaluator, images, invert

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATED = Lambdad("pred", torch.neg)
IMAGES = images(SIZE, SIZE, preprocessing=Compose([Flipd("image", 0)]))


class Watched(Network):
    """Knows who calls it."""

    def __init__(self, dims: int = 3) -> None:
        super().__init__(dims=dims)
        self.blended_in_chunks: set[bool] = set()

    def forward(self, windows: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        frame, names = sys._getframe(), set()
        while frame is not None:
            names.add(frame.f_globals.get("__name__", ""))
            frame = frame.f_back
        self.blended_in_chunks.add("monai_chunked.windows.predictor" in names)
        return super().forward(windows)


class InHalf(Watched):
    def forward(self, windows: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(windows).half()


WITH_AUTOCAST = {"around": lambda: torch.autocast("cpu")}
MORE = {"prepare_batch": lambda: PrepareBatchExtraInput("label")}
SLICES = {"network": lambda: Watched(2)}
IN_HALF = {"network": lambda: InHalf()}
CASES: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "constant weights": (SlidingWindowInferer(**WINDOWS), {}, True),
    "gaussian weights": (SlidingWindowInferer(**WINDOWS, mode="gaussian", cache_roi_weight_map=True), {}, True),
    "adapting itself": (SlidingWindowInfererAdapt(**WINDOWS, mode="gaussian", buffer_steps=2), {}, True),
    "as large as the image": (SlidingWindowInferer((0, 7, -1), overlap=0.5), {}, True),
    "slices": (SliceInferer(1, (6, 5), overlap=0.5), SLICES, True),
    "float64": (SlidingWindowInferer(**WINDOWS), {"to_kwargs": lambda: {"dtype": torch.float64}}, True),
    "a batch of two": (SlidingWindowInferer(**WINDOWS, mode="gaussian"), {"batch_size": lambda: 2}, True),
    "further arguments": (SlidingWindowInferer(**WINDOWS), MORE, True),
    "half": (SlidingWindowInferer(**WINDOWS, mode="gaussian"), {"to_kwargs": lambda: {"dtype": torch.half}}, True),
    "mixed precision": (SlidingWindowInferer(**WINDOWS, mode="gaussian"), WITH_AUTOCAST, True),
    "predictions in half precision": (SlidingWindowInferer(**WINDOWS, mode="gaussian"), IN_HALF, True),
    # what MONAI adds up in another order, leaves with gaps in memory, or differentiates
    "buffered": (SlidingWindowInferer(**WINDOWS, buffer_steps=2), {}, False),
    "told where to be, and buffered": (SlidingWindowInfererAdapt(**WINDOWS, device="cpu", buffer_steps=1), {}, False),
    "larger than the image": (SlidingWindowInferer((6, 11, 6)), {}, False),
    "slices larger than the image": (SliceInferer(1, (6, 10)), SLICES, False),
    "gradients": (SlidingWindowInferer(**WINDOWS), {"mode": lambda: "train"}, False),
    "slices and further arguments": (
        SliceInferer(1, (6, 5)), {**SLICES, **MORE}, False
    ),
}  # fmt: skip


@pytest.mark.parametrize("ending", [None, Compose([NEGATED])], ids=["scores", "behind scores"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_scores_are_monais_bits_and_lie_in_memory_as_monais(case: str, ending: Any, tmp_path: Path) -> None:
    inferer, options, in_chunks = CASES[case]
    around: AbstractContextManager[Any] = options.get("around", nullcontext)()
    given = {
        "network": Watched,
        "data": lambda: IMAGES,
        "inferer": lambda: inferer,
        "postprocessing": lambda: ending,
        **{name: make for name, make in options.items() if name != "around"},
    }

    def drive(engine: Any) -> None:
        torch.manual_seed(3)
        engine.run()

    with around:
        engine = compare(tmp_path, drive, layout=True, **given)
    assert engine.network.blended_in_chunks == {in_chunks}
    assert engine.inferer is inferer


def test_an_inferer_in_chunks_is_left_as_it_is(tmp_path: Path) -> None:
    inferer = ChunkedSlidingWindowInferer(**WINDOWS)
    with pytest.warns(UserWarning, match="leaves inferer and postprocessing as they are: Lambdad.pred. calls"):
        compare(tmp_path, lambda engine: engine.run(), postprocessing=lambda: NEGATED, inferer=lambda: inferer)


# ---------------------------------------------------------------- images of a batch that end on other grids

OTHERS = ((12, 10, 9), (24, 11, 9), (13, 10, 9))
"""Two that are brought to one size, and a third one for a batch of one."""

PREPROCESSINGS = {
    "in chunks, each alone": Compose([Resized("image", (12, 10, 9), mode="trilinear")]),
    "whole, each alone": Compose([Rotated("image", 0.3, keep_size=False), Resized("image", (12, 10, 9))]),
}


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
@pytest.mark.parametrize("before", [[], [SOFTMAX], [SOFTMAX, ARGMAX]], ids=["", "softmax", "labels"])
def test_images_of_a_batch_that_end_on_other_grids_are_what_monai_makes_of_them_and_a_warning_says_so(
    before: list[Any], preprocessing: str, tmp_path: Path
) -> None:
    transform = PREPROCESSINGS[preprocessing]
    data = [{"image": item["image"]} for item in images(*OTHERS, preprocessing=transform)]
    chain = [*before, invert(transform), *([] if ARGMAX in before else [ARGMAX])]
    given = {"data": lambda: data, "batch_size": lambda: 2, "saved": lambda: chain}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = compare(tmp_path, lambda engine: engine.run(), **given)
    told = [str(each.message) for each in caught if "ChunkedEvaluator" in str(each.message)]
    assert len(told) == 1
    what = "Invertd and what comes behind it as they are" if ARGMAX in before else "postprocessing as it is"
    assert told[0].startswith(f"ChunkedEvaluator leaves {what}")
    assert "grids" in told[0]
    assert engine.streamed is not None  # each image alone is


def test_nothing_is_saved_before_the_warning_for_other_grids(tmp_path: Path) -> None:
    transform = PREPROCESSINGS["in chunks, each alone"]
    data = [{"image": item["image"]} for item in images(*OTHERS, preprocessing=transform)]
    engine = evaluator(ChunkedEvaluator, tmp_path, data=data, batch_size=2, saved=[SOFTMAX, invert(transform), ARGMAX])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="with batch_size: 1 in the data loader it runs in chunks"):
            engine.run()
    assert not list(tmp_path.iterdir())
