"""The network gets a copy of a window, which every operator treats as it would treat MONAI's view of the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_chunked.plan.window_grid import Window
from monai_chunked.windows.reader import TensorImage

OPERATORS = {
    "mean": lambda x: x.mean(tuple(range(2, x.dim()))),
    "sum": lambda x: x.sum(),
    "sum along the last": lambda x: x.sum(-1),
    "sum along the first": lambda x: x.sum(2),
    "deviation": lambda x: x.var() if x.numel() > 1 else x,
    "norm": torch.linalg.vector_norm,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "gelu": F.gelu,
    "softmax": lambda x: x.softmax(-1),
    "logsumexp": lambda x: x.logsumexp(tuple(range(2, x.dim()))),
    "linear": lambda x: F.linear(x, torch.full((3, x.shape[-1]), 0.3, dtype=x.dtype)),
    "group norm": lambda x: F.group_norm(x, 1) if x.numel() > x.shape[0] else x,
}


@st.composite
def views(draw: st.DrawFn) -> tuple[torch.Tensor, Window]:
    dims = draw(st.integers(1, 4))
    most = {1: 300, 2: 60, 3: 24, 4: 9}[dims]
    size = draw(st.lists(st.integers(1, most), min_size=dims, max_size=dims))
    shape = [draw(st.integers(1, 2)), draw(st.integers(1, 3)), *size]
    order = draw(st.permutations(range(dims + 2)))
    generator = torch.Generator().manual_seed(0)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    image = torch.randn([shape[d] for d in order], dtype=dtype, generator=generator)
    image = image.permute([order.index(d) for d in range(dims + 2)])
    if draw(st.booleans()):
        step = draw(st.integers(1, 2))
        image = image[..., ::step]
    if draw(st.integers(0, 4)) == 0:
        image = image[:, :1].expand(-1, 2, *[-1] * dims)
    box = []
    for n in image.shape[2:]:
        start = draw(st.integers(0, n - 1))
        box.append(slice(start, draw(st.integers(start + 1, n))))
    return image, Window(draw(st.integers(0, shape[0] - 1)), (0,) * dims, tuple(box))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(views())
def test_operators_give_the_same_bits_for_the_copy_as_for_the_view(case: Any) -> None:
    image, window = case
    view = image[(slice(window.image, window.image + 1), slice(None), *window.box)]
    copy = TensorImage(image, image.device, gather=False).read([window])
    assert torch.equal(copy, view)
    assert copy.is_contiguous() == view.is_contiguous()
    assert copy.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()
    for name, operator in OPERATORS.items():
        assert torch.equal(operator(copy), operator(view)), (name, view.shape, view.stride(), copy.stride())


@pytest.mark.parametrize("size", [(3, 3), (5, 7), (65, 129), (4, 201)])
def test_every_other_voxel_of_an_odd_number(size: tuple[int, int]) -> None:
    """A row ends in memory before it would if it had one voxel more, so that rows are nearer than they are long."""
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))[..., ::2]
    window = Window(0, (0, 0), tuple(slice(0, n) for n in image.shape[2:]))
    copy = TensorImage(image, image.device, gather=False).read([window])
    assert torch.equal(copy, image)
    assert copy.stride(3) == 2
    assert copy.stride(2) % 64 == image.stride(2) % 64
    for name, operator in OPERATORS.items():
        assert torch.equal(operator(copy), operator(image)), name


def test_an_image_whose_voxels_share_memory_is_read_as_it_is() -> None:
    image = torch.rand(1, 1, 40).unfold(2, 8, 2)
    window = Window(0, (0, 0), (slice(1, 9), slice(0, 7)))
    assert torch.equal(TensorImage(image, image.device, gather=False).read([window]), image[:, :, 1:9, :7])


def test_a_window_of_a_large_image_takes_little_more_memory_than_it_has_voxels() -> None:
    image = torch.empty(1, 4, 200, 400, 400)
    window = Window(0, (0, 0, 0), (slice(10, 42), slice(30, 62), slice(50, 82)))
    copy = TensorImage(image, image.device, gather=False).read([window])
    assert copy.untyped_storage().nbytes() < 4 * copy.numel() * copy.element_size()


@pytest.mark.parametrize("gather", [True, False])
def test_gradients_reach_the_image(gather: bool) -> None:
    image = torch.rand(1, 2, 8, 8, requires_grad=True)
    window = Window(0, (0, 0), (slice(2, 5), slice(1, 7)))
    TensorImage(image, image.device, gather).read([window]).sum().backward()
    assert image.grad is not None
    assert image.grad.sum() == 2 * 3 * 6
