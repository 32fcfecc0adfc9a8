"""Chunks of another grid against PyTorch's own interpolation of the whole volume, and what is kept meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked.chunks.inverse import Inverse, Make, scores
from monai_chunked.chunks.levels import Memory
from monai_chunked.chunks.stages import Finished
from monai_chunked.plan.chunk_grid import ChunkId
from monai_chunked.resampling.axes import Resampling, Unstreamable
from monai_chunked.resampling.corners import coordinates
from monai_chunked.resampling.pieces import Piece
from monai_chunked.transforms.coordinates import grid_sample_axes, interpolate_axes
from tests.side_by_side import random

pytestmark = pytest.mark.usefixtures("one_thread")
ANY = settings(max_examples=60, deadline=None, database=None)
MANY = settings(ANY, max_examples=1500)
ORDER = (0, 1, 2)


def by_chunks(
    resampling: Resampling, volume: torch.Tensor, cuts: Sequence[Sequence[int]], make: Make = scores
) -> tuple[torch.Tensor, Inverse]:
    """The grid that chunks make in scan order, whose memory is used again at once."""
    inverse = Inverse([resampling.over(cuts)], make)
    result: Any = None
    for position in itertools.product(*[range(len(each) - 1) for each in cuts]):
        box = tuple(slice(each[k], each[k + 1]) for each, k in zip(cuts, position))
        chunk = volume[(slice(None), *box)].clone()
        for made in inverse.put(Finished(ChunkId(0, 0, position), box, chunk, Memory(chunk))):
            if result is None:
                result = made.values.new_zeros((len(made.values), *resampling.size))
            result[(slice(None), *made.box)] = made.values
        chunk.fill_(123)
    assert inverse.kept_bytes == 0  # all faces are dropped
    return result, inverse


def theta_of(draw: Any, size: Sequence[int]) -> torch.Tensor:
    """A scaling with a shift, sometimes turned by next to nothing, as affines in float32 are."""
    theta = torch.zeros(3, 4, dtype=torch.float64)
    for d in range(3):
        theta[d, d] = draw(st.sampled_from([1.0, 0.97, 1.1, 0.5])) * draw(st.sampled_from([1, 1, 1, -1]))
        theta[d, 3] = draw(st.sampled_from([0.0, 0.01, -0.08]))
    if draw(st.booleans()):
        theta[:, :3] += random(3, 3, dtype=torch.float64) * 1e-8
    return theta


@st.composite
def sampled(draw: st.DrawFn) -> dict[str, Any]:
    size = [draw(st.integers(1, 14)) for _ in range(3)]
    made = [draw(st.integers(1, 20)) for _ in range(3)]
    return {
        "size": size,
        "made": made,
        "theta": theta_of(draw, size),
        "cuts": [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=3))}) for n in size],
        "mode": draw(st.sampled_from([0, 0, 0, 1])),
        "padding_mode": draw(st.integers(0, 2)),
        "align_corners": draw(st.booleans()),
        "classes": draw(st.integers(1, 4)),
        "values": draw(st.sampled_from(["scores", "few values", "saturated", "small", "close", "not finite"])),
        "dtype": draw(st.sampled_from([torch.float64, torch.float64, torch.float32])),
    }


def values_of(kind: str, *shape: int) -> torch.Tensor:
    values = random(*shape)
    if kind == "few values":
        return values.round()
    if kind == "saturated":
        return torch.softmax(values * 50, 0)
    if kind == "small":
        return values * 1e-5
    if kind == "close":
        return 1 + values.round() * 2.0**-22
    if kind == "not finite":
        values[values > 2] = torch.inf
        values[values < -2.5] = torch.nan
    return values


def assert_same(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    if ours.is_floating_point():
        assert torch.equal(ours.isnan(), reference.isnan())
        ours, reference = ours.masked_fill(ours.isnan(), 0), reference.masked_fill(reference.isnan(), 0)
    assert torch.equal(ours, reference), f"{int((ours != reference).sum())} of {ours.numel()} voxels"


def decided(scores: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Which scores are surely on one side of an interval."""
    return (scores < low) | (scores > high)


def assert_all_is_made(resampling: Resampling, volume: torch.Tensor, cuts: Any, whole: torch.Tensor) -> None:
    assert_same(by_chunks(resampling, volume, cuts)[0], whole)
    labels, _ = by_chunks(resampling, volume, cuts, Piece.labels)
    assert_same(labels.long(), whole.argmax(0, keepdim=True))
    for threshold in (0.0, 0.5, 1.0):
        at_least, _ = by_chunks(resampling, volume, cuts, partial(Piece.at_least, threshold=threshold))
        assert_same(at_least, whole >= threshold)
    for low, high in ((0.0, 0.0), (-1e-6, 1e-6), (0.2, 0.9)):
        within, _ = by_chunks(resampling, volume, cuts, partial(Piece.scores_within, low=low, high=high))
        assert_same(within < low, whole < low)
        assert_same(within > high, whole > high)
        assert_same(within.masked_fill(decided(within, low, high), 0), whole.masked_fill(decided(whole, low, high), 0))


