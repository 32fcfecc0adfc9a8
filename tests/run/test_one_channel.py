"""Of one channel no class can be chosen: ours is refused before anything is written, MONAI's warns and is MONAI's."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activations, Activationsd, AsDiscrete, AsDiscreted, Compose, Lambda, Rotate

from monai_chunked import (
    ChunkAggregator,
    ChunkedSlidingWindowInferer,
    NiftiOutput,
    WindowSampler,
    chunked_sliding_window_inference,
)
from monai_chunked.__main__ import main

INSTEAD = r"one channel.*AsDiscrete\(threshold=0\.5\)"


class Binary(torch.nn.Module):
    """One channel that ends in a sigmoid, and how often it was asked."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        self.classes = classes
        self.calls = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.sigmoid(windows - 0.5).repeat(1, self.classes, 1, 1, 1)


def volume() -> torch.Tensor:
    return torch.rand(1, 1, 9, 10, 11, generator=torch.Generator().manual_seed(0))


def infer(image: Any, network: Any, postprocessing: Any, **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer(6, overlap=0.25, postprocessing=postprocessing, **parameters)(image, network)


def both(windows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"organs": Binary(3)(windows), "lesion": Binary()(windows)}


# ---------------------------------------------------------------- ours is refused


@pytest.mark.parametrize("more", [{}, {"background": [0.25]}, {"cpu_memory": "100kB"}, {"skip": 2.0}])
def test_argmax_over_one_channel_is_refused_at_the_first_prediction(more: dict[str, Any]) -> None:
    network = Binary()
    with pytest.raises(ValueError, match=INSTEAD):
        infer(volume(), network, "argmax", **more)
    assert network.calls == 1


def test_nothing_is_left_of_it_so_that_the_same_result_can_be_made_as_it_should(tmp_path: Path) -> None:
    image, network = MetaTensor(volume(), meta={"filename_or_obj": "scan.nii"}), Binary()
    output = {"output": NiftiOutput(tmp_path / "results"), "network_id": "binary"}
    with pytest.raises(ValueError, match=INSTEAD):
        infer(image, network, "argmax", **output)
    assert not list(tmp_path.rglob("*.nii*"))
    assert not list(tmp_path.rglob("*.journal"))
    mask = infer(image, network, AsDiscrete(threshold=0.5), **output)
    assert mask.any()


def test_of_several_outputs_the_one_with_one_channel_is_named() -> None:
    for postprocessing in ("argmax", {"organs": "argmax", "lesion": "argmax"}, ("argmax", "argmax")):
        with pytest.raises(ValueError, match=rf"(?s)prediction-(lesion|1) has {INSTEAD}.*one for each output"):
            infer(volume(), both if isinstance(postprocessing, dict | str) else _as_tuple, postprocessing)
    given = {"organs": "argmax", "lesion": AsDiscrete(threshold=0.5)}
    found = infer(volume(), both, given)
    assert torch.equal(found["lesion"], (infer(volume(), Binary(), None) >= 0.5).float())


def _as_tuple(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(both(windows).values())


def test_what_counts_are_the_channels_that_a_process_fn_leaves() -> None:
    def first(predictions: tuple[torch.Tensor, ...], windows: torch.Tensor, weights: torch.Tensor) -> Any:
        return (predictions[0][:, :1],), weights

    def two(predictions: tuple[torch.Tensor, ...], windows: torch.Tensor, weights: torch.Tensor) -> Any:
        return (torch.cat([1 - predictions[0], predictions[0]], 1),), weights

    parameters: Any = {"roi_size": 6, "sw_batch_size": 1, "overlap": 0.25, "postprocessing": "argmax"}
    with pytest.raises(ValueError, match=INSTEAD):
        chunked_sliding_window_inference(volume(), predictor=Binary(2), process_fn=first, **parameters)
    labels = chunked_sliding_window_inference(volume(), predictor=Binary(), process_fn=two, **parameters)
    assert labels.any()


def test_an_aggregator_refuses_it_with_the_first_batch() -> None:
    sampler = WindowSampler(volume(), roi_size=6)
    data, window = sampler[0]
    with ChunkAggregator(sampler, postprocessing="argmax") as aggregator, pytest.raises(ValueError, match=INSTEAD):
        aggregator.add_batch(Binary()(data[None]), window[None])


def test_where_the_inverse_is_of_the_whole_it_is_refused_at_the_first_prediction_too() -> None:
    turned, network = Rotate(0.2)(MetaTensor(volume()[0]))[None], Binary()
    with pytest.raises(ValueError, match=INSTEAD), pytest.warns(UserWarning, match="as a whole"):
        infer(turned, network, "argmax", inverse="image")
    assert network.calls == 1


def test_a_plan_refuses_it_before_there_is_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    inferer = ChunkedSlidingWindowInferer(6, postprocessing="argmax")
    for channels in (1, (3, 1)):
        with pytest.raises(ValueError, match=INSTEAD):
            inferer.plan((1, 1, 9, 9, 9), channels)
    inferer.postprocessing = ("argmax", None)
    inferer.plan((1, 1, 9, 9, 9), (3, 1))
    command = "plan --image-size 9 9 9 --roi-size 6 --classes 1"
    assert main(command.split()) == 2
    assert "AsDiscrete(threshold=0.5)" in capsys.readouterr().err
    assert main([*command.split(), "--postprocessing", "none"]) == 0


# ---------------------------------------------------------------- MONAI's is MONAI's

FINDS: dict[str, tuple[Any, str]] = {
    "argmax": (AsDiscrete(argmax=True), r"AsDiscrete\(argmax=True\).*becomes 0"),
    "argmax and classes": (AsDiscrete(argmax=True, to_onehot=2), r"AsDiscrete\(argmax=True\).*becomes 0"),
    "sigmoid, argmax": (
        Compose([Activations(sigmoid=True), AsDiscrete(argmax=True)]),
        r"AsDiscrete\(argmax=True\).*becomes 0",
    ),
    "sigmoid of PyTorch, argmax": (
        Compose([Compose([torch.sigmoid]), Lambda(torch.relu), AsDiscrete(argmax=True)]),
        r"AsDiscrete\(argmax=True\).*becomes 0",
    ),
    "argmax of a dictionary": ([AsDiscreted("pred", argmax=True)], r"AsDiscreted\(argmax=True\).*becomes 0"),
    "softmax, argmax": (
        [Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)],
        r"Activationsd\(softmax=True\).*becomes 1",
    ),
}


@pytest.mark.parametrize("case", FINDS)
def test_monais_argmax_over_one_channel_is_what_monai_makes_of_it_with_one_warning(case: str) -> None:
    postprocessing, message = FINDS[case]
    scores = SlidingWindowInferer(6, overlap=0.25)(volume(), Binary())[0]
    whole = Compose(postprocessing)
    expected = whole(scores) if not isinstance(postprocessing, list) else whole({"pred": scores})["pred"]
    with pytest.warns(UserWarning, match="one channel") as said:
        found = infer(volume(), Binary(), postprocessing)
    assert torch.equal(found[0], expected)
    (warning,) = [each for each in said if "one channel" in str(each.message)]
    assert warning.filename == __file__
    assert re.search(message, str(warning.message))


@pytest.mark.parametrize(
    "postprocessing",
    [
        None,
        AsDiscrete(threshold=0.5),
        Compose([Activations(sigmoid=True), AsDiscrete(threshold=0.5)]),
        [Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)],
        Compose([lambda scores: torch.cat([1 - scores, scores]), AsDiscrete(argmax=True)]),
    ],
)
def test_what_can_be_done_with_one_channel_is_done_without_a_word(postprocessing: Callable[..., Any] | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert infer(volume(), Binary(), postprocessing).any()


def test_argmax_over_several_channels_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for postprocessing in (AsDiscrete(argmax=True), AsDiscreted("pred", argmax=True), Activations(softmax=True)):
            infer(volume(), Binary(2), postprocessing)


def test_a_callable_of_ones_own_is_not_called_before_there_is_a_chunk() -> None:
    seen = []

    def double(scores: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(scores.shape))
        return torch.cat([scores, scores])

    infer(volume(), Binary(), Compose([double, AsDiscrete(argmax=True)]), chunk_size=(9, 10, 11))
    assert seen == [(1, 9, 10, 11)]
