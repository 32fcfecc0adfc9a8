"""What is refused, when, and in which words: the parameter, its value, and what would be accepted."""

from __future__ import annotations

import errno
import functools
import os
import shlex
import shutil
import subprocess
import sys
import traceback
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer, sliding_window_inference

from monai_chunked import ChunkedSliceInferer, ChunkedSlidingWindowInferer, chunked_sliding_window_inference

VOLUME = torch.linspace(0, 1, 12**3).reshape(1, 1, 12, 12, 12)
WINDOWS = dense_patch_slices((12, 12, 12), (8, 8, 8), (6, 6, 6))

DiskUsage = namedtuple("DiskUsage", "total used free")


class Network:
    """Two scores for each voxel, and a count of the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return torch.cat([windows, 1 - windows], 1)


def by_class(inputs: Any, network: Any, condition: Any = None, **parameters: Any) -> Any:
    condition = {} if condition is None else {"condition": condition}
    return ChunkedSlidingWindowInferer(**{"roi_size": 8, **parameters})(inputs, network, **condition)


def by_function(inputs: Any, network: Any, **parameters: Any) -> Any:
    parameters = {"roi_size": 8, "sw_batch_size": 1, **parameters}
    return chunked_sliding_window_inference(inputs, predictor=network, **parameters)


both_entries = pytest.mark.parametrize("infer", [by_class, by_function])


def shown(error: BaseException) -> str:
    """The error as a user reads it at the end of a traceback."""
    return "".join(traceback.format_exception_only(type(error), error))


def position(window: tuple[slice, ...]) -> str:
    return ", ".join(f"{s.start}:{s.stop}" for s in window)


def failing_at(call: int, error: BaseException) -> Callable[[torch.Tensor], torch.Tensor]:
    calls = iter(range(1, 1000))

    def network(windows: torch.Tensor) -> torch.Tensor:
        if next(calls) == call:
            raise error
        return windows

    return network


def changing_at(call: int, change: Callable[[torch.Tensor], Any], before: Any = None) -> Callable[[torch.Tensor], Any]:
    calls = iter(range(1, 1000))
    before = before or (lambda windows: windows)
    return lambda windows: change(windows) if next(calls) >= call else before(windows)


# ---------------------------------------------------------------- parameters

REFUSED = {
    "roi_size with too few dimensions": (
        {"roi_size": (8, 8)},
        ValueError,
        ["roi_size=(8, 8)", "2 dimension", "(1, 1, 12, 12, 12)", "3 spatial dimension"],
    ),
    "roi_size with too many dimensions": ({"roi_size": [8] * 4}, ValueError, ["roi_size=[8, 8, 8, 8]", "4 dimension"]),
    "roi_size in an array of one": ({"roi_size": np.array([8])}, ValueError, ["roi_size=[8]", "3 spatial dimension"]),
    "roi_size of fractions": ({"roi_size": 7.5}, TypeError, ["roi_size=7.5", "int"]),
    "overlap of one": ({"overlap": 1}, ValueError, ["overlap=1", "at least 0", "less than 1"]),
    "overlap of one in one dimension": ({"overlap": (0, 0.5, 1.0)}, ValueError, ["overlap=(0, 0.5, 1.0)", "every"]),
    "negative overlap": ({"overlap": -0.25}, ValueError, ["overlap=-0.25", "at least 0"]),
    "overlap that is no number": ({"overlap": float("nan")}, ValueError, ["overlap=nan", "at least 0"]),
    "overlap in words": ({"overlap": "half"}, (TypeError, ValueError), ["overlap='half'", "number"]),
    "overlap for two of three dimensions": ({"overlap": (0.5, 0.5)}, ValueError, ["overlap=(0.5, 0.5)", "3 spatial"]),
    "sw_batch_size of zero": ({"sw_batch_size": 0}, ValueError, ["sw_batch_size=0", "at least 1"]),
    "negative sw_batch_size": ({"sw_batch_size": -2}, ValueError, ["sw_batch_size=-2", "at least 1"]),
    "sw_batch_size of a fraction": ({"sw_batch_size": 1.5}, TypeError, ["sw_batch_size=1.5", "float", "integer"]),
    "chunk_size of zero": ({"chunk_size": 0}, ValueError, ["chunk_size=0", "at least 1"]),
    "negative chunk_size in one dimension": ({"chunk_size": (4, -1, 4)}, ValueError, ["chunk_size=(4, -1, 4)", "1"]),
    "chunk_size of the wrong length": ({"chunk_size": (4, 4)}, ValueError, ["chunk_size=(4, 4)", "3 spatial"]),
    "chunk_size of nothing": ({"chunk_size": ()}, ValueError, ["chunk_size=()", "3 spatial"]),
    "chunk_size of fractions": ({"chunk_size": (4, 4, 2.5)}, TypeError, ["chunk_size=(4, 4, 2.5)", "integer"]),
    "sigma_scale of zero": ({"sigma_scale": 0, "mode": "gaussian"}, ValueError, ["sigma_scale=0", "more than 0"]),
    "negative sigma_scale in one dimension": (
        {"sigma_scale": (0.125, -0.125, 0.125), "mode": "gaussian"},
        ValueError,
        ["sigma_scale=(0.125, -0.125, 0.125)", "more than 0"],
    ),
    "sigma_scale of the wrong length": (
        {"sigma_scale": (0.1, 0.1), "mode": "gaussian"},
        ValueError,
        ["sigma_scale=(0.1, 0.1)", "3 spatial"],
    ),
    "sigma_scale in words": (
        {"sigma_scale": "wide", "mode": "gaussian"},
        (TypeError, ValueError),
        ["sigma_scale='wide'", "number"],
    ),
    "unknown mode": ({"mode": "linear"}, ValueError, ["mode='linear'", "'constant', 'gaussian'"]),
    "unknown padding_mode": (
        {"padding_mode": "mirror"},
        ValueError,
        ["padding_mode='mirror'", "'constant', 'reflect', 'replicate', 'circular'"],
    ),
    "unknown output": ({"output": "gpu"}, ValueError, ["output='gpu'", "'auto', 'device', 'cpu', 'disk'"]),
    "no output": ({"output": None}, ValueError, ["output=None", "'auto', 'device', 'cpu', 'disk'"]),
    "unknown postprocessing": ({"postprocessing": "softmax"}, ValueError, ["postprocessing='softmax'", "'argmax'"]),
    "unknown postprocessing of one output": ({"postprocessing": ("argmax", 3)}, ValueError, ["3", "'argmax'"]),
    "buffer_dim that is no spatial dimension": (
        {"buffer_steps": 1, "buffer_dim": 3},
        ValueError,
        ["buffer_dim=3", "-3", "less than 3"],
    ),
    "negative buffer_dim that is no spatial dimension": (
        {"buffer_steps": 1, "buffer_dim": -4},
        ValueError,
        ["buffer_dim=-4", "-3", "less than 3"],
    ),
    "condition of another spatial size": (
        {"condition": torch.zeros(1, 1, 12, 12, 11)},
        ValueError,
        ["condition", "(1, 1, 12, 12, 11)", "(1, 1, 12, 12, 12)"],
    ),
    "condition of another batch size": (
        {"condition": torch.zeros(2, 1, 12, 12, 12)},
        ValueError,
        ["condition", "(2, 1, 12, 12, 12)", "(1, 1, 12, 12, 12)"],
    ),
    "output_dir that cannot be created": (
        {"output": "disk", "output_dir": f"{__file__}/results/of today"},
        NotADirectoryError,
        ["output_dir", __file__, "not a folder"],
    ),
    "output_dir that cannot be created, in case of need": (
        {"output": "auto", "output_dir": f"{__file__}/results"},
        NotADirectoryError,
        ["output_dir", __file__, "not a folder"],
    ),
    "output_dir that is a file": (
        {"output": "disk", "output_dir": __file__},
        NotADirectoryError,
        ["output_dir", __file__, "not a folder"],
    ),
    "output_dir that is no path": ({"output": "disk", "output_dir": 3.5}, TypeError, ["output_dir=3.5", "path"]),
}


@both_entries
@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_the_first_window_in_words_that_name_parameter_value_and_what_is_accepted(
    case: str, infer: Callable[..., Any]
) -> None:
    parameters, error, words = REFUSED[case]
    network = Network()
    with pytest.raises(error) as caught:
        infer(VOLUME, network, **parameters)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"the message does not say {missing}: {caught.value}"
    assert network.calls == 0


@pytest.mark.parametrize("roi_size", [(8, 8), (8, 8, 8)])
def test_data_with_the_channel_last_is_refused_and_told_how_to_bring_it_first(roi_size: tuple[int, ...]) -> None:
    dims = len(roi_size)
    channel_last = torch.zeros(1, 12, 12, 12, 1) if dims == 2 else torch.zeros(1, 12, 12, 12, 2, 1)
    with pytest.raises(ValueError, match=r"EnsureChannelFirst|must have length"):  # MONAI 1.6, MONAI 1.5
        SlidingWindowInferer(roi_size)(channel_last, Network())
    with pytest.raises(ValueError, match=r"channel last .* EnsureChannelFirst"):
        ChunkedSlidingWindowInferer(roi_size)(channel_last, Network())


INPUTS_REFUSED = {
    "a list of images": ([VOLUME[0]], TypeError, ["inputs", "torch.Tensor", "array", "list"]),
    "no batch and channel": (VOLUME[0, 0, 0], ValueError, ["inputs", "(B, C, *spatial)", "(12, 12)"]),
    "no image": (VOLUME[:0], ValueError, ["inputs", "empty", "(0, 1, 12, 12, 12)"]),
    "no voxel": (VOLUME[..., :0], ValueError, ["inputs", "empty", "(1, 1, 12, 12, 0)"]),
    "complex numbers": (VOLUME.to(torch.complex64), TypeError, ["inputs", "torch.complex64", "channels"]),
    "an array with no batch and channel": (VOLUME[0, 0].numpy()[0], ValueError, ["inputs", "(B, C, *spatial)"]),
    "an array of complex numbers": (VOLUME.numpy().astype("c8"), TypeError, ["inputs", "complex64", "channels"]),
    "an array of words": (VOLUME.numpy().astype("U9"), TypeError, ["inputs", "<U9", "integers and floats"]),
}


@both_entries
@pytest.mark.parametrize("case", INPUTS_REFUSED)
def test_inputs_that_are_no_batch_of_images_are_refused_before_the_first_window(
    case: str, infer: Callable[..., Any]
) -> None:
    inputs, error, words = INPUTS_REFUSED[case]
    network = Network()
    with pytest.raises(error) as caught:
        infer(inputs, network)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"the message does not say {missing}: {caught.value}"
    assert network.calls == 0


def test_a_sigma_scale_that_gives_nan_with_monai_is_refused_and_the_smallest_that_does_not_is_accepted() -> None:
    def infer(inferer: type, sigma_scale: float) -> torch.Tensor:
        return inferer(7, mode="gaussian", sigma_scale=sigma_scale)(VOLUME, Network())

    assert infer(SlidingWindowInferer, 0.0).isnan().any()
    with pytest.raises(ValueError, match="sigma_scale"):
        infer(ChunkedSlidingWindowInferer, 0.0)
    assert torch.equal(infer(ChunkedSlidingWindowInferer, 1e-3), infer(SlidingWindowInferer, 1e-3))


def test_sigma_scale_is_not_looked_at_where_it_is_not_used_as_in_monai() -> None:
    reference = SlidingWindowInferer(8, sigma_scale=0.0)(VOLUME, Network())
    assert torch.equal(ChunkedSlidingWindowInferer(8, sigma_scale=0.0)(VOLUME, Network()), reference)


@pytest.mark.skipif("condition" not in (SlidingWindowInferer.__call__.__doc__ or ""), reason="MONAI has no condition")
def test_the_class_refuses_a_condition_with_another_number_of_channels_as_monai_does() -> None:
    condition = torch.zeros(1, 2, 12, 12, 12)
    for inferer in (SlidingWindowInferer(8), ChunkedSlidingWindowInferer(8)):
        network = Network()
        with pytest.raises(ValueError, match=r"condition.*\(1, 2, 12, 12, 12\)|condition.*\[1, 2, 12, 12, 12\]"):
            inferer(VOLUME, network, condition=condition)
        assert network.calls == 0


def test_a_roi_weight_map_of_another_size_is_refused_before_the_first_window() -> None:
    network = Network()
    with pytest.raises(ValueError, match=r"roi_weight_map.*\(3, 4, 5\).*\(8, 8, 8\)"):
        by_function(VOLUME, network, roi_weight_map=torch.ones(3, 4, 5))
    assert network.calls == 0


@pytest.mark.parametrize(
    ("padding_mode", "roi_size", "inputs"),
    [
        ("reflect", 36, VOLUME),  # mirrored voxels of 12 are at most 11 on each side
        ("circular", 60, VOLUME),
        ("replicate", 8, torch.zeros(1, 1, 4, 4, 4, 4)),  # PyTorch pads four dimensions with constants only
    ],
)
def test_padding_that_pytorch_refuses_is_refused_with_mode_and_sizes(
    padding_mode: str, roi_size: int, inputs: torch.Tensor
) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        SlidingWindowInferer(roi_size, padding_mode=padding_mode)(inputs, Network())
    network = Network()
    with pytest.raises(ValueError, match="padding_mode") as caught:
        ChunkedSlidingWindowInferer(roi_size, padding_mode=padding_mode)(inputs, network)
    size = tuple(inputs.shape[2:])
    for word in (f"padding_mode={padding_mode!r}", str(size), str((roi_size,) * len(size))):
        assert word in str(caught.value)
    assert network.calls == 0


@pytest.mark.parametrize(
    ("parameters", "shape", "words"),
    [
        ({"spatial_dim": 3, "roi_size": (8, 8)}, (1, 1, 12, 12, 12), ["spatial_dim=3", "0, 1 or 2"]),
        ({"spatial_dim": 0, "roi_size": (8, 8, 8)}, (1, 1, 12, 12, 12), ["roi_size=(8, 8, 8)", "2 dimensions"]),
        ({"spatial_dim": 0, "roi_size": (8, 8)}, (1, 1, 12, 12), ["(1, 1, 12, 12)", "(B, C, H, W, D)"]),
    ],
)
def test_slices_of_anything_but_a_volume_are_refused(
    parameters: dict[str, Any], shape: tuple[int, ...], words: list[str]
) -> None:
    network = Network()
    with pytest.raises(ValueError, match="spatial_dim") as caught:
        ChunkedSliceInferer(**parameters)(torch.zeros(shape), network)
    assert [word for word in words if word not in str(caught.value)] == []
    assert network.calls == 0


# ---------------------------------------------------------------- the network


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
                by_class(VOLUME, failing_at(2, RuntimeError("boom")), postprocessing="argmax")
            assert torch.is_grad_enabled() is enabled


# ---------------------------------------------------------------- predictions

CHANGES = {
    "more channels": (changing_at, lambda w: torch.cat([w, w], 1), "(1, 8, 8, 8)", "(2, 8, 8, 8)"),
    "another size": (changing_at, lambda w: w[..., ::2], "(1, 8, 8, 8)", "(1, 8, 8, 4)"),
    "more outputs": (changing_at, lambda w: (w, w), "(1, 8, 8, 8)", "(1, 8, 8, 8), (1, 8, 8, 8)"),
    "names for its outputs": (changing_at, lambda w: {"scores": w}, "(1, 8, 8, 8)", "scores: (1, 8, 8, 8)"),
    "other names": (
        functools.partial(changing_at, before=lambda w: {"scores": w}),
        lambda w: {"logits": w},
        "scores: (1, 8, 8, 8)",
        "logits: (1, 8, 8, 8)",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("sw_batch_size", [1, 2])
def test_predictions_that_change_from_one_window_to_the_next_are_refused_with_both_and_the_window(
    case: str, sw_batch_size: int
) -> None:
    make, change, before, after = CHANGES[case]
    with pytest.raises(ValueError, match="the network must return the same") as caught:
        by_class(VOLUME, make(3, change), sw_batch_size=sw_batch_size)
    text = str(caught.value)
    assert f"{before} before, {after} for " in text
    assert f"image 0 [{position(WINDOWS[2 * sw_batch_size])}]" in text


@pytest.mark.parametrize("call", [1, 3])
def test_predictions_for_another_number_of_windows_are_refused_with_both_numbers_and_the_windows(call: int) -> None:
    with pytest.raises(ValueError, match="the network must return") as caught:
        by_class(VOLUME, changing_at(call, lambda w: w[:1]), sw_batch_size=2)
    text = str(caught.value)
    assert "(2, C, " in text
    assert "(1, 1, 8, 8, 8)" in text
    assert f"image 0 [{position(WINDOWS[2 * (call - 1)])}]" in text


@pytest.mark.parametrize(
    ("prediction", "error", "words"),
    [
        (lambda w: w.numpy(), TypeError, ["tensors", "ndarray"]),
        (lambda w: None, TypeError, ["tensors", "NoneType"]),
        (lambda w: {"scores": w, "note": "fine"}, TypeError, ["tensors", "str"]),
        (lambda w: (), ValueError, ["nothing"]),
        (lambda w: {}, ValueError, ["nothing"]),
        (lambda w: w[:, 0], ValueError, ["(1, 8, 8, 8)", "3 spatial dimensions"]),
        (lambda w: w[:, :0], ValueError, ["(1, 0, 8, 8, 8)"]),
    ],
)
def test_predictions_that_are_no_scores_of_the_windows_are_refused(
    prediction: Callable[[torch.Tensor], Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error, match="the network") as caught:
        by_class(VOLUME, prediction)
    text = str(caught.value)
    assert [word for word in [*words, f"image 0 [{position(WINDOWS[0])}]"] if word not in text] == []


def test_windows_whose_size_in_the_output_is_rounded_to_another_one_are_refused_with_both_sizes() -> None:
    def enlarge(windows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(windows, 15)  # 11 * (15 / 11) is less than 15 in floating point

    with pytest.raises(RuntimeError, match="must match the size"):
        SlidingWindowInferer(11)(torch.zeros(1, 1, 44), enlarge)
    with pytest.raises(ValueError, match=r"the network maps 11 voxels of spatial dimension 0 to 15.* window at 0"):
        ChunkedSlidingWindowInferer(11)(torch.zeros(1, 1, 44), enlarge)


# ---------------------------------------------------------------- postprocessing


@pytest.mark.parametrize(
    ("postprocessing", "returned"),
    [(lambda c: c[:, 1:], "(2, 3, 4, 4)"), (lambda c: c[0], "(4, 4, 4)"), (lambda c: c.sum(), "()")],
)
def test_postprocessing_that_changes_the_spatial_size_is_refused_with_both_shapes_and_the_chunk(
    postprocessing: Callable[[torch.Tensor], Any], returned: str
) -> None:
    with pytest.raises(ValueError, match="postprocessing must keep the spatial size") as caught:
        by_class(VOLUME, Network(), postprocessing=postprocessing, chunk_size=4)
    for word in ("(2, 4, 4, 4)", returned, "[0:4, 0:4, 0:4]"):
        assert word in str(caught.value)


def test_postprocessing_that_returns_nothing_is_refused_with_the_chunk() -> None:
    with pytest.raises((TypeError, ValueError), match=r"postprocessing.*NoneType") as caught:
        by_class(VOLUME, Network(), postprocessing=lambda chunk: None, chunk_size=4)
    assert "[0:4, 0:4, 0:4]" in str(caught.value)


@pytest.mark.parametrize("output", ["cpu", "disk"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda chunk: chunk[:1], ["(2, torch.float32)", "(1, torch.float32)"]),
        (lambda chunk: chunk.double(), ["(2, torch.float32)", "(2, torch.float64)"]),
    ],
    ids=["channels", "dtype"],
)
def test_postprocessing_that_changes_channels_or_dtype_between_chunks_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor], words: list[str], output: str
) -> None:
    with pytest.raises(ValueError, match="postprocessing must return the same") as caught:
        by_class(VOLUME, Network(), postprocessing=changing_at(3, change), chunk_size=4, output=output)
    assert [word for word in [*words, "[0:4, 0:4, 8:12]"] if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("postprocessing", "words"),
    [
        (("argmax", None), ["2 entries", "1 output"]),
        ({"scores": "argmax"}, ["['scores']", "1 output", "without names"]),
    ],
)
def test_postprocessing_that_does_not_match_the_outputs_is_refused_after_the_first_window(
    postprocessing: Any, words: list[str]
) -> None:
    network = Network()
    with pytest.raises(ValueError, match="postprocessing") as caught:
        by_class(VOLUME, network, postprocessing=postprocessing)
    assert [word for word in words if word not in str(caught.value)] == []
    assert network.calls == 1


def test_postprocessing_for_other_names_than_those_of_the_outputs_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"postprocessing.*\['logits'\].*\['aux', 'scores'\]"):
        by_class(VOLUME, lambda w: {"scores": w, "aux": w}, postprocessing={"logits": "argmax"})


# ---------------------------------------------------------------- the disk


@both_entries
def test_an_output_dir_that_cannot_be_written_to_is_refused_before_the_first_window(
    infer: Callable[..., Any], tmp_path: Path
) -> None:
    folder = Path("/proc")  # not even root may
    if not folder.is_dir():
        folder = tmp_path
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write to any folder")
    network = Network()
    with pytest.raises(PermissionError, match="output_dir cannot be written to") as caught:
        infer(VOLUME, network, output="disk", output_dir=folder)
    assert str(folder) in str(caught.value)
    assert network.calls == 0


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "temporary folder"])
def test_a_disk_without_room_for_one_channel_is_refused_before_the_first_window(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**6, 10**6 - 6000, 6000))
    network = Network()
    with pytest.raises(OSError, match="the output needs") as caught:
        by_class(VOLUME, network, output="disk", output_dir=tmp_path if named else None)
    assert caught.value.errno == errno.ENOSPC
    for word in (f"{4 * 12**3:,} bytes", "6,000", str(tmp_path)):
        assert word in str(caught.value)
    assert network.calls == 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "temporary folder"])
def test_a_disk_without_room_for_all_channels_and_outputs_is_refused_as_soon_as_their_number_is_known(
    outputs: int, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = 4 * 12**3
    free = channel * (2 * outputs) - 1  # two channels for each output
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**6, 10**6 - free, free))
    network = Network()
    with pytest.raises(OSError, match="needs") as caught:
        by_class(
            VOLUME,
            lambda w: (network(w),) * outputs,
            output="disk",
            output_dir=tmp_path if named else None,
        )
    assert caught.value.errno == errno.ENOSPC
    assert f"{free:,}" in str(caught.value)
    assert network.calls == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["cpu", "device"])
def test_an_output_in_memory_does_not_care_about_the_disk(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**6, 10**6, 0))
    reference = sliding_window_inference(VOLUME, 8, 1, Network())
    assert torch.equal(by_class(VOLUME, Network(), output=output), reference)


RUN_OUT_OF_ROOM = """
import os
import sys
import tempfile
import torch
from monai_chunked import ChunkedSlidingWindowInferer

