"""A run whose parts are done in other processes: what each of these has of it, and what becomes of what they make."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from monai_chunked.call.call import Call, Fingerprint
from monai_chunked.call.identity import fingerprint_of_call
from monai_chunked.call.settings import Settings
from monai_chunked.chunks.handing_on import Products
from monai_chunked.inputs.lazy.owned import Owned
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.outputs.base import Result
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.recovery.left import NOTHING_LEFT, Left
from monai_chunked.run.begun import Run
from monai_chunked.transforms.inversion import Inversion
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.halves import Sums, first_half, second_half
from monai_chunked.workers.part import HandedOver, SharedRun, first_heads, predict_part

__all__ = ["FirstHalf", "PartBox", "SecondHalf", "Worker"]


class PartBox(NamedTuple):
    """A box of a result.

    Attributes:
        head: index among the heads of the network.
        image: index in the input batch.
        box: its voxels.
        values: ``(C, *box)``, in CPU memory.
    """

    head: int
    image: int
    box: Box
    values: torch.Tensor


class FirstHalf(NamedTuple):
    """The first half of a part.

    Attributes:
        boxes: those that are finished.
        sums: handed on, for each part that gets some.
        products: to be added to what others hand on.
    """

    boxes: list[PartBox]
    sums: Sums
    products: Products


class SecondHalf(NamedTuple):
    """A part, when its second half is done.

    Attributes:
        boxes: all that it makes.
        sums: handed on after they came from other parts, for each part that gets some.
    """

    boxes: list[PartBox]
    sums: Sums


class Worker:
    """What a process that does parts has of a run. It can be pickled: inputs are opened, networks built, where it is.

    Of an input in a file its path is pickled, of one in memory all voxels.

    One object serves several threads. The network is built when it is needed first, and kept.

    Args:
        settings: what is asked for. Where the result goes does not matter here.
        inputs: ``(B, C, *spatial)``, or a function that opens them.
        network_factory: builds the network.
    """

    def __init__(self, settings: Settings, inputs: Any, network_factory: Callable[[], Callable[..., Any]]) -> None:
        self.settings = settings
        self.inputs = inputs if callable(inputs) else Owned(inputs)
        self.network_factory = network_factory
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("settings", "inputs", "network_factory")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._network: BoundNetwork | None = None

    @property
    def source(self) -> Source:
        """Where windows are read from."""
        with self._lock:
            if self._source is None:
                self._source = source_of(self.inputs.array if isinstance(self.inputs, Owned) else self.inputs())
            return self._source

    @property
    def network(self) -> BoundNetwork:
        """The network, built once."""
        with self._lock:
            if self._network is None:
                self._network = BoundNetwork(self.network_factory(), (), {})
            return self._network

    def fingerprint(self, mask: Owned, output: tuple[Any, Any] | None, inversion: Inversion | None) -> Fingerprint:
        """What the result depends on, as a run in one process says it.

        Args:
            mask: of the run.
            output: type and settings of the output.
            inversion: how predictions are brought to the patients' grids.
        """
        call = self._call(lambda *_: None, inversion)
        return fingerprint_of_call(replace(call, settings=replace(call.settings, mask=mask.array)), output)

    def first_heads(self, skipped: Skipped | None) -> Left:
        """What the first batch shows of the network, and how chunks are cut. There are no parts yet."""
        with torch.no_grad():
            heads, layout = first_heads(Run.of_worker(self._call(lambda *_: None, None), NOTHING_LEFT, skipped))
        return Left(heads, tuple(grid.cuts for grid in layout.grids))

    def make(self, part: int, shared: SharedRun, inversion: Inversion | None) -> list[PartBox]:
        """The boxes that a part makes, but for those that are written already.

        Args:
            part: which one.
            shared: what all workers know.
            inversion: how predictions are brought to the patients' grids, which is known for all heads.
        """
        boxes: list[PartBox] = []
        with torch.no_grad():
            predict_part(self._making(boxes, shared, inversion), shared, part)
        return boxes

    def begin(self, part: int, shared: SharedRun) -> FirstHalf:
        """The first half of a part, where parts hand on, which needs no inverse.

        Args:
            part: which one.
            shared: what all workers know.
        """
        boxes: list[PartBox] = []
        run = shared.run_of(self._making(boxes, shared))
        with torch.no_grad():
            return FirstHalf(boxes, *first_half(run, shared.ranges, part))

    def end(self, part: int, shared: SharedRun, begun: FirstHalf, sums: Sums) -> SecondHalf:
        """The second half of a part.

        Args:
            part: which one.
            shared: what all workers know.
            begun: the first half.
            sums: for each part those that it has handed on to this one, in the order in which it did.
        """
        boxes = list(begun.boxes)
        run = shared.run_of(self._making(boxes, shared))
        with torch.no_grad():
            return SecondHalf(boxes, second_half(run, shared.ranges, part, products=begun.products, sums=sums))

    def _making(self, boxes: list[PartBox], shared: SharedRun, inversion: Inversion | None = None) -> Call:
        """A call whose boxes are added to a list."""
        heads = shared.left.heads
        assert heads is not None

        def put(result: Result, image: int, box: Box, chunk: torch.Tensor) -> None:
            values = torch.empty(chunk.shape, dtype=chunk.dtype).copy_(chunk)
            boxes.append(PartBox(heads.number(result.name), image, box, values))

        return self._call(put, inversion)

    def _call(self, put: Callable[[Result, int, Box, torch.Tensor], None], inversion: Inversion | None) -> Call:
        settings = replace(self.settings, output=HandedOver(put))
        return Call.inverting(self.source, self.network, settings, inversion=inversion)
