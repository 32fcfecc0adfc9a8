"""Which chunk makes which voxels of another grid, and what is kept of each chunk for those behind it."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked.resampling.axes import Axis, ChunkResampling, Resampling

ANY = settings(max_examples=150, deadline=None, database=None)


def linear(size: int, made: int) -> Axis:
    """From so many voxels to so many: each lies between two, the last one on the last."""
    at = np.linspace(0, size - 1, made)
    low = np.floor(at).astype(np.int64)
    high = np.where(low + 1 < size, low + 1, -1)
    return Axis.of(low, high, low_weight=low + 1 - at, high_weight=np.where(high < 0, 0.0, at - low), size=size)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    size = draw(st.integers(1, 12))
    axis = linear(size, draw(st.integers(1, 20)))
    if draw(st.booleans()):  # cut off, turned round, with zeros at the border
        index = np.arange(len(axis))[draw(st.integers(0, len(axis) - 1)) :]
        index = index[::-1] if draw(st.booleans()) else index
        before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        axis = axis.take(np.concatenate([np.full(before, -1), index, np.full(after, -1)]))
    if draw(st.integers(0, 4)) == 0:  # reflected at a border, so that reading goes backward
        axis = axis.take(np.concatenate([np.arange(len(axis))[2:0:-1], np.arange(len(axis))]))
    if draw(st.integers(0, 4)) == 0:  # coordinates that are not known to the last bit
        first, last = np.where(axis.first < 0, -1, (axis.first - 1).clip(0)), (axis.last + (axis.last >= 0))
        axis = Axis(axis.low, axis.high, axis.low_weight, axis.high_weight, first, last.clip(-1, size - 1), size)
    return axis


@st.composite
def chunks_of_grids(draw: st.DrawFn) -> tuple[ChunkResampling, list[list[int]]]:
    each = tuple(draw(st.lists(axes(), min_size=1, max_size=3)))
    cuts = [sorted({0, axis.size, *draw(st.lists(st.integers(0, axis.size), max_size=5))}) for axis in each]
    order = tuple(draw(st.permutations(range(len(each)))))
    return Resampling(each, order, order, "product").over(cuts), cuts


def positions(chunks: ChunkResampling) -> list[tuple[int, ...]]:
    return list(itertools.product(*[range(len(parts)) for parts in chunks.parts]))


@ANY
@given(chunks_of_grids())
def test_chunks_make_each_voxel_once(case: tuple[ChunkResampling, list[list[int]]]) -> None:
    chunks, _ = case
    made = np.zeros(chunks.resampling.size, int)
    for position in positions(chunks):
        made[chunks.made(position)] += 1
    assert (made == 1).all()
    places = [chunks.place(position) for position in positions(chunks) if chunks.makes(position)]
    assert sorted(places) == sorted(itertools.product(*[range(len(cuts) - 1) for cuts in chunks.cuts]))


@ANY
@given(chunks_of_grids())
def test_what_a_chunk_needs_lies_in_it_or_in_faces_of_chunks_before_it(
    case: tuple[ChunkResampling, list[list[int]]],
) -> None:
    chunks, cuts = case
    sizes = [axis.size for axis in chunks.resampling.axes]
    asked: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for position in positions(chunks):
        there = np.zeros(sizes, bool)
        there[tuple(slice(each[k], each[k + 1]) for each, k in zip(cuts, position))] = True
        for dim, other in chunks.before(position):
            asked[dim, other] += 1
            assert other < position
            assert all(one <= two for one, two in zip(other, position))  # finished earlier
            box = [slice(each[k], each[k + 1]) for each, k in zip(cuts, other)]
            box[dim] = slice(box[dim].stop - chunks.kept(other)[dim], box[dim].stop)
            there[tuple(box)] = True
        if chunks.makes(position):
            needed = []
            for axis, part in zip(chunks.resampling.axes, chunks.of(position)):
                first, last = axis.first[part.made], axis.last[part.made]
                known = last >= 0
                needed.append(slice(first[known].min(), last[known].max() + 1) if known.any() else slice(0, 0))
            assert there[tuple(needed)].all()
    for position in positions(chunks):
        for dim in range(len(sizes)):
            assert chunks.users(position, dim) == asked[dim, position]


@ANY
@given(chunks_of_grids(), st.data())
def test_what_is_needed_for_some_boxes_is_all_that_they_are_made_of(
    case: tuple[ChunkResampling, list[list[int]]], data: st.DataObject
) -> None:
    chunks, _ = case
    places = {chunks.place(each) for each in positions(chunks) if chunks.makes(each)}
    some = data.draw(st.sets(st.sampled_from(sorted(places))))
    needed = chunks.needed(some)
    for position in positions(chunks):
        if chunks.makes(position) and chunks.place(position) in some:
            assert {position, *(other for _, other in chunks.before(position))} <= needed
    assert bool(needed) == bool(some)


def test_a_chunk_needs_one_voxel_of_the_chunk_before_it() -> None:
    chunks = Resampling((linear(9, 17),), (0,), (0,), "product").over([[0, 4, 9]])
    assert chunks.parts == (((slice(0, 6), 0, 0), (slice(6, 17), 1, 1)),)
    assert chunks.faces == (((1, 1), (0, 0)),)


def test_a_chunk_thinner_than_what_is_needed_is_helped_by_the_one_before_it() -> None:
    places = np.arange(6)
    none, one = np.full(6, -1), np.ones(6)
    axis = Axis(places, none, one, one * 0, (places - 2).clip(0), places, 6)
    chunks = Resampling((axis,), (0,), (0,), "product").over([[0, 3, 4, 6]])
    assert [part.back for part in chunks.parts[0]] == [0, 1, 2]
    assert chunks.faces == (((2, 2), (1, 1), (0, 0)),)