folder, limit = sys.argv[1], int(sys.argv[2])
ballast = os.path.join(folder, "ballast")
tempfile.tempdir = folder
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def network(windows):
    network.calls += 1
    if not limit and network.calls == 2:  # somebody else takes the rest of the disk
        with open(ballast, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1024)):
                    pass
            except OSError:
                pass
    return windows.repeat(1, 4, 1, 1, 1)

for output_dir in ({"output_dir": folder}, {}):
    network.calls = 0
    try:
        ChunkedSlidingWindowInferer(8, output="disk", **output_dir)(torch.zeros(1, 1, 16, 16, 16), network)
        print("nothing was raised")
    except OSError as error:
        print(error)
    if os.path.exists(ballast):
        os.remove(ballast)
    print(os.listdir(folder))
"""


def assert_told(output: str, number: int, folder: Path) -> None:
    lines = output.splitlines()
    assert len(lines) == 4, lines
    for message, left in zip(lines[::2], lines[1::2]):
        assert f"[Errno {number}] {os.strerror(number)}" in message
        assert f"{4 * 4 * 16**3:,} bytes" in message
        assert str(folder) in message
        assert left == "[]"


def test_a_file_that_may_not_grow_to_the_size_of_the_output_is_told_with_path_and_bytes(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="this system has no limits on the size of files")
    command = [sys.executable, "-W", "ignore", "-c", RUN_OUT_OF_ROOM, str(tmp_path), "32768"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert_told(run.stdout, errno.EFBIG, tmp_path)


def test_a_disk_that_fills_up_during_the_run_does_no_harm_as_the_space_is_taken_before(tmp_path: Path) -> None:
    """On a real file system of 200 KiB, mounted where nobody else sees it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=200k none '{folder}'"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount], capture_output=True).returncode != 0:
        pytest.skip("this system does not let us mount a small disk")
    python = shlex.join([sys.executable, "-W", "ignore", "-c", RUN_OUT_OF_ROOM, str(folder), "0"])
    run = subprocess.run([*unshare, f"{mount} && {python}"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("nothing was raised") == 2


@pytest.mark.parametrize("output_dir", [True, False])
def test_bfloat16_is_refused_on_disk_before_the_first_window_as_a_npy_file_cannot_hold_it(
    output_dir: bool, tmp_path: Path
) -> None:
    network = Network()
    with pytest.raises(TypeError, match=r"torch\.bfloat16.*output='cpu'"):
        by_class(VOLUME.bfloat16(), network, output="disk", output_dir=tmp_path if output_dir else None)
    assert network.calls == 0
    assert not any(tmp_path.iterdir())


def test_bfloat16_that_postprocessing_returns_is_refused_on_disk(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"torch\.bfloat16"):
        by_class(VOLUME, Network(), postprocessing=torch.Tensor.bfloat16, output="disk", output_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_bfloat16_inputs_reach_the_disk_as_labels(tmp_path: Path) -> None:
    inputs = VOLUME.bfloat16()
    labels = by_class(inputs, Network(), postprocessing="argmax", output="disk", output_dir=tmp_path)
    assert torch.equal(labels, SlidingWindowInferer(8)(inputs, Network()).argmax(1, keepdim=True).to(torch.uint8))
