"""A network that knows the rank or the device of its process: what is another one in each, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from monai_chunked import ChunkedSlidingWindowInferer
from tests.recovery.things_that_change.of_a_process import OTHER, SAME, network_of
from tests.side_by_side import random
from tests.workers.torchrun.ranks import Raised, Ranks

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

SIZE = (1, 1, 6, 5, 9)


def infer(group: Any, source: str, wrap: bool = False, **how: Any) -> Any:
    network = network_of(source, 0 if group is None else dist.get_rank(group))
    if wrap:
        with torch.enable_grad():
            network = torch.nn.parallel.DistributedDataParallel(network, process_group=group)
    inferer = ChunkedSlidingWindowInferer((6, 5, 6), 1, 0.5, "gaussian", process_group=group, **how)
    return inferer(random(*SIZE), network)


@pytest.mark.parametrize("name", list(SAME))
def test_a_device_of_its_own_and_how_it_was_made_do_not_count(ranks: Ranks, name: str) -> None:
    for answer in ranks.call(2, infer, SAME[name]):
        assert not isinstance(answer, Raised), answer
        assert torch.equal(answer, infer(None, SAME[name]))


@pytest.mark.parametrize("name", list(OTHER))
def test_what_counts_is_named_with_its_path_and_what_can_be_done(ranks: Ranks, name: str) -> None:
    source, said = OTHER[name]
    for answer in ranks.call(2, infer, source):
        assert isinstance(answer, Raised), answer
        assert answer.kind == "ValueError"
        assert answer.text == (
            f"process_group: every process must be called with the same, but rank 1 differs from rank 0 in "
            f"{said.format('on rank 0', 'on rank 1')} (network_id= vouches for all of the network but its weights)"
        )


@pytest.mark.parametrize("name", ["a rank as an attribute", "a closure over a rank", "a partial with a rank"])
def test_a_network_id_vouches_for_it(ranks: Ranks, name: str) -> None:
    for answer in ranks.call(2, infer_with_id, OTHER[name][0]):
        assert not isinstance(answer, Raised), answer


def infer_with_id(group: Any, source: str) -> Any:
    return infer(group, source, network_id="mine")


@pytest.mark.parametrize("name", ["a device as an attribute", "a global rank that __init__ refers to"])
def test_one_that_is_wrapped_for_training_in_several_processes_is_as_what_it_wraps(ranks: Ranks, name: str) -> None:
    for answer in ranks.call(2, infer, SAME[name], True):
        assert not isinstance(answer, Raised), answer
        assert torch.equal(answer, infer(None, SAME[name]))


def test_what_counts_is_named_through_the_wrapper_too(ranks: Ranks) -> None:
    for answer in ranks.call(2, infer, OTHER["a rank in a module inside"][0], True):
        assert "network.0.encoder.rank (0 on rank 0, 1 on rank 1)" in answer.text


def test_other_weights_are_named_and_no_id_vouches_for_them(ranks: Ranks) -> None:
    source = "network = Base()\ntorch.nn.init.constant_(network.convolution.weight, rank)"
    for answer in ranks.call(2, infer, source):
        assert answer.text.endswith("rank 1 differs from rank 0 in network weights")
