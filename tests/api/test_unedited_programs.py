"""The page on programs that nobody edits: what it shows runs, in programs that do what the published ones do."""

from __future__ import annotations

import inspect
import re
import types
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer, sliding_window_inference
from monai.transforms import Activationsd, AsDiscreted, Compose, Identityd, Invertd, SaveImaged

import monai_chunked
from monai_chunked import ChunkedSlidingWindowInferer, split_postprocessing
from tests import ROOT
from tests.side_by_side import random

PAGE = (ROOT / "docs" / "unedited_programs.md").read_text()
SNIPPETS = re.findall(r"\n```(python|yaml)\n(.*?)```\n", PAGE, re.S)
PREPROCESSING = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
    ],
}
IMAGE = MetaTensor(random(1, 60, 50, 30), affine=torch.diag(torch.tensor([-1.2, -1.1, 2.5, 1])).double())

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


def snippet(with_text: str) -> str:
    (text,) = [text for _, text in SNIPPETS if with_text in text]
    return text


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 4, 3, padding=1)


def test_every_snippet_is_run_here() -> None:
    assert len(SNIPPETS) == 5


def test_a_call_patches_and_a_block_undoes() -> None:
    code = sliding_window_inference.__code__
    names: dict[str, Any] = {}
    exec(snippet("import monai_chunked\n\n"), names)
    assert sliding_window_inference.__code__ is not code
    for patch in list(monai_chunked.api.patching._patches):
        patch.undo()
    assert sliding_window_inference.__code__ is code

    def run(image: torch.Tensor) -> torch.Tensor:
        assert sliding_window_inference.__code__ is not code
        return sliding_window_inference(image, 32, 1, network()).argmax(1)

    names |= {"program": types.SimpleNamespace(main=run), "image": IMAGE[None]}
    exec(snippet("with monai_chunked.patch()"), names)
    assert sliding_window_inference.__code__ is code
    assert names["patched"].tally.calls == 1
    assert torch.equal(names["labels"], sliding_window_inference(IMAGE[None], 32, 1, network()).argmax(1))


def test_the_summary_is_shown_as_it_is_printed() -> None:
    model = torch.nn.Conv3d(1, 14, 1)
    with monai_chunked.patch() as patch:
        SlidingWindowInferer(48, overlap=0.5)(random(1, 1, 128, 128, 100), model)
    shown = re.findall(r"    monai_chunked: (.*)\n", PAGE)
    assert shown == patch.summary().splitlines()


# ---------------------------------------------------------------- a server that reads bundles


class Task:
    """As a server's task does it: an inferer for each request, the prediction as it is, then transforms in turn."""

    def __init__(self, preprocessing: Any, ending: Any = None, roi_size: Any = (32, 32, 32)) -> None:
        self.preprocessing, self.ending, self.roi_size = preprocessing, ending, roi_size

    def inferer(self, data: Any = None) -> Inferer:
        return SlidingWindowInferer(self.roi_size, overlap=0.5)

    def post_transforms(self, data: Any = None) -> list[Any]:
        return list(self.ending.transforms)

    def __call__(self) -> torch.Tensor:
        data = self.preprocessing({"image": IMAGE})
        self.scores = data["pred"] = self.inferer(data)(data["image"][None], network())[0]
        for each in self.post_transforms(data):
            data = data if isinstance(each, SaveImaged) else each(data)
        return data["pred"]


def bundle(config: dict[str, Any]) -> Any:
    parser = ConfigParser({"preprocessing": PREPROCESSING, **config})
    preprocessing, postprocessing = (parser.get_parsed_content(each) for each in ("preprocessing", "postprocessing"))
    task = Task(preprocessing, postprocessing)
    inferer = parser.get_parsed_content("inferer")
    task.inferer = lambda data=None: inferer  # type: ignore[method-assign]
    return task


def config() -> dict[str, Any]:
    return yaml.safe_load(snippet("whole_postprocessing:"))


def unsplit() -> dict[str, Any]:
    """The bundle before it was changed."""
    before = config()
    before["postprocessing"] = before.pop("whole_postprocessing")
    before["inferer"]["_target_"] = "SlidingWindowInferer"
    del before["inferer"]["postprocessing"]
    return before


def test_two_expressions_of_a_bundle_make_the_same_labels_and_no_scores() -> None:
    ours, theirs = bundle(config()), bundle(unsplit())
    labels, expected = ours(), theirs()
    assert len(expected.unique()) == 4
    assert torch.equal(labels, expected)
    assert torch.equal(labels.affine, expected.affine)
    assert (len(ours.scores), len(theirs.scores)) == (1, 4)
    with monai_chunked.patch() as patch:
        assert torch.equal(theirs(), expected)
        assert patch.tally.calls == 1


def test_a_task_of_ones_own_makes_the_same_labels_and_no_scores() -> None:
    parser = ConfigParser({"preprocessing": PREPROCESSING})
    preprocessing = parser.get_parsed_content("preprocessing")
    ending = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", preprocessing, "image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred"),
        ]
    )
    names: dict[str, Any] = {"BasicInferTask": Task, "split_postprocessing": split_postprocessing}
    names["ChunkedSlidingWindowInferer"] = ChunkedSlidingWindowInferer
    exec(snippet("class Segmentation(BasicInferTask)"), names)
    ours, theirs = names["Segmentation"](preprocessing, ending), Task(preprocessing, ending)
    assert torch.equal(ours(), theirs())
    assert (len(ours.scores), len(theirs.scores)) == (1, 4)


# ---------------------------------------------------------------- an operator that forwards keywords


class Operator:
    """As an operator does it: keywords that the function has are forwarded, the others are for somebody else."""

    def __init__(self, roi_size: Any, overlap: float, post_transforms: Any, **options: Any) -> None:
        known = inspect.signature(sliding_window_inference).parameters
        self.given = {"roi_size": roi_size, "overlap": overlap, "sw_batch_size": 4}
        self.given |= {name: value for name, value in options.items() if name in known}
        self.post_transforms = post_transforms

    def compute(self, data: Any, model: Any) -> torch.Tensor:
        self.scores = sliding_window_inference(inputs=data["image"][None], predictor=model, **self.given)
        data = {**data, "pred": self.scores[0]}
        return self.post_transforms(data)["pred"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_operator_that_forwards_keywords_makes_the_same_labels_and_no_scores() -> None:
    preprocessing = ConfigParser({"preprocessing": PREPROCESSING}).get_parsed_content("preprocessing")
    data, model = preprocessing({"image": IMAGE}), torch.jit.trace(network(), torch.rand(1, 1, 32, 32, 32))
    invert = Invertd("pred", preprocessing, "image", nearest_interp=False)
    whole = Compose([Activationsd("pred", softmax=True), invert, AsDiscreted("pred", argmax=True)])
    expected = Operator((32, 32, 32), 0.5, whole).compute(data, model)
    with monai_chunked.patch() as patch:
        names: dict[str, Any] = {"post_transforms": whole, "split_postprocessing": split_postprocessing}
        names |= {"MonaiSegInferenceOperator": Operator, "Compose": Compose, "Identityd": Identityd}
        exec(snippet("operator = MonaiSegInferenceOperator("), names)
        labels = names["operator"].compute(data, model)
        assert (patch.tally.calls, patch.tally.scores) == (1, 0)
    assert torch.equal(labels, expected)
    assert names["operator"].scores.shape[1] == 1
