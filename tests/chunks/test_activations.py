"""Softmax and sigmoid of chunks have the bits that they have for the whole volume."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.transforms import Activations

from monai_chunked.chunks.activations import Activation, undecided
from monai_chunked.plan.boxes import Box
from tests.side_by_side import random

ANY = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
MOST = {1: 70_000, 2: 300, 3: 40, 4: 14}
"""Voxels a side, so that some volumes are shared out to threads and others are not."""


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def boxes(cuts: Sequence[Sequence[int]]) -> Iterator[Box]:
    yield from itertools.product(*[[slice(*pair) for pair in itertools.pairwise(each)] for each in cuts])


def assert_same(kind: str, scores: torch.Tensor, cuts: Sequence[Sequence[int]]) -> None:
    whole = torch.softmax(scores, 0) if kind == "softmax" else torch.sigmoid(scores)
    activation = Activation(kind, scores.shape[1:])  # type: ignore[arg-type]
    for box in boxes(cuts):
        assert torch.equal(activation.of(scores[(slice(None), *box)], box), whole[(slice(None), *box)])


@st.composite
def volumes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[int]]]:
    dims = draw(st.integers(1, 4))
    size = tuple(draw(st.integers(1, MOST[dims])) for _ in range(dims))
    return size, [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=2))}) for n in size]


@ANY
@given(
    kind=st.sampled_from(["softmax", "sigmoid"]),
    volume=volumes(),
    channels=st.integers(1, 9),
    threads=st.integers(1, 2),
    scale=st.sampled_from([1, 6, 50]),
)
def test_any_chunks_of_any_volume(
    kind: str, volume: tuple[tuple[int, ...], list[list[int]]], channels: int, threads: int, scale: int
) -> None:
    torch.set_num_threads(threads)
    size, cuts = volume
    assert_same(kind, random(channels, *size) * scale, cuts)


@st.composite
def strided(draw: st.DrawFn) -> torch.Tensor:
    """Scores ``(C, *size)`` that lie in memory in any order, perhaps cut out of larger ones, or with others between."""
    shape = [draw(st.integers(1, 6)), *[draw(st.integers(1, MOST[3])) for _ in range(3)]]
    order = draw(st.permutations(range(4)))
    around = [draw(st.sampled_from([(0, 0), (0, 0), (1, 0), (3, 2)])) for _ in shape]
    whole = [n + sum(pair) for n, pair in zip(shape, around)]
    scores = random(*(whole[d] for d in order)).permute([order.index(d) for d in range(4)]) * 6
    scores = scores[tuple(slice(before, before + n) for (before, _), n in zip(around, shape))]
    return scores[..., :: draw(st.sampled_from([1, 1, 1, 2]))]


@ANY
@given(kind=st.sampled_from(["softmax", "sigmoid"]), scores=strided(), threads=st.integers(1, 2), data=st.data())
def test_scores_that_lie_in_memory_in_any_way(
    kind: str, scores: torch.Tensor, threads: int, data: st.DataObject
) -> None:
    torch.set_num_threads(threads)
    size = scores.shape[1:]
    whole = torch.softmax(scores, 0) if kind == "softmax" else torch.sigmoid(scores)
    activation = Activation(kind, size, [(0, 0, 0, 0), scores.stride()])  # type: ignore[arg-type]
    for box in boxes([sorted({0, n, data.draw(st.integers(0, n))}) for n in size]):
        chunk = scores[(slice(None), *box)]
        assert torch.equal(activation.of(chunk, box, image=1), whole[(slice(None), *box)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_of_other_dtypes_as_monai_computes_it(kind: str, dtype: torch.dtype) -> None:
    scores = (random(3, 11, 13, 17) * 6).to(dtype)
    whole = Activations(**{kind: True})(scores)
    activation = Activation(kind, scores.shape[1:], [(0, 1, 11, 143)])  # type: ignore[arg-type]
    for box in boxes([[0, 4, 11], [0, 13], [0, 8, 17]]):
        ours = activation.of(scores[(slice(None), *box)], box)
        assert ours.dtype == whole.dtype == dtype
        assert torch.equal(ours, whole[(slice(None), *box)].as_tensor())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_volumes_that_threads_share(kind: str, threads: int) -> None:
    torch.set_num_threads(threads)
    for size in ((41, 43, 47), (29, 31, 37), (33, 32, 32)):
        cuts = [[0, 5, n // 2, n] for n in size]
        assert_same(kind, random(5, *size) * 6, cuts)


def test_what_two_threads_leave_over_in_one_chunk() -> None:
    torch.set_num_threads(2)
    assert_same("softmax", random(3, 2 * (16 * 1000 + 15)) * 6, [[0, 32030]])
    assert_same("softmax", random(3, 2 * (16 * 1000 + 15)) * 6, [[0, 7, 32030]])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_values_that_are_not_finite_stay_where_they_are(kind: str) -> None:
    scores = random(3, 11, 13, 17)
    scores[0, ::3], scores[1, :, ::4], scores[2, ..., ::5] = torch.inf, -torch.inf, torch.nan
    whole = torch.softmax(scores, 0) if kind == "softmax" else torch.sigmoid(scores)
    activation = Activation(kind, scores.shape[1:])  # type: ignore[arg-type]
    for box in boxes([[0, 4, 11], [0, 13], [0, 8, 17]]):
        assert torch.allclose(
            activation.of(scores[(slice(None), *box)], box), whole[(slice(None), *box)], rtol=0, atol=0, equal_nan=True
        )


def test_a_chunk_is_not_changed() -> None:
    chunk = random(2, 3, 5, 7)
    before = chunk.clone()
    Activation("softmax", (3, 5, 7)).of(chunk.permute(0, 3, 1, 2), (slice(0, 7), slice(0, 3), slice(0, 5)))
    assert torch.equal(chunk, before)


@settings(max_examples=300, deadline=None, database=None)
@given(
    threshold=st.one_of(
        st.floats(0, 1),
        st.floats(0, 1).map(lambda x: 1 - x**8),
        st.floats(0, 1).map(lambda x: x**40),
        st.sampled_from([0.5, 1e-7, 1 - 1e-7, 1 - 4e-6, 1 - 1e-5, 2.0**-63]),
    )
)
def test_scores_beyond_those_that_are_undecided_are_decided(threshold: float) -> None:
    """By each of the two kinds of exp, also right beside them."""
    found = undecided(threshold)
    if found is None:
        assert threshold < 1e-18 or threshold > 1 - 1e-5
        return
    low, high = found
    away = torch.cat([torch.zeros(1), torch.logspace(-7, 2, 400)])
    below = low - away * max(1, abs(low))
    above = high + away * max(1, abs(high))
    below, above = below[below.double() < low], above[above.double() > high]
    for scores, reached in ((below, False), (above, True)):
        several = torch.sigmoid(torch.cat([scores, scores.new_zeros(-len(scores) % 64)]))[: len(scores)] >= threshold
        single = torch.cat([torch.sigmoid(one) for one in scores.split(1)]) >= threshold
        assert len(scores) > 100
        assert several.eq(reached).all()
        assert single.eq(reached).all()


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1e-30, 1 - 1e-8, 1.0, 2.0, float("nan"), float("inf"), -float("inf")])
def test_thresholds_that_no_score_is_far_from(threshold: float) -> None:
    assert undecided(threshold) is None


def test_few_scores_are_undecided() -> None:
    for threshold in (0.01, 0.5, 0.99):
        low, high = undecided(threshold) or (0, 1)
        assert 0 < high - low < 1e-3
