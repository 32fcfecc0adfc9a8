"""
How long are the ways? Calls of this package's functions, and the classes and files that they cross, counted.

    python -m benchmarks.ways            # of one window in the middle, and of the way to the first prediction
    python -m benchmarks.ways --calls    # and each function, with how often it is called

A function that goes on (a generator) is counted each time. Only public names are used, so that it counts earlier
versions, too: `PYTHONPATH=/path/of/another/checkout python benchmarks/ways.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Spacing

import monai_chunked
from monai_chunked import ChunkedSlidingWindowInferer

PACKAGE = Path(monai_chunked.__file__).parent
ROI, IMAGE = 8, 32


class Call(NamedTuple):
    """Of a function of this package."""

    file: str
    """Or the module, of what a decorator has written, such as a dataclass."""

    owner: str | None
    """The class of the object that it is a method of."""

    name: str


class Ways(torch.nn.Module):
    """A network that does nothing, but for keeping the calls of this package from one window to the next."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.ways: list[list[Call]] = [[]]

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.ways.append([])
        return windows.repeat(1, self.classes, 1, 1, 1)

    def follow(self, call: Callable[[], Any]) -> None:
        """In this thread."""
        sys.setprofile(self._profile)
        try:
            call()
        finally:
            sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        code, module = frame.f_code, frame.f_globals.get("__name__", "")
        if event != "call" or not module.startswith(f"{PACKAGE.name}."):
            return
        if code.co_name.startswith("<") and code.co_name != "<lambda>":  # a comprehension, or a module that is imported
            return
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        owner = first if isinstance(first, type) else type(first)
        file = Path(code.co_filename)
        self.ways[-1].append(
            Call(
                file.relative_to(PACKAGE).as_posix() if PACKAGE in file.parents else module,
                owner.__qualname__ if owner.__module__.startswith(f"{PACKAGE.name}.") else None,
                code.co_name,
            )
        )


def windows() -> list[list[Call]]:
    """From each prediction to the next one, in the middle half of a volume; labels are taken of finished chunks."""
    network = Ways(classes=3)
    inferer = ChunkedSlidingWindowInferer(ROI, overlap=0.5, mode="gaussian", postprocessing="argmax")
    network.follow(lambda: inferer(torch.rand(1, 1, *[IMAGE] * 3), network))
    quarter = len(network.ways) // 4
    return network.ways[quarter:-quarter]


def first_prediction() -> list[Call]:
    """From the call to the network, where scores are brought back to the image's grid."""
    network = Ways(classes=3)
    image = Spacing((2.0, 2.0, 2.0))(MetaTensor(torch.rand(1, *[IMAGE] * 3), affine=torch.eye(4)))
    inferer = ChunkedSlidingWindowInferer(ROI, overlap=0.5, mode="gaussian", postprocessing="argmax", inverse="image")
    network.follow(lambda: inferer(image[None], network))
    return network.ways[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", action="store_true", help="print each function, and how often it is called")
    arguments = parser.parse_args()
    middle = windows()
    ways = {
        "a window in the middle": middle[len(middle) // 2],
        "one of those that finish chunks": max(middle, key=len),
        "to the first prediction, with an inverse": first_prediction(),
    }
    print(f"{PACKAGE}\n\n| | calls | functions | classes | files |\n| --- | ---: | ---: | ---: | ---: |")
    for name, calls in ways.items():
        classes = {(call.file, call.owner) for call in calls if call.owner}
        sizes = len(calls), len(set(calls)), len(classes), len({call.file for call in calls})
        print("|", " | ".join([name, *(f"{size:,}" for size in sizes)]), "|")
    for name, calls in ways.items() if arguments.calls else ():
        print(f"\n{name}")
        for call, times in Counter(calls).most_common():
            print(f"{times:>6}  {call.file}  {call.owner + '.' if call.owner else ''}{call.name}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
