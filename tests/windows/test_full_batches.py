"""Networks that know one shape get no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.side_by_side import STRUCTURES, Recorder, infer, random, scores, volume

CASES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@CASES
@given(st.data())
def test_every_batch_is_full_and_the_answer_is_the_same(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 4))
    image = random(
        data.draw(st.integers(1, 2)), 1, *data.draw(st.lists(st.integers(1, 9), min_size=dims, max_size=dims))
    )
    how: dict[str, Any] = {
        "roi_size": data.draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims)),
        "overlap": data.draw(st.sampled_from([0, 0.5])),
        "sw_batch_size": data.draw(st.integers(1, 7)),
        "buffer_steps": data.draw(st.sampled_from([None, 1, 2])),
        "border": data.draw(st.sampled_from(["edge", "even", "squeeze", "crop"])),
        "mirror_axes": data.draw(st.sampled_from([None, 0])),
        "mirror_batch": data.draw(st.booleans()),
    }
    network = Recorder(lambda x: 2 * x + 1)  # the same for any batch
    with torch.no_grad():
        expected = infer(image, lambda x: 2 * x + 1, **how)
        assert torch.equal(infer(image, network, fill_batches=True, **how), expected)
    number = how["sw_batch_size"] * (2 if how["mirror_axes"] == 0 and how["mirror_batch"] else 1)
    assert {tuple(windows.shape) for windows in network.windows} == {(number, 1, *how["roi_size"])}


@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_every_output_is_cut(structure: str) -> None:
    network = STRUCTURES[structure]
    how: dict[str, Any] = {"roi_size": (6, 6, 6), "sw_batch_size": 5, "mode": "constant"}
    with torch.no_grad():
        ours, expected = infer(volume(), network, fill_batches=True, **how), infer(volume(), network, **how)
    assert type(ours) is type(expected)
    torch.testing.assert_close(ours, expected)  # a batch of another size has other last bits


def test_conditions_and_slices_are_filled_up_and_what_is_read_is_not_read_again() -> None:
    def network(x: torch.Tensor, slices: Any, condition: torch.Tensor) -> torch.Tensor:
        assert len(x) == len(slices) == len(condition) == 5
        return x + condition

    how: dict[str, Any] = {"sw_batch_size": 5, "with_coord": True, "call": {"condition": volume(seed=3)}}
    ours = infer(volume(), network, fill_batches=True, **how)
    torch.testing.assert_close(ours, volume() + volume(seed=3))


def test_process_fn_sees_the_windows_that_are_there() -> None:
    from monai_chunked import chunked_sliding_window_inference

    seen = []

    def process_fn(tensors: Any, windows: torch.Tensor, weights: torch.Tensor) -> Any:
        seen.append((len(tensors[0]), len(windows)))
        return tensors, weights

    chunked_sliding_window_inference(random(1, 1, 20), 4, 3, scores, 0, process_fn=process_fn, fill_batches=True)
    assert seen == [(3, 3), (2, 2)]


def test_a_network_that_forgets_some_windows_is_refused() -> None:
    how: dict[str, Any] = {"roi_size": 4, "sw_batch_size": 3, "overlap": 0, "fill_batches": True}
    with pytest.raises(ValueError, match=r"each of the 3 windows of a batch \(fill_batches\), got shape \(2, 1, 4\)"):
        infer(random(1, 1, 8), lambda x: x[:2], **how)
    with pytest.raises(TypeError, match="the network must return tensors, got str"):
        infer(random(1, 1, 8), lambda x: "scores", **how)


def test_a_network_that_is_exported_with_static_shapes_runs() -> None:
    class Static(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sigmoid() - 0.5

    exported = torch.export.export(Static(), (torch.zeros(4, 1, 6, 5, 4),)).module()
    how: dict[str, Any] = {"sw_batch_size": 4, "border": "squeeze"}
    with torch.no_grad():
        ours = infer(volume(3), exported, fill_batches=True, **how)
        torch.testing.assert_close(ours, infer(volume(3), Static(), **how))
        with pytest.raises(Exception, match=r"(?i)guard|shape|size"):
            infer(volume(3), exported, **how)
