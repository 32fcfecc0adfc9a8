"""The mean over mirrored windows, as nnU-Net takes it, against MONAI over a network that does it by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet

from monai_chunked import ChunkedSliceInferer, Mirrored
from tests.side_by_side import assert_same, infer, monai, random, volume

CASES = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def lopsided(x: torch.Tensor) -> torch.Tensor:
    """What a mirror image would not do."""
    for d in range(2, x.dim()):
        x = x.sin() + 0.5 * x.cumsum(d)
    return torch.cat([x, x.sigmoid()], 1)


def by_hand(network: Callable[[torch.Tensor], torch.Tensor], axes: tuple[int, ...]) -> Callable[..., torch.Tensor]:
    """``_internal_maybe_mirror_and_predict`` of nnU-Net."""

    def predict(x: torch.Tensor) -> torch.Tensor:
        prediction = network(x).clone()
        dims = [axis + 2 for axis in axes]
        subsets = [c for i in range(len(dims)) for c in itertools.combinations(dims, i + 1)]
        for subset in subsets:
            prediction += torch.flip(network(torch.flip(x, subset)), subset)
        prediction /= len(subsets) + 1
        return prediction

    return predict


@CASES
@given(st.data())
def test_mirroring_is_that_of_a_network_that_does_it_by_hand(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 4))
    size = data.draw(st.lists(st.integers(2, [0, 30, 14, 9, 6][dims]), min_size=dims, max_size=dims))
    axes = tuple(data.draw(st.permutations(range(dims)))[: data.draw(st.integers(1, dims))])
    how: dict[str, Any] = {
        "roi_size": data.draw(st.lists(st.integers(2, 6), min_size=dims, max_size=dims)),
        "overlap": data.draw(st.sampled_from([0, 0.25, 0.5])),
        "mode": data.draw(st.sampled_from(["constant", "gaussian"])),
        "sw_batch_size": data.draw(st.integers(1, 3)),
    }
    image = random(data.draw(st.integers(1, 2)), 1, *size)
    with torch.no_grad():
        expected = monai(image, by_hand(lopsided, axes), **how)
        assert torch.equal(infer(image, lopsided, mirror_axes=axes, **how), expected)
        assert torch.equal(infer(image, Mirrored(lopsided, axes), **how), expected)
        assert torch.equal(monai(image, Mirrored(lopsided, axes), **how), expected)  # anywhere else, too
        at_once = infer(image, lopsided, mirror_axes=axes, mirror_batch=True, **how)
    torch.testing.assert_close(at_once, expected)


@pytest.mark.usefixtures("one_thread")
def test_mirroring_a_real_network_in_eight_ways() -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2)).eval()
    image = random(1, 1, 20, 17, 18)
    how: dict[str, Any] = {"roi_size": 16, "sw_batch_size": 2, "mode": "nnunet"}
    calls = []
    network.register_forward_pre_hook(lambda module, inputs: calls.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        ours = infer(image, network, mirror_axes=(0, 1, 2), **how)
        assert set(calls) == {(2, 1, 16, 16, 16)}
        in_turn = len(calls)
        assert torch.equal(ours, infer(image, by_hand(network, (0, 1, 2)), **how))
        calls.clear()
        at_once = infer(image, network, mirror_axes=(0, 1, 2), mirror_batch=True, **how)
    assert len(calls) == in_turn / 8
    assert set(calls) == {(16, 1, 16, 16, 16)}
    torch.testing.assert_close(at_once, ours)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    "structure",
    [
        lambda x: (lopsided(x), x.sin()),
        lambda x: [lopsided(x), x],
        lambda x: {"b": lopsided(x), "a": x.cumsum(2)},
        lambda x: (lopsided(x), x.cumsum(2)[:, :, ::2].contiguous()),
    ],
    ids=["tuple", "list", "dict", "two sizes"],
)
def test_every_output_is_mirrored(structure: Callable[..., Any], batch: bool) -> None:
    def hand(x: torch.Tensor) -> Any:
        one, other = structure(x), structure(x.flip(3))
        if isinstance(one, dict):
            return {key: (one[key] + other[key].flip(3)) / 2 for key in one}
        return tuple((a + b.flip(3)) / 2 for a, b in zip(one, other))

    image = volume()
    assert_same(infer(image, structure, roi_size=(6, 4, 4), mirror_axes=1, mirror_batch=batch),
                monai(image, hand, roi_size=(6, 4, 4)))  # fmt: skip


def test_what_the_network_returns_is_not_written_to() -> None:
    image = volume()
    before = image.clone()
    kept: list[torch.Tensor] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        return x

    torch.testing.assert_close(Mirrored(network, (0, 1, 2))(image), image)
    assert torch.equal(kept[0], image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("batch", [False, True])
def test_conditions_are_mirrored_arguments_reach_the_network_and_slices_belong_to_each_window(batch: bool) -> None:
    def network(x: torch.Tensor, slices: Any, factor: float, condition: torch.Tensor, power: int) -> torch.Tensor:
        assert len(slices) == len(x)
        first = torch.tensor([window[2].start for window in slices]).reshape(-1, 1, 1, 1, 1)
        return factor * x.cumsum(2) + condition.cumsum(2) ** power + first

    def hand(x: torch.Tensor, *args: Any, condition: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        mirrored = network(x.flip(2), *args, condition=condition.flip(2), **kwargs)
        return (network(x, *args, condition=condition, **kwargs) + mirrored.flip(2)) / 2

    how: dict[str, Any] = {"with_coord": True, "sw_batch_size": 3, "call": {"condition": volume(seed=2), "power": 2}}
    with torch.no_grad():
        expected = infer(volume(), hand, 3.0, **how)
        ours = infer(volume(), network, 3.0, mirror_axes=0, mirror_batch=batch, **how)
        assert torch.equal(ours, expected)


def test_process_fn_gets_the_mean() -> None:
    from monai.inferers import sliding_window_inference

    from monai_chunked import chunked_sliding_window_inference

    def square(tensors: Any, windows: torch.Tensor, weights: torch.Tensor) -> Any:
        return (tensors[0] ** 2 + windows,), weights

    image = volume()
    with torch.no_grad():
        expected = sliding_window_inference(image, 5, 2, by_hand(lopsided, (2, 0)), process_fn=square)
        ours = chunked_sliding_window_inference(image, 5, 2, lopsided, process_fn=square, mirror_axes=(2, 0))
    assert torch.equal(ours, expected)


def test_it_is_a_module_around_a_network() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Dropout())
    mirrored = Mirrored(network, (0, 1))
    assert list(mirrored.state_dict()) == ["network.0.weight", "network.0.bias"]
    assert not mirrored.eval().network.training
    assert mirrored.double().network[0].weight.dtype == torch.float64
    image = random(1, 1, 6, 5, dtype=torch.float64).requires_grad_()
    mirrored(image).sum().backward()
    assert network[0].weight.grad is not None
    assert torch.isfinite(image.grad).all()
    assert torch.equal(Mirrored(network, ())(image), network(image))


def test_slices_are_mirrored_by_the_axes_of_the_volume() -> None:
    image = random(1, 1, 7, 6, 3)
    ours = ChunkedSliceInferer(2, (4, 4), mirror_axes=1)(image, lopsided)
    expected = ChunkedSliceInferer(2, (4, 4))(image, by_hand(lopsided, (1,)))
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("axes", [(0, 0), (-1,), (3,)])
def test_axes_that_are_none_are_refused(axes: Any) -> None:
    with pytest.raises(ValueError, match=r"axes=.* must be"):
        Mirrored(lopsided, axes)(volume())


def test_what_cannot_be_mirrored_back_is_refused() -> None:
    with pytest.raises(TypeError, match="must return tensors to be mirrored back, got str"):
        infer(volume(), lambda x: "scores", mirror_axes=0)