@ANY
@given(sampled())
def test_chunks_are_what_grid_sample_makes(case: dict[str, Any]) -> None:
    check_sampled(case)


@pytest.mark.long
@MANY
@given(sampled())
def test_chunks_are_what_grid_sample_makes_in_many_more_cases(case: dict[str, Any]) -> None:
    check_sampled(case)


def check_sampled(case: dict[str, Any]) -> None:
    size, made, theta = case["size"], case["made"], case["theta"].to(case["dtype"])
    volume = values_of(case["values"], case["classes"], *size)
    how = {"align_corners": case["align_corners"]}
    grid = F.affine_grid(theta[None], [1, 1, *made], **how)
    padding = ("zeros", "border", "reflection")[case["padding_mode"]]
    mode = ("bilinear", "nearest")[case["mode"]]
    whole = F.grid_sample(volume[None].to(theta), grid, mode, padding, **how)[0].float()
    try:
        axes, kind, oblique = grid_sample_axes(theta, size, made, case["mode"], case["padding_mode"], **how)
    except Unstreamable:
        assert case["mode"] == 1
        return
    assert_all_is_made(Resampling(tuple(axes), ORDER, ORDER, kind, oblique), volume, case["cuts"], whole)


@ANY
@given(
    made=st.lists(st.integers(1, 30), min_size=3, max_size=3),
    seed=st.integers(0, 99),
    align_corners=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_coordinates_have_the_bits_of_affine_grid(
    made: list[int], seed: int, align_corners: bool, dtype: torch.dtype
) -> None:
    """They are rounded otherwise in a small product and in a large one, and where it is cut."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.diag(torch.rand(3, generator=generator, dtype=dtype) + 0.5)
    theta = torch.cat([theta, torch.rand(3, 1, generator=generator, dtype=dtype) - 0.5], 1)
    theta[:, :3] += torch.randn(3, 3, generator=generator, dtype=dtype) * 1e-7
    expected = F.affine_grid(theta[None], [1, 1, *made], align_corners=align_corners)[0].flatten(0, 2)
    _, _, oblique = grid_sample_axes(theta, (9, 8, 7), made, 0, 1, align_corners)
    assert oblique is not None
    every = torch.cartesian_prod(*map(torch.arange, made)).reshape(-1, 3)
    for some in every.split(made[2] * 3 + 1):
        found = coordinates(oblique, some.numpy().T, ORDER)
        assert torch.equal(torch.from_numpy(found), expected[: len(some)])
        expected = expected[len(some) :]


@st.composite
def interpolated(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.tuples(*[st.integers(1, 14)] * 3))
    return {
        "size": size,
        "made": draw(st.tuples(*[st.integers(1, 24)] * 3)),
        "mode": draw(st.sampled_from(["trilinear", "nearest", "nearest-exact", "area"])),
        "align_corners": draw(st.booleans()),
        "kind": draw(st.sampled_from(["scores", "few values", "saturated", "small", "close"])),
        "cuts": [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=3))}) for n in size],
    }


@ANY
@given(interpolated())
def test_chunks_are_what_interpolate_makes(case: dict[str, Any]) -> None:
    check_interpolated(**case)


@pytest.mark.long
@MANY
@given(interpolated())
def test_chunks_are_what_interpolate_makes_in_many_more_cases(case: dict[str, Any]) -> None:
    check_interpolated(**case)


def check_interpolated(size: Any, made: Any, mode: str, align_corners: bool, kind: str, cuts: Any) -> None:
    if mode == "area":  # at most a mean of two voxels
        made = tuple(max(m, n) for m, n in zip(made, size))
    volume = values_of(kind, 3, *size)
    align = align_corners if mode == "trilinear" else None
    whole = F.interpolate(volume[None], made, mode=mode, align_corners=align)[0]
    axes, how = interpolate_axes(size, made, mode, align_corners=bool(align), dtype=torch.float32)
    assert_all_is_made(Resampling(tuple(axes), ORDER, ORDER, how), volume, cuts, whole)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
def test_the_nearest_voxel_in_all_small_sizes(mode: str, dtype: torch.dtype) -> None:
    """A voxel may lie in the middle of two, where the rounding of the scale decides."""
    for size, made in itertools.product(range(1, 60), range(1, 60)):
        whole = F.interpolate(torch.arange(size, dtype=dtype)[None, None], size=made, mode=mode)[0, 0]
        (axis,), _ = interpolate_axes([size], [made], mode, align_corners=False, dtype=dtype)
        assert axis.low.tolist() == whole.tolist(), (size, made)


def test_a_volume_so_long_that_it_is_made_in_pieces() -> None:
    theta = torch.tensor([[0.98, 0, 0, 0.01], [0, 1.02, 0, 0], [0, 0, 0.97, 0]], dtype=torch.float64)
    volume = values_of("few values", 3, 70, 8, 40)
    made = (90, 9, 50)
    grid = F.affine_grid(theta[None], [1, 1, *made], align_corners=False)
    whole = F.grid_sample(volume[None].double(), grid, padding_mode="border", align_corners=False)[0].float()
    axes, kind, _ = grid_sample_axes(theta, (70, 8, 40), made, 0, 1, False)
    assert_all_is_made(Resampling(tuple(axes), ORDER, ORDER, kind), volume, [[0, 66, 70], [0, 8], [0, 3, 40]], whole)


def test_what_is_kept_is_faces() -> None:
    size, made, chunk, classes = (16, 12, 8), (20, 15, 10), 4, 2
    axes, kind = interpolate_axes(size, made, "trilinear", align_corners=False, dtype=torch.float32)
    cuts = [list(range(0, n + 1, chunk)) for n in size]
    volume = random(classes, *size)
    _, inverse = by_chunks(Resampling(tuple(axes), ORDER, ORDER, kind), volume, cuts)
    # along the first dimension one layer of faces, and those of the layer before that the next row still needs; along
    # the second one row; and for each dimension those of the chunk at hand and of the one before it
    layer, row, end = size[1] * size[2], chunk * size[2], chunk * chunk
    bound = 4 * classes * ((layer + row) + row + 3 * 2 * end)
    assert 4 * classes * layer <= inverse.most_kept_bytes <= bound
    assert bound < volume.nbytes / 4


def test_what_is_kept_does_not_grow_with_the_length() -> None:
    most = []
    for length in (16, 64):
        axes, kind = interpolate_axes(
            (length, 8, 8), (length * 2, 10, 10), "trilinear", align_corners=False, dtype=torch.float32
        )
        cuts = [list(range(0, n + 1, 4)) for n in (length, 8, 8)]
        most.append(by_chunks(Resampling(tuple(axes), ORDER, ORDER, kind), random(2, length, 8, 8), cuts)[1])
    assert most[0].most_kept_bytes == most[1].most_kept_bytes


def test_an_image_of_zeros_alone() -> None:
    theta = torch.tensor([[1.0, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    axes, kind, _ = grid_sample_axes(theta, (4, 4, 4), (5, 5, 5), 0, 0, False)
    volume = random(2, 4, 4, 4)
    assert_all_is_made(Resampling(tuple(axes), ORDER, ORDER, kind), volume, [[0, 2, 4]] * 3, torch.zeros(2, 5, 5, 5))


@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_what_is_partly_made_of_zeros_may_be_less_than_all_voxels(shift: float) -> None:
    """At the first and at the last voxel, of which a part is beyond the border."""
    theta = torch.eye(3, 4, dtype=torch.float64)
    theta[2, 3] = shift
    axes, kind, _ = grid_sample_axes(theta, (4, 3, 3), (4, 3, 3), 0, 0, False)
    volume = torch.ones(2, 4, 3, 3)
    grid = F.affine_grid(theta[None], [1, 2, 4, 3, 3], align_corners=False)
    whole = F.grid_sample(volume[None].double(), grid, padding_mode="zeros", align_corners=False)[0].float()
    assert whole.min() < 0.5
    assert_all_is_made(Resampling(tuple(axes), ORDER, ORDER, kind), volume, [(0, 4), (0, 3), (0, 3)], whole)


@pytest.mark.parametrize("more", [1e-1, 1e-3, 1e-5, 1e-7, 0.0, -1e-7, -1e-3])
@pytest.mark.parametrize("third", [0, 1, 2])
def test_a_class_that_is_the_greatest_between_two_others_is_found(third: int, more: float) -> None:
    """At no voxel, but in the middle between voxels of two other classes, and by a little or not at all."""
    size, made = (2, 6, 6), (7, 6, 6)
    one, other = [number for number in range(3) if number != third]
    volume = torch.empty(3, *size)
    volume[one], volume[other] = torch.tensor([1.0, 0.0]).view(2, 1, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1)
    volume[third] = 0.5 + more
    axes, kind, _ = grid_sample_axes(torch.eye(3, 4, dtype=torch.float64), size, made, 0, 1, False)
    resampling = Resampling(tuple(axes), ORDER, ORDER, kind)
    grid = F.affine_grid(torch.eye(3, 4, dtype=torch.float64)[None], [1, 3, *made], align_corners=False)
    every = F.grid_sample(volume[None].double(), grid, padding_mode="border", align_corners=False)[0].float()
    labels, _ = by_chunks(resampling, volume, [(0, n) for n in size], Piece.labels)
    assert (labels == third).any() == (more > 0 or (more == 0 and third == 0))
    assert torch.equal(labels.long(), every.argmax(0, keepdim=True))
