"""An error inside the network is raised itself and names the window."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

import pytest
import torch

from tests.refusals import VOLUME, WINDOWS, by_class, failing_at, position, shown


class Unusual(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, layer: int, *, reason: str) -> None:
        super().__init__()
        self.layer, self.reason = layer, reason

    def __str__(self) -> str:
        return f"layer {self.layer}: {self.reason}"


class Formatted(Exception):
    """Does not show its arguments."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"<{self.message}>"


PLAIN: list[Callable[[], Exception]] = [
    lambda: RuntimeError("boom"),
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: OSError("no weights"),
    lambda: Exception("?"),
]
OTHERS: list[Callable[[], Exception]] = [
    lambda: KeyError("weights"),
    lambda: OSError(errno.EIO, "Input/output error", "weights.pt"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    lambda: StopIteration(),
    lambda: AssertionError(),
    lambda: ValueError(3),
    lambda: NotImplementedError("two", "arguments"),
    lambda: Unusual(3, reason="dead"),
    lambda: Formatted("angular"),
]
name = {make: repr(make()) for make in PLAIN + OTHERS}.get
needs_notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="only Python >= 3.11 can add a note to an error")


@pytest.mark.parametrize("make", PLAIN + [pytest.param(make, marks=needs_notes) for make in OTHERS], ids=name)
def test_an_error_inside_the_network_is_raised_itself_and_names_the_window(make: Callable[[], Exception]) -> None:
    error = make()
    with pytest.raises(type(error)) as caught:
        by_class(VOLUME, failing_at(5, error))
    assert caught.value is error
    assert f"image 0 [{position(WINDOWS[4])}]" in shown(error)


@pytest.mark.parametrize("make", OTHERS, ids=name)
def test_an_error_inside_the_network_keeps_what_a_handler_would_look_at(make: Callable[[], Exception]) -> None:
    """The key of a KeyError, the number of an OSError."""
    error, untouched = make(), make()
    with pytest.raises(type(error)):
        by_class(VOLUME, failing_at(2, error))
    assert error.args == untouched.args
    assert {k: v for k, v in vars(error).items() if k != "__notes__"} == vars(untouched)
    assert str(error) == str(untouched)


def test_an_error_inside_the_network_names_every_window_of_the_batch_and_its_image() -> None:
    inputs = VOLUME.expand(2, -1, -1, -1, -1)
    assert len(WINDOWS) == 8
    with pytest.raises(RuntimeError, match="boom") as caught:
        by_class(inputs, failing_at(3, RuntimeError("boom")), sw_batch_size=3)  # windows 6, 7 and 8 of 16
    text = shown(caught.value)
    for image, window in ((0, WINDOWS[6]), (0, WINDOWS[7]), (1, WINDOWS[0])):
        assert f"image {image} [{position(window)}]" in text
    assert f"image 0 [{position(WINDOWS[0])}]" not in text
    assert f"image 1 [{position(WINDOWS[1])}]" not in text


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_interrupt_passes_untouched(interrupt: BaseException) -> None:
    before = shown(interrupt)
    with pytest.raises(type(interrupt)) as caught:
        by_class(VOLUME, failing_at(2, interrupt))
    assert caught.value is interrupt
    assert shown(interrupt) == before


def test_gradients_are_as_they_were_after_an_error() -> None:
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            with pytest.raises(RuntimeError, match="boom"):
                by_class(VOLUME, failing_at(2, RuntimeError("boom")), postprocessing=torch.sigmoid)
            assert torch.is_grad_enabled() is enabled
