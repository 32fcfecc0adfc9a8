"""Networks as scripts make them that several processes run, each with a rank and a device of its own."""

from __future__ import annotations

from typing import Any

from tests.recovery.things_that_change.makers import module

SCRIPT = """
import functools
from dataclasses import dataclass
import torch

class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, 2, 1)
        torch.nn.init.constant_(self.convolution.weight, 0.3)
        torch.nn.init.constant_(self.convolution.bias, 0.7)
    def forward(self, windows):
        return self.convolution(windows).sin()

class Has(Base):
    def __init__(self, **held):
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)

device = torch.device("cuda", rank)
"""

SAME = {
    "a device as an attribute": "network = Has(device=device)",
    "the name of a device as an attribute": "network = Has(device=f'cuda:{rank}')",
    "devices in what an attribute holds": "network = Has(options={'devices': [device, (f'cuda:{rank}',)]})",
    "a device in a module inside": "network = torch.nn.Sequential(Has(encoder=Has(device=device)))",
    "a global device that forward refers to": """
class Network(Base):
    def forward(self, windows):
        return super().forward(windows) + (device.type == "cuda")
network = Network()""",
    "a global rank that __init__ refers to": """
class Network(Base):
    def __init__(self):
        super().__init__()
        self.first = rank >= 0
    def forward(self, windows):
        return super().forward(windows)
network = torch.nn.Sequential(Network())""",
    "a global rank that __init__ of a base class refers to": """
class Former(Base):
    def __init__(self):
        super().__init__()
        torch.manual_seed(rank)
class Network(Former):
    pass
network = Network()""",
    "a global rank that makes an object which is held": """
@dataclass
class Options:
    factor: float = 1.0
    def __post_init__(self):
        assert rank >= 0
class Fresh:
    def __new__(cls):
        assert rank >= 0
        return super().__new__(cls)
network = Has(options=Options(), fresh=Fresh())""",
    "a closure over a device": """
def make(device):
    class Network(Base):
        def forward(self, windows):
            return super().forward(windows) * (2 if device.type == "cuda" else 3)
    return Network()
network = make(device)""",
    "a partial with a device": """
def predict(model, windows, device):
    return model(windows) * (2 if device.type == "cuda" else 3)
network = functools.partial(predict, Base(), device=device)""",
    "a compiled one with a device": "network = torch.compile(Has(device=device), backend='eager')",
}
"""From a name to what makes a network that is the same in all processes."""

OTHER = {
    "a rank as an attribute": ("network = Has(rank=rank)", "network.rank (0 {}, 1 {})"),
    "a rank in a module inside": (
        "network = torch.nn.Sequential(Has(encoder=Has(rank=rank)))",
        "network.0.encoder.rank (0 {}, 1 {})",
    ),
    "a rank in what an attribute holds": (
        "network = Has(options={'ranks': [5, rank]})",
        "network.options.ranks[1] (0 {}, 1 {})",
    ),
    "devices of two types": (
        "network = Has(device=torch.device('cuda' if rank else 'cpu'))",
        "network.device (device(type='cpu') {}, device(type='cuda') {})",
    ),
    "a global rank that forward refers to": (
        """
class Network(Base):
    def forward(self, windows):
        return super().forward(windows) + rank
network = Network()""",
        "network.forward.rank (0 {}, 1 {})",
    ),
    "a global rank that __init__ of what forward makes refers to": (
        """
class Shift:
    def __init__(self):
        self.by = rank
class Network(Base):
    def forward(self, windows):
        return super().forward(windows) + Shift().by
network = Network()""",
        "network.forward.Shift.__init__.rank (0 {}, 1 {})",
    ),
    "a global rank that __init__ refers to, which forward calls": (
        """
class Network(Base):
    def __init__(self):
        super().__init__()
        self.by = abs(rank - 0.5)
    def forward(self, windows):
        return super().forward(windows) + type(self)().by
network = Network()""",
        "network.__init__.rank (0 {}, 1 {})",
    ),
    "a closure over a rank": (
        """
def make(number):
    class Network(Base):
        def forward(self, windows):
            return super().forward(windows) + number
    return Network()
network = make(rank)""",
        "network.forward.number (0 {}, 1 {})",
    ),
    "a partial with a rank": (
        """
def predict(model, windows, rank):
    return model(windows) + rank
network = functools.partial(predict, Base(), rank=rank)""",
        "network.keywords.rank (0 {}, 1 {})",
    ),
    "a compiled one with a rank": (
        "network = torch.compile(Has(rank=rank), backend='eager')",
        "network.rank (0 {}, 1 {})",
    ),
    "other code": (
        """
class Network(Base):
    if rank:
        def forward(self, windows):
            return super().forward(windows) + 1
    else:
        def forward(self, windows):
            return super().forward(windows) - 1
network = Network()""",
        "network.forward (its code)",
    ),
    "a buffer that is not saved": (
        "network = Base()\nnetwork.register_buffer('shift', torch.ones(3) * rank, persistent=False)",
        "network.shift",
    ),
}
"""From a name to what makes a network that is another one in each process, and what is said of ranks 0 and 1."""


def network_of(source: str, rank: int) -> Any:
    """As the process of this rank makes it."""
    return module("user_script", f"rank = {rank}\n{SCRIPT}\n{source}").network
