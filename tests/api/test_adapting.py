"""In the place of MONAI's inferer that adapts to a device: it ends where that one ends, with unbuffered bits."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt

from monai_chunked import ChunkedSlidingWindowInferer, ChunkedSlidingWindowInfererAdapt
from monai_chunked.api.evaluator.replacing import chunked_inferer
from tests import toy_accelerator as toy
from tests.api.test_signatures import positional
from tests.side_by_side import SETTINGS, assert_same, monai, random, scores, volume

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CLASSES = 8
LARGE: dict[str, Any] = {"roi_size": (8, 8, 8), "overlap": 0.5, "mode": "gaussian"}
IMAGE = random(1, 1, 16, 16, 64)
SCORES = CLASSES * IMAGE.nbytes


def predict(windows: torch.Tensor) -> torch.Tensor:
    return scores(windows, CLASSES)


class Hungry:
    """A network that needs so many bytes of the device while it runs."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        work = torch.zeros(self.size, dtype=torch.uint8, device=windows.device)
        prediction = predict(windows)
        del work
        return prediction


def on_toy(inferer: Any, room: int, network: Any = predict) -> Any:
    """The result on a device with so much room, in bytes."""
    image = IMAGE.to(toy.DEVICE)
    with toy.limit(room):
        return inferer(image, network)


@pytest.mark.parametrize("method", ["__init__", "__call__"])
def test_every_parameter_of_monai_has_the_same_name_position_and_default(method: str) -> None:
    ours, reference = (getattr(kind, method) for kind in (ChunkedSlidingWindowInfererAdapt, SlidingWindowInfererAdapt))
    assert positional(ours) == positional(reference)


def test_what_we_add_is_that_of_our_inferer() -> None:
    ours, plain = (inspect.signature(k) for k in (ChunkedSlidingWindowInfererAdapt, ChunkedSlidingWindowInferer))
    assert ours.parameters == plain.parameters


def test_checks_for_monais_classes_hold_and_it_is_pickled() -> None:
    inferer = pickle.loads(pickle.dumps(ChunkedSlidingWindowInfererAdapt(8, postprocessing="argmax")))
    assert isinstance(inferer, SlidingWindowInfererAdapt)
    assert isinstance(inferer, ChunkedSlidingWindowInferer)
    assert inferer.postprocessing == "argmax"


@pytest.mark.parametrize(
    "parameters", [{}, {"buffer_steps": 2}, {"buffer_steps": 0, "cpu_thresh": 3}, {"sw_batch_size": 3}], ids=str
)
@pytest.mark.parametrize("images", [1, 2])
def test_on_a_cpu_the_bits_are_monais(parameters: dict[str, Any], images: int) -> None:
    given = {**SETTINGS, **parameters}
    inputs = volume(images)
    reference = SlidingWindowInfererAdapt(**given)(inputs, scores)
    assert_same(ChunkedSlidingWindowInfererAdapt(**given)(inputs, scores), reference)


def test_a_config_needs_one_word() -> None:
    config = {"inferer": {"_target_": "monai_chunked.ChunkedSlidingWindowInfererAdapt", **SETTINGS}}
    inferer = ConfigParser(config).get_parsed_content("inferer")
    assert_same(inferer(volume(), scores), monai(volume(), scores))


def test_with_room_for_everything_the_result_is_where_the_image_is() -> None:
    result = on_toy(ChunkedSlidingWindowInfererAdapt(**LARGE), 100 * SCORES)
    assert result.device == toy.DEVICE
    assert torch.equal(result.cpu(), SlidingWindowInferer(**LARGE)(IMAGE, predict))


@pytest.mark.filterwarnings("ignore:output='auto'", "ignore:the device has no room for open chunks")
@pytest.mark.parametrize("room", [SCORES // 2, SCORES // 4])
def test_without_room_for_the_scores_it_ends_in_cpu_memory_with_the_bits_of_no_buffering(room: int) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        on_toy(SlidingWindowInferer(**LARGE), room)
    ending = on_toy(SlidingWindowInfererAdapt(**LARGE), room)  # it asks for CUDA, and takes this for a CPU
    result = on_toy(ChunkedSlidingWindowInfererAdapt(**LARGE), room)
    assert_same(result, ending)
    assert_same(result, SlidingWindowInferer(**LARGE)(IMAGE, predict))


@pytest.mark.filterwarnings("ignore:output='auto'", "ignore:the device has no room for open chunks")
@pytest.mark.parametrize(
    ("hunger", "begun"), [(SCORES // 2, 2), (SCORES, 3)], ids=["beside open chunks", "with the device for itself"]
)
def test_a_network_that_finds_no_room_is_given_more_and_larger_images_begin_so(
    hunger: int, begun: int, caplog: pytest.LogCaptureFixture
) -> None:
    room = SCORES + SCORES // 4
    with pytest.raises(torch.OutOfMemoryError):
        on_toy(ChunkedSlidingWindowInferer(**LARGE), room, Hungry(hunger))
    inferer, network = ChunkedSlidingWindowInfererAdapt(**LARGE), Hungry(hunger)
    result = on_toy(inferer, room, network)
    assert result.device.type == "cpu"
    assert_same(result, SlidingWindowInferer(**LARGE)(IMAGE, predict))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == begun - 1
    assert all("(1, 1, 16, 16, 64) is begun again" in each for each in told)
    caplog.clear()
    assert_same(on_toy(inferer, room, network), result)
    assert len(caplog.records) == begun - 2


def test_a_network_that_has_no_room_at_all_is_out_of_memory() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="while predicting"):
        on_toy(ChunkedSlidingWindowInfererAdapt(**LARGE), SCORES // 4, Hungry(SCORES))


def test_gradients_are_never_lost_on_the_way() -> None:
    weight = torch.ones(1, requires_grad=True)
    with torch.enable_grad():
        ways = ChunkedSlidingWindowInfererAdapt(**SETTINGS, sw_device="toy")._ways(volume())
        assert [way.device_memory for way in ways] == [None]
        result = ChunkedSlidingWindowInfererAdapt(**SETTINGS)(volume(), lambda w: scores(w) * weight)
        result.sum().backward()
    assert weight.grad is not None


def test_with_a_device_nothing_adapts_as_in_monai() -> None:
    inferer = ChunkedSlidingWindowInfererAdapt(**LARGE, device=toy.DEVICE, output="device")
    with pytest.raises(torch.OutOfMemoryError):
        on_toy(inferer, SCORES // 2)


def test_its_plan_is_that_of_no_buffering() -> None:
    plan = ChunkedSlidingWindowInfererAdapt(**LARGE, buffer_steps=2).plan(IMAGE.shape, CLASSES)
    assert plan == ChunkedSlidingWindowInferer(**LARGE).plan(IMAGE.shape, CLASSES)


def test_the_evaluator_puts_it_in_the_place_of_monais() -> None:
    theirs, ours = SlidingWindowInfererAdapt(8, cpu_thresh=5), ChunkedSlidingWindowInfererAdapt(8, cpu_thresh=5)
    for inferer in (theirs, ours):
        result = chunked_inferer(inferer)
        assert type(result) is ChunkedSlidingWindowInfererAdapt
        assert result is not inferer
        assert result.cpu_thresh == 5
