"""A run whose parts are done in other processes: what each of these has of it, and what becomes of what they make."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch

from monai_chunked.chunks.ending import form_of
from monai_chunked.chunks.finisher import Finisher, HeadFinisher
from monai_chunked.chunks.handing_on import Products
from monai_chunked.chunks.levels import Memory
from monai_chunked.chunks.postprocessing import functions_of
from monai_chunked.chunks.stages import Finished
from monai_chunked.inputs.owned import Owned
from monai_chunked.inputs.source import Source, source_of
from monai_chunked.outputs.base import Form, OutputWriter, Result
from monai_chunked.plan.boxes import Box
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.plan.heads import Heads
from monai_chunked.plan.layout import Layout
from monai_chunked.plan.window_grid import Skipped
from monai_chunked.recovery.left import Cuts
from monai_chunked.run.call import Call
from monai_chunked.run.calling import calling
from monai_chunked.run.identity import fingerprint_of_call
from monai_chunked.run.one_channel import warn_of_one_channel
from monai_chunked.run.predicting import predict
from monai_chunked.run.settings import Settings
from monai_chunked.run.sharing import HandedOver, Unshared
from monai_chunked.transforms.inversion import Inversion
from monai_chunked.windows.predictor import BoundNetwork
from monai_chunked.workers.halves import Sums, first_half, second_half
from monai_chunked.workers.parts import Agreed, predict_part

__all__ = ["Begun", "Ended", "Made", "Worker", "put", "results_of"]


class Made(NamedTuple):
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


class Begun(NamedTuple):
    """The first half of a part.

    Attributes:
        boxes: that are finished.
        sums: that it hands on, for each part that gets some.
        products: that are to be added to what others hand on.
    """

    boxes: list[Made]
    sums: Sums
    products: Products


class Ended(NamedTuple):
    """A part, when its second half is done.

    Attributes:
        boxes: all that it makes.
        sums: that it hands on after it has got them itself, for each part that gets some.
    """

    boxes: list[Made]
    sums: Sums


class Worker:
    """What a process that does parts has of a run. It can be pickled: inputs are opened, networks built, where it is.

    Of an input in a file goes the way to it, and of one in memory all voxels.

    One object serves several threads. The network is built when it is needed first, and kept.

    Args:
        settings: what is asked for. Where the result goes does not matter here.
        inputs: ``(B, C, *spatial)``, or a function that opens them.
        network_factory: builds the network.
    """

    def __init__(self, settings: Settings, inputs: Any, network_factory: Callable[[], Any]) -> None:
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

    def fingerprint(
        self, mask: Owned, output: tuple[Any, Any], inversion: Inversion | None
    ) -> tuple[dict[str, str], list[str]]:
        """What the result depends on, as a run in one process says it.

        Args:
            mask: of the run.
            output: type and settings of the output.
            inversion: how predictions are brought to the patients' grids.
        """
        with self._calling(lambda *_: None, inversion) as call:
            call = replace(call, settings=replace(call.settings, mask=mask.array))
            return fingerprint_of_call(call, self.network, None, output)

    def agree(self, skipped: Skipped | None) -> Agreed:
        """What the first batch shows of the network, and how chunks are cut. There are no parts yet."""
        with self._calling(lambda *_: None, None) as call, torch.no_grad():
            try:
                predict(replace(call, skipped=skipped, share=_First()), self.network, None, None)
            except _Shown as shown:
                return Agreed(shown.heads, [grid.cuts for grid in shown.layout.grids], ())
        raise AssertionError("a first batch was not predicted")

    def make(self, part: int, agreed: Agreed, skipped: Skipped | None, inversion: Inversion | None) -> list[Made]:
        """The boxes that a part makes, but for those that are written already.

        Args:
            part: which one.
            agreed: what all workers know.
            skipped: the windows that are known to be skipped.
            inversion: how predictions are brought to the patients' grids, which is known for all heads.
        """
        made: list[Made] = []
        with self._making(made, agreed, skipped, inversion) as call:
            predict_part(call, self.network, None, agreed, part)
        return made

    def begin(self, part: int, agreed: Agreed, skipped: Skipped | None) -> Begun:
        """The first half of a part, where parts hand on, which needs no inverse."""
        made: list[Made] = []
        with self._making(made, agreed, skipped) as call:
            return Begun(made, *first_half(call, self.network, None, agreed, part))

    def end(self, part: int, agreed: Agreed, skipped: Skipped | None, begun: Begun, given: Mapping[int, Any]) -> Ended:
        """The second half of a part.

        Args:
            part, agreed, skipped: as above.
            begun: the first half.
            given: for each part, the sums that it has handed on to this one, in that order.
        """
        made = list(begun.boxes)
        with self._making(made, agreed, skipped) as call:
            return Ended(made, second_half(call, self.network, agreed, part, begun.products, given))

    @contextmanager
    def _making(
        self, made: list[Made], agreed: Agreed, skipped: Skipped | None, inversion: Inversion | None = None
    ) -> Iterator[Call]:
        """A call whose boxes are added to a list."""

        def put(result: Result, image: int, box: Box, chunk: torch.Tensor) -> None:
            values = torch.empty(chunk.shape, dtype=chunk.dtype).copy_(chunk)
            made.append(Made(agreed.heads.number(result.name), image, box, values))

        with self._calling(put, inversion) as call, torch.no_grad():
            yield replace(call, skipped=skipped)

    def _calling(self, put: Callable[[Result, int, Box, torch.Tensor], None], inversion: Inversion | None) -> Any:
        return calling(replace(self.settings, output=HandedOver(put)), self.source, inversion, None)


class _Shown(Exception):
    """The network has shown what was asked of it."""

    def __init__(self, heads: Heads, layout: Layout) -> None:
        super().__init__()
        self.heads = heads
        self.layout = layout


class _First(Unshared):
    """The first prediction is all that is wanted."""

    def agree(self, heads: Heads, lay_out: Callable[[Sequence[Cuts] | None], Layout]) -> Layout:
        raise _Shown(heads, lay_out(None))


def results_of(call: Call, agreed: Agreed, layout: Layout) -> Finisher:
    """What takes the boxes that workers make. The results that can be started are.

    Args:
        call: what is known before the network runs.
        agreed: what all workers know.
        layout: the chunks of each head.
    """
    functions = functions_of(agreed.heads, call.settings.postprocessing)
    warn_of_one_channel(functions, agreed.heads)
    endings = [call.ending(grid) for grid in layout.grids]
    each = list(zip(endings, agreed.heads, functions))
    forms = [form_of(*one, call.result_dtype) for one in each]
    size = sum(prod(ending.size) * form.voxel_bytes for ending, form in zip(endings, forms) if form)
    call.check_results(agreed.heads, len(call.metadata) * size)

    def create(number: int, form: Form) -> OutputWriter:
        result = call.result(agreed.heads[number], endings[number], form)
        return call.recovery.writer(number, call.output, result)

    heads: list[HeadFinisher] = []
    try:
        for number, head in enumerate(agreed.heads):
            form = call.recovery.results.get(number, forms[number])
            how = (partial(create, number), form, lambda writer: not writer.in_memory)
            heads.append(HeadFinisher(head.name, [], *how))
    except BaseException:
        Finisher(heads).abandon()
        raise
    return Finisher(heads)


def put(results: Finisher, made: Made) -> None:
    """Bring a box to its result."""
    at = ChunkId(made.image, made.head, tuple(side.start for side in made.box))
    results.put(Finished(at, made.box, made.values, Memory(made.values)))
