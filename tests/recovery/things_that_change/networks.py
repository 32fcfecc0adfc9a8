"""What there is to a network that a result depends on."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import torch

from tests.recovery.things_that_change.functions import Slots
from tests.recovery.things_that_change.makers import Network, maker, module


@maker
def weights(folder: Path, changed: bool) -> dict[str, Any]:
    network = Network()
    torch.nn.init.constant_(network.convolution.bias, 0.25 + changed)
    return {"network": network}


@maker
def plain_attribute_of_a_network(folder: Path, changed: bool) -> dict[str, Any]:
    return {"network": Network(1.0 + changed)}


@maker
def attribute_of_a_module_inside(folder: Path, changed: bool) -> dict[str, Any]:
    return {"network": torch.nn.Sequential(Network(), torch.nn.LeakyReLU(0.1 + changed))}


class Nested(torch.nn.Module):
    """Has plain attributes that hold others."""

    def __init__(self, changed: bool) -> None:
        super().__init__()
        self.options = {"factors": [1.0, Slots(2.0 + changed)]}

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.options["factors"][1](values)


@maker
def what_an_attribute_of_a_network_holds(folder: Path, changed: bool) -> dict[str, Any]:
    return {"network": torch.nn.Sequential(Network(), Nested(changed))}


@maker
def buffer_that_is_not_saved(folder: Path, changed: bool) -> dict[str, Any]:
    class Buffered(Network):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return super().forward(windows) + self.shift

    network = Buffered()
    network.register_buffer("shift", torch.tensor(1.0 + changed), persistent=False)
    return {"network": network}


@maker
def edited_forward(folder: Path, changed: bool) -> dict[str, Any]:
    source = (
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.bias = torch.nn.Parameter(torch.ones(1))\n"
        f"    def forward(self, x):\n        return x * {2 + changed} + self.bias"
    )
    return {"network": module("user_network", source).Net()}


@maker
def edited_forward_of_a_module_inside(folder: Path, changed: bool) -> dict[str, Any]:
    return {"network": torch.nn.Sequential(Network(), edited_forward(folder, changed)["network"])}


@maker
def patched_forward(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Conv3d(1, 1, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    source = f"def forward(self, x):\n    return self._conv_forward(x, self.weight, self.bias) * {2 + changed}"
    network.forward = MethodType(module("user_forward", source).forward, network)
    return {"network": network}


@maker
def hook(folder: Path, changed: bool) -> dict[str, Any]:
    network = Network()
    network.register_forward_hook(module("user_hook", f"def hook(m, i, o):\n    return o * {2 + changed}").hook)
    return {"network": network}


@maker
def training(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Sequential(Network(), torch.nn.InstanceNorm3d(2, track_running_stats=True))
    return {"network": network.train(changed)}


@maker
def function_over_a_network(folder: Path, changed: bool) -> dict[str, Any]:
    network = weights(folder, changed)["network"]
    return {"network": lambda windows: network(windows) * 2}


@maker
def scripted_network(folder: Path, changed: bool) -> dict[str, Any]:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1), torch.nn.LeakyReLU(0.1 + 0.1 * changed))
    torch.nn.init.constant_(network[0].weight, -1)
    torch.nn.init.zeros_(network[0].bias)
    return {"network": torch.jit.trace(network, torch.ones(1, 1, 2, 2, 2))}


@maker
def argument_of_the_network(folder: Path, changed: bool) -> dict[str, Any]:
    return {"args": (1.0 + changed,)}


@maker
def keyword_of_the_network(folder: Path, changed: bool) -> dict[str, Any]:
    return {"kwargs": {"shift": 1.0 + changed}}
