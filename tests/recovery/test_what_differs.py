"""A run that goes on in a process with another rank or device: what counts is named, and what does not is no matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recovery.test_changed_results import outcome
from tests.recovery.things_that_change.makers import Network, module
from tests.recovery.things_that_change.of_a_process import OTHER, SAME, network_of

RETURNED = "is returned as an earlier run finished it"


@pytest.mark.parametrize("name", sorted(set(SAME) - {"a partial with a device"}))
def test_the_result_of_another_rank_and_device_is_that_of_this_one(name: str, tmp_path: Path) -> None:
    first, _ = outcome({"network": network_of(SAME[name], 0)}, tmp_path)
    again, told = outcome({"network": network_of(SAME[name], 1)}, tmp_path)
    assert torch.equal(again, first)
    assert any(RETURNED in each for each in told)


@pytest.mark.parametrize("name", sorted(set(OTHER) - {"a partial with a rank"}))
def test_what_differs_is_named_with_its_path_and_the_remedy(name: str, tmp_path: Path) -> None:
    source, said = OTHER[name]
    outcome({"network": network_of(source, 0)}, tmp_path)
    again, _ = outcome({"network": network_of(source, 1)}, tmp_path)
    assert isinstance(again, FileExistsError), again
    words = f"what differs: {said.format('before', 'now')} (network_id= vouches for all of the network but its weights)"
    assert words in str(again)
    assert isinstance(outcome({"network": network_of(source, 1)}, tmp_path, overwrite="changed")[0], torch.Tensor)


def test_of_many_differences_a_few_are_said(tmp_path: Path) -> None:
    def network(shift: int) -> Any:
        made = Network()
        for number in range(9):
            setattr(made, f"option_{number}", number + shift)
        return made

    outcome({"network": network(0)}, tmp_path)
    again, _ = outcome({"network": network(1)}, tmp_path)
    assert "network.option_2 (2 before, 3 now), 6 more in network (network_id=" in str(again)


def test_in_functions_too_it_is_named(tmp_path: Path) -> None:
    def function(factor: float) -> Any:
        source = f"factor = {factor}\ndef function(values):\n    return values * factor"
        return module("user_function", source).function

    outcome({"postprocessing": function(2.0)}, tmp_path)
    again, _ = outcome({"postprocessing": function(3.0)}, tmp_path)
    assert "what differs: postprocessing.factor (2.0 before, 3.0 now); overwrite=True" in str(again)
