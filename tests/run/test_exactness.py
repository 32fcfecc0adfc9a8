"""The same answer as MONAI: bit for bit, for any parameters, against MONAI itself run in the same test."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer, sliding_window_inference

from monai_chunked import ChunkedSlidingWindowInferer, chunked_sliding_window_inference

CASES = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
RANDOM_SEED = int(os.environ.get("EXACTNESS_SEED", random.SystemRandom().randrange(2**32)))


class Network(torch.nn.Module):
    """A few outputs of different resolutions, computed in a way whose last bits depend on batch size and strides."""

    def __init__(self, channels: int, classes: int, zooms: tuple[tuple[float, ...], ...], structure: str) -> None:
        super().__init__()
        self.weight = torch.linspace(-1.3, 1.7, channels * classes, dtype=torch.float64).reshape(classes, channels)
        self.zooms = zooms
        self.structure = structure

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.sigmoid(x) + x.mean(dim=tuple(range(2, x.dim())), keepdim=True)
        scores = torch.einsum("oc,nc...->no...", self.weight.to(x), x)
        scores = torch.where(scores.abs() < 0.2, -0.0, scores)  # added to zero it is zero without the sign
        outputs = []
        for k, zoom in enumerate(self.zooms):
            output = scores * (k + 1)
            for d, z in enumerate(zoom, start=2):
                if z != 1:
                    index = (torch.arange(int(output.shape[d] * z)) / z).long()
                    output = output.index_select(d, index)
            outputs.append(output)
        if self.structure == "tensor":
            return outputs[0]
        if self.structure == "tuple":
            return tuple(outputs)
        # MONAI sorts keys, and interpolates the weights of each output from those of the one before
        return dict(zip("ba" if set(self.zooms[-1]) == {1} else "ab", outputs))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 4))
    most = {1: 60, 2: 24, 3: 12, 4: 6}[dims]
    zoomed = dims < 4 and draw(st.integers(0, 3)) == 0  # MONAI cannot zoom weights in four dimensions
    if zoomed:  # whole numbers of output voxels: windows start at multiples of two
        image = [2 * n for n in draw(st.lists(st.integers(1, most // 2), min_size=dims, max_size=dims))]
        roi = [4 * n for n in draw(st.lists(st.integers(1, max(1, most // 4)), min_size=dims, max_size=dims))]
        overlap: Any = draw(st.sampled_from([0, 0.5]))
        zoom = tuple(draw(st.sampled_from([0.5, 1, 1.5, 2])) for _ in range(dims))
        # the full one first: MONAI fails on the other order
        zooms = draw(st.sampled_from([(zoom,), ((1,) * dims, zoom)]))
    else:
        image = draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims))
        size = st.integers(1, most + 4)
        roi = draw(size | st.lists(size | st.sampled_from([0, -1]), min_size=dims, max_size=dims))
        fraction = st.floats(0, 0.9) | st.sampled_from([0, 0.25, 0.5, 0.75])
        overlap = draw(fraction | st.lists(fraction, min_size=dims, max_size=dims))
        zooms = ((1,) * dims,) * draw(st.integers(1, 2))
    sigma = st.floats(0.05, 0.5)
    padding_mode = draw(st.sampled_from(["constant", "replicate"] if dims < 4 else ["constant"]))
    return {
        "shape": (draw(st.integers(1, 3)), draw(st.integers(1, 2)), *image),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "meta": draw(st.booleans()),
        "layout": draw(st.sampled_from(["contiguous", "transposed", "strided"])),
        "network": Network(0, 0, zooms, "tensor" if len(zooms) == 1 else draw(st.sampled_from(["tuple", "dict"]))),
        "classes": draw(st.integers(1, 4)),
        "inferer": {
            "roi_size": roi,
            "sw_batch_size": draw(st.integers(1, 5)),
            "overlap": overlap,
            "mode": draw(st.sampled_from(["constant", "gaussian"])),
            "sigma_scale": draw(sigma | st.lists(sigma, min_size=dims, max_size=dims)),
            "padding_mode": padding_mode,
            "cval": draw(st.sampled_from([0.0, -1.5])) if padding_mode == "constant" else 0.0,
        },
        "chunked": {
            "chunk_size": draw(
                st.none() | st.integers(1, most) | st.lists(st.integers(1, most), min_size=dims, max_size=dims)
            ),
            "output": draw(st.sampled_from(["auto", "device", "cpu", "disk"])),
        },
    }


def make_input(case: dict[str, Any]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = case["shape"]
    if case["layout"] == "transposed":
        x = torch.randn(*shape[:2], *shape[:1:-1], dtype=case["dtype"], generator=generator)
        x = x.permute(0, 1, *range(len(shape) - 1, 1, -1))
    elif case["layout"] == "strided":
        x = torch.randn(*shape[:-1], 2 * shape[-1], dtype=case["dtype"], generator=generator)[..., ::2]
    else:
        x = torch.randn(shape, dtype=case["dtype"], generator=generator)
    return MetaTensor(x, affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))) if case["meta"] else x


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values() if isinstance(result, dict) else result)


def assert_same(ours: Any, reference: Any) -> None:
    assert type(ours) is type(reference)
    if isinstance(reference, dict):
        assert list(ours) == list(reference)
    assert len(flat(ours)) == len(flat(reference))
    for one, other in zip(flat(ours), flat(reference)):
        assert type(one) is type(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if isinstance(other, MetaTensor):
            assert torch.equal(one.affine, other.affine)
            one, other = one.as_tensor(), other.as_tensor()
        assert torch.equal(one, other)
        assert torch.equal(torch.signbit(one), torch.signbit(other))  # a zero has one too


def check(case: dict[str, Any]) -> None:
    note(f"{case}")
    x = make_input(case)
    template = case["network"]
    network = Network(case["shape"][1], case["classes"], template.zooms, template.structure)
    before = x.clone()
    with torch.no_grad():
        reference = SlidingWindowInferer(**case["inferer"])(x, network)
        inferer = ChunkedSlidingWindowInferer(**case["inferer"], **case["chunked"])
        if any(0 in t.shape for t in flat(reference)):  # rounding left nothing of a small image
            with pytest.raises(ValueError, match="no output voxel is left"):
                inferer(x, network)
            return
        ours = inferer(x, network)
    assert_same(ours, reference)
    assert torch.equal(torch.as_tensor(x), torch.as_tensor(before))


@seed(20240611)
@CASES
@given(cases())
def test_same_bits_as_monai_for_any_parameters(case: dict[str, Any]) -> None:
    check(case)


@seed(RANDOM_SEED)
@CASES
@given(cases())
def test_same_bits_as_monai_for_any_parameters_with_a_random_seed(case: dict[str, Any]) -> None:
    note(f"EXACTNESS_SEED={RANDOM_SEED}")
    check(case)


@pytest.mark.parametrize("overlap", [0.25, 0.6])
@pytest.mark.parametrize("sw_batch_size", [1, 4])
def test_same_bits_as_monai_for_a_real_network(overlap: float, sw_batch_size: int) -> None:
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    network = UNet(3, 1, 4, channels=(4, 8, 16), strides=(2, 2)).eval()
    x = torch.randn(2, 1, 44, 61, 39)
    settings = (32, sw_batch_size, network, overlap, "gaussian")
    with torch.inference_mode():
        reference = sliding_window_inference(x, *settings)
        assert torch.equal(chunked_sliding_window_inference(x, *settings), reference)
        labels = chunked_sliding_window_inference(x, *settings, postprocessing="argmax", chunk_size=(7, 100, 13))
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), reference.argmax(1, keepdim=True))
