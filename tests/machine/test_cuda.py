"""On a CUDA device: the same bits as MONAI there, at any limit, and the limits are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.usefixtures("no_gradients"),
]

SETTINGS: dict[str, Any] = {"roi_size": (32, 32, 32), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
CLASSES = 8


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, CLASSES, 1).cuda()


@pytest.fixture
def volume() -> torch.Tensor:
    return torch.rand((1, 1, 96, 80, 72), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("on_device", [True, False])
def test_scores_have_monais_bits(on_device: bool, device: str, network: torch.nn.Module, volume: torch.Tensor) -> None:
    image = volume.cuda() if on_device else volume
    ours = ChunkedSlidingWindowInferer(**SETTINGS, sw_device="cuda", device=device)(image, network)
    assert ours.device.type == device
    reference = SlidingWindowInferer(**SETTINGS, sw_device="cuda", device="cuda")(volume.cuda(), network)
    assert torch.equal(ours.cpu(), reference.cpu())


@pytest.mark.parametrize("limits", [{"device_memory": 0}, {"device_memory": "2MB"}, {"cpu_memory": "4MB"}])
@pytest.mark.parametrize("postprocessing", [None, "argmax"])
def test_limits_change_no_bit(
    postprocessing: str | None, limits: dict[str, Any], network: torch.nn.Module, volume: torch.Tensor
) -> None:
    if "cpu_memory" in limits:
        limits = {**limits, "device_memory": "2MB"}
    settings = {**SETTINGS, "sw_device": "cuda", "device": "cpu", "postprocessing": postprocessing}
    free = ChunkedSlidingWindowInferer(**settings)(volume, network)
    assert torch.equal(ChunkedSlidingWindowInferer(**settings, **limits)(volume, network), free)


def test_open_chunks_stay_within_device_memory(network: torch.nn.Module, volume: torch.Tensor) -> None:
    def peak(limit: str) -> int:
        inferer = ChunkedSlidingWindowInferer(
            **SETTINGS, sw_device="cuda", device="cpu", postprocessing="argmax", device_memory=limit
        )
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        inferer(volume, network)
        return torch.cuda.max_memory_allocated()

    assert peak("4MB") - peak("0") <= 4_000_000 * 1.05


def test_a_device_that_has_less_room_than_it_said_moves_chunks_down_with_one_warning(
    network: torch.nn.Module, volume: torch.Tensor
) -> None:
    settings = {**SETTINGS, "sw_device": "cuda", "device": "cpu", "postprocessing": "argmax"}
    expected = ChunkedSlidingWindowInferer(**settings)(volume, network)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 12_000_000) / total)
    try:
        with pytest.warns(UserWarning, match="the device has no room for open chunks") as warned:
            result = ChunkedSlidingWindowInferer(**settings, device_memory="1GB")(volume, network)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len([w for w in warned if "no room for open chunks" in str(w.message)]) == 1
    assert torch.equal(result, expected)


def test_under_amp_predictions_are_blended_in_float32(network: torch.nn.Module, volume: torch.Tensor) -> None:
    with torch.autocast("cuda"):
        ours = ChunkedSlidingWindowInferer(**SETTINGS, sw_device="cuda", device="cpu")(volume, network)
    assert ours.dtype == torch.float32
    exact = ChunkedSlidingWindowInferer(**SETTINGS, sw_device="cuda", device="cpu")(volume, network)
    assert torch.allclose(ours, exact, atol=5e-3)
