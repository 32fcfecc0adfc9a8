"""Windows are read while the network runs on those before, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from monai_chunked import ChunkedSlidingWindowInferer

pytestmark = pytest.mark.usefixtures("no_gradients")

ROWS = 4
"""Four windows of so many rows, which are read one after the other."""


class Array:
    """Calls a function with the first row of what is read."""

    shape = (1, 1, 4 * ROWS, 5)
    dtype = np.dtype(np.float32)

    def __init__(self, on_read: Callable[[int], None]) -> None:
        self.on_read = on_read

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        self.on_read(index[2].start)
        return np.ones(self.shape, self.dtype)[index]


def infer(array: Array, network: Callable[[torch.Tensor], torch.Tensor], **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer((ROWS, 5), overlap=0, **parameters)(array, network)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("monai_chunked-read")]


def test_the_next_windows_are_read_while_the_network_runs() -> None:
    read = {start: threading.Event() for start in range(0, 4 * ROWS, ROWS)}
    calls = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        for k, event in enumerate(read.values()):
            if k <= len(calls):  # the network would wait forever for what is read after it
                assert event.wait(300)
            else:  # and one batch ahead is enough
                assert not event.is_set()
        return windows

    assert (infer(Array(lambda start: read[start].set()), network) == 1).all()
    assert len(calls) == 4
    assert not readers()


def test_an_error_of_the_input_names_the_windows_that_were_being_read() -> None:
    def fail(start: int) -> None:
        if start == 2 * ROWS:
            raise OSError("the disk is gone")

    calls = []
    with pytest.raises(OSError, match=r"the disk is gone \(while reading window image 0 \[8:12, 0:5\]\)"):
        infer(Array(fail), lambda windows: calls.append(1) or windows)
    assert len(calls) == 2  # what was read before it is predicted before it is raised
    assert not readers()


def test_no_thread_is_left_after_an_error_of_the_network() -> None:
    def network(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        infer(Array(lambda _: None), network)
    assert not readers()


@pytest.mark.parametrize("enabled", [True, False])
def test_preprocessing_does_not_notice_that_it_runs_in_a_thread(enabled: bool) -> None:
    seen = []

    def preprocessing(data: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_grad_enabled()))
        return data

    with torch.autocast("cpu", torch.float16, enabled):
        infer(Array(lambda _: None), lambda windows: windows, preprocessing=preprocessing)
    assert len(seen) == 4
    assert set(seen) == {(enabled, torch.float16, False)}
