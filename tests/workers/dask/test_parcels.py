"""What Dask's tasks give each other comes out as it went in, and large memory is not copied on the way."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor

from monai_chunked.workers.dask.parcels import Parcel, opened

pytest.importorskip("cloudpickle")

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.cfloat,
)


def sent(value: Any, beside: bool, frozen: bool = False) -> Any:
    """As another process gets it, with its memory beside the pickle or within it."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(Parcel(value), 5, buffer_callback=buffers.append if beside else None)
    return opened(pickle.loads(pickled, buffers=[bytes(each) for each in buffers] if frozen else buffers))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    tensor = (torch.rand(shape) * 100).to(draw(st.sampled_from(DTYPES)))
    if len(shape) > 1:
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    if shape:
        tensor = tensor[draw(st.integers(0, 2)) :: draw(st.integers(1, 2))]
    if draw(st.booleans()):
        tensor = tensor.expand(2, *tensor.shape)
    if draw(st.booleans()):
        tensor = MetaTensor(tensor, affine=torch.eye(4) * 2, meta={"filename": "one.nii"})
    return tensor


@given(tensors(), st.booleans(), st.booleans())
def test_a_tensor_is_the_same(tensor: torch.Tensor, beside: bool, frozen: bool) -> None:
    found = sent({"here": [(1, tensor)]}, beside, frozen)["here"][0][1]
    assert type(found) is type(tensor)
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)
    if isinstance(tensor, MetaTensor):
        assert torch.equal(found.affine, tensor.affine)
        assert found.meta["filename"] == "one.nii"


@pytest.mark.parametrize("dims", [4, 5])
def test_it_keeps_the_order_of_its_memory(dims: int) -> None:
    """A network may compute channels that lie last in another order."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}[dims]
    whole = torch.rand([2] * dims).contiguous(memory_format=last)
    for tensor in (whole, whole[1:]):
        assert sent(tensor, True).stride() == tensor.stride()


def test_memory_is_handed_over_where_it_lies() -> None:
    tensor = torch.rand(1000)
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(Parcel(tensor), 5, buffer_callback=buffers.append)
    assert len(pickled) < 2000
    (buffer,) = buffers
    assert np.frombuffer(buffer, np.uint8).ctypes.data == tensor.data_ptr()


def test_memory_that_nobody_may_change_is_not_changed() -> None:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(Parcel(torch.zeros(5, dtype=torch.uint8)), 5, buffer_callback=buffers.append)
    frozen = bytes(buffers[0])
    opened(pickle.loads(pickled, buffers=[frozen])).fill_(1)
    assert frozen == bytes(5)


def test_dask_knows_how_large_it_is() -> None:
    assert sys.getsizeof(Parcel({0: [(1, torch.rand(1000)), torch.rand(1000)], 1: "more"})) >= 8000


def test_of_a_part_the_rest_is_left_behind() -> None:
    whole = torch.rand(1000, 100)
    assert len(pickle.dumps(Parcel(whole[3:5]), 5)) < 3000


@pytest.mark.parametrize(
    "value", [torch.rand(3, requires_grad=True), torch.nn.Parameter(torch.rand(2)), torch.rand(2).to_sparse()]
)
def test_other_tensors_go_as_they_always_do(value: torch.Tensor) -> None:
    found = sent(value, True)
    assert type(found) is type(value)
    assert found.requires_grad == value.requires_grad
    assert found.layout == value.layout
    assert torch.equal(found.to_dense(), value.to_dense())


def test_whatever_else_there_is() -> None:
    network = torch.nn.Linear(2, 3)
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    found_network, found_array, found_function = sent((network, array, lambda x: x + 1), True)
    assert torch.equal(found_network.weight, network.weight)
    assert np.array_equal(found_array, array)
    assert found_function(1) == 2


def test_it_is_opened_where_it_was_packed_without_any_of_this() -> None:
    value = object()
    assert opened(Parcel(value)) is value
    assert opened(value) is value
