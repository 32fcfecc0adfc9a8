"""What is refused before the first window, and in which words: the parameter, its value, and what would be accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSliceInferer, ChunkedSlidingWindowInferer
from tests.refusals import VOLUME, Network, both_entries, by_function

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
    "unknown mode": (
        {"mode": "linear"},
        ValueError,
        ["mode='linear'", "'constant', 'gaussian', 'hann', 'nnunet', 'crop'"],
    ),
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
    "unknown border": (
        {"border": "reflect"},
        ValueError,
        ["border='reflect'", "'edge', 'even', 'squeeze', 'adaptive', 'crop'"],
    ),
    "unknown border in one dimension": ({"border": ("edge", "even", 3)}, ValueError, ["border=3", "'edge', 'even'"]),
    "border for two of three dimensions": ({"border": ("edge", "even")}, ValueError, ["border=", "3 spatial"]),
    "windows that are cut for networks that know one shape": (
        {"border": "adaptive", "fill_batches": True},
        ValueError,
        ["fill_batches=True", "border='adaptive'"],
    ),
    "min_size where nothing is cut": ({"min_size": 4}, ValueError, ["min_size=4", "border='adaptive'"]),
    "min_size for two of three dimensions": (
        {"border": "adaptive", "min_size": (4, 4)},
        ValueError,
        ["min_size=(4, 4)", "3 spatial"],
    ),
    "min_size of zero": ({"border": "adaptive", "min_size": 0}, ValueError, ["min_size=0", "at least 1"]),
    "min_size above roi_size": (
        {"border": "adaptive", "min_size": (4, 4, 9)},
        ValueError,
        ["min_size=(4, 4, 9)", "roi_size=(8, 8, 8)"],
    ),
    "background in words": ({"background": "air"}, TypeError, ["background='air'", "number", "channel"]),
    "background of nothing": ({"background": ()}, TypeError, ["background=()", "number", "channel"]),
    "mirror_axes outside": ({"mirror_axes": (0, 3)}, ValueError, ["mirror_axes=(0, 3)", "from 0 to 2", "(0, 1, 2)"]),
    "negative mirror_axes": ({"mirror_axes": -1}, ValueError, ["mirror_axes=-1", "from 0 to 2"]),
    "mirror_axes twice": ({"mirror_axes": (1, 1)}, ValueError, ["mirror_axes=(1, 1)", "each of them once"]),
    "mirror_axes in words": ({"mirror_axes": "xy"}, ValueError, ["mirror_axes='xy'", "from 0 to 2"]),
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


@pytest.mark.parametrize("border", ["crop", "edge"])
def test_background_for_another_number_of_channels_is_refused_when_the_first_batch_shows_them(border: str) -> None:
    inferer = ChunkedSlidingWindowInferer(8, border=border, background=(0.0, 1.0, 2.0))
    words = r"background=\(0.0, 1.0, 2.0\) has 3 numbers but the prediction has 2 channels; give one number, or one for"
    with pytest.raises(ValueError, match=words):
        inferer(VOLUME, lambda x: x.repeat_interleave(2, 1))


def test_a_cut_window_that_the_network_does_not_cut_is_refused() -> None:
    inferer = ChunkedSlidingWindowInferer(8, border="adaptive", overlap=0)
    with pytest.raises(ValueError, match=r"same channels and sizes for every window: \(1, 8, 8, 4\) before"):
        inferer(VOLUME, lambda x: x.new_zeros(len(x), 1, 8, 8, 8))


def test_windows_that_are_cut_with_weights_of_one_size_are_refused() -> None:
    words = r"roi_weight_map of shape \(8, 8, 8\) .* border='adaptive' cuts windows; .*cache_roi_weight_map=False"
    border = ("edge", "adaptive", "edge")
    with pytest.raises(ValueError, match=words):
        by_function(VOLUME, Network(), border=border, roi_weight_map=torch.ones(8, 8, 8))
    inferer = ChunkedSlidingWindowInferer((8, 8, 8), mode="gaussian", cache_roi_weight_map=True, border=border)
    with pytest.raises(ValueError, match=words):
        inferer(VOLUME, Network())
