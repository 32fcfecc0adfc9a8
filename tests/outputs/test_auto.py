"""The output that is chosen by itself goes where there is room, and says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_chunked import ChunkedSlidingWindowInferer
from tests.outputs.cases import (
    SETTINGS,
    identity,
    infer,
    is_on_disk,
    left_in,
    mapped_from,
    monai,
    network,
    same_array,
    volume,
)

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

BYTES = 2 * 3 * 9 * 10 * 11 * 4
"""Of the scores of ``volume()``."""


# ---------------------------------------------------------------- auto


def sizes_in(message: str) -> list[str]:
    words = message.replace(",", " ").split()
    units = ("bytes", "KiB", "MiB", "GiB")
    return [f"{words[n - 1]} {unit}" for n, unit in enumerate(words) if unit in units]


class Room:
    """What is free on each device, in bytes; the rest of the package asks for it as it always does."""

    def __init__(self, **free: int) -> None:
        self.free = free

    def __call__(self, device: torch.device) -> int:
        return self.free[device.type]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def leave(**free: int) -> None:
        monkeypatch.setattr("monai_chunked.outputs.auto.available_memory", Room(**free))

    return leave


def infer_and_warnings(*args: Any, **parameters: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = infer(*args, **parameters)
    return result, [str(w.message) for w in caught if "output=" in str(w.message)]


ENOUGH = 10**9


@pytest.mark.parametrize(
    ("free", "device", "steps"),
    [
        ({"cpu": ENOUGH}, None, ["cpu"]),
        ({"cpu": 1024}, None, ["cpu", "disk"]),
        ({"meta": ENOUGH, "cpu": 0}, "meta", ["meta"]),
        ({"meta": 2048, "cpu": ENOUGH}, "meta", ["meta", "cpu"]),
        ({"meta": 2048, "cpu": 0}, "meta", ["meta", "cpu", "disk"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_auto_steps_down_to_where_there_is_room_with_one_warning_of_both_sizes_for_each_step(
    free: dict[str, int], device: Any, steps: list[str], room: Callable[..., None], temporary: Path
) -> None:
    room(**free)
    result, warned = infer_and_warnings(volume(), device=device)
    assert result.device.type == ("meta" if steps[-1] == "meta" else "cpu")
    assert mapped_from(temporary) == (steps[-1] == "disk")
    assert len(warned) == len(steps) - 1
    for message, here, below in zip(warned, steps, steps[1:]):
        assert "output='auto'" in message
        assert f"on {here}" in message
        assert f"to {below}" in message
        needed, available = sizes_in(message)
        assert needed == "23.2 KiB"
        assert (available.split()[0] in ("0", "0.0")) if free[here] == 0 or here == "cpu" else available == "2.0 KiB"
    if result.device.type == "cpu":
        assert torch.equal(result, monai(volume()))


def test_auto_leaves_room_for_open_chunks(room: Callable[..., None]) -> None:
    whole = {"chunk_size": 100}  # one chunk an image: half of the result is open at a time
    room(cpu=BYTES + BYTES // 2)
    assert not is_on_disk(infer(volume(), **whole))
    room(cpu=BYTES + BYTES // 2 - 1)
    with pytest.warns(UserWarning, match="open chunks"):
        assert is_on_disk(infer(volume(), **whole))


def test_auto_puts_the_outputs_that_fit_in_memory_and_the_others_on_disk(room: Callable[..., None]) -> None:
    def predictor(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return identity(windows), network(windows), windows * 2

    room(cpu=BYTES)  # open chunks take some of it, and the three channels in the middle do not fit beside them
    results, warned = infer_and_warnings(volume(), predictor, chunk_size=2)
    assert [is_on_disk(result) for result in results] == [False, True, True]
    assert len(warned) == 2
    assert len(set(warned)) == 2
    for result, reference in zip(results, monai(volume(), predictor)):
        assert torch.equal(result, reference)


def test_auto_counts_labels_not_scores_where_postprocessing_reduces(room: Callable[..., None]) -> None:
    room(cpu=BYTES)
    labels, warned = infer_and_warnings(volume(), postprocessing="argmax", chunk_size=2)
    assert not is_on_disk(labels)
    assert warned == []


def test_auto_writes_to_output_dir_when_it_comes_to_that(room: Callable[..., None], tmp_path: Path) -> None:
    room(cpu=0)
    result, _ = infer_and_warnings(volume(), output_dir=tmp_path)
    assert left_in(tmp_path) == ["prediction-0001.npy"]
    assert same_array(np.load(tmp_path / "prediction-0001.npy"), result)


def test_auto_steps_down_to_disk_also_where_gradients_are_on(room: Callable[..., None]) -> None:
    convolution = torch.nn.Conv3d(1, 3, 1)
    room(cpu=0)
    with torch.enable_grad():
        result, warned = infer_and_warnings(volume(), convolution)
    assert len(warned) == 1
    assert is_on_disk(result)
    assert not result.requires_grad
    assert torch.equal(result, monai(volume(), convolution))


def test_auto_keeps_the_gradients_of_the_outputs_that_stay_in_memory(room: Callable[..., None]) -> None:
    convolution = torch.nn.Conv3d(1, 3, 1)

    def predictor(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return convolution(windows).sum(1, keepdim=True), convolution(windows)

    room(cpu=BYTES)
    with torch.enable_grad():
        results, _ = infer_and_warnings(volume(), predictor, chunk_size=2)
        references = monai(volume(), predictor)
        weights = volume(seed=1)
        assert [is_on_disk(result) for result in results] == [False, True]
        assert [result.requires_grad for result in results] == [True, False]
        (gradient,) = torch.autograd.grad((results[0] * weights).sum(), convolution.weight)
        (expected,) = torch.autograd.grad((references[0] * weights).sum(), convolution.weight)
    assert torch.allclose(gradient, expected, rtol=1e-4)
    for result, reference in zip(results, references):
        assert torch.equal(result, reference)


def test_one_inferer_decides_anew_for_each_call(room: Callable[..., None]) -> None:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS)
    room(cpu=0)
    with pytest.warns(UserWarning, match="output='auto'"):
        assert is_on_disk(inferer(volume(), network))
    room(cpu=ENOUGH)
    for _ in range(3):
        assert not is_on_disk(inferer(volume(), network))
