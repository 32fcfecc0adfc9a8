"""Where windows lie: as MONAI, nnU-Net and Patchly have them."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked.plan.borders import BORDERS, nearest
from monai_chunked.plan.window_grid import window_grid
from tests import reference_windows

CASES = settings(max_examples=300, deadline=None, derandomize=True)
OVERLAPS = st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 0.625, 0.7, 0.8, 0.9, 0.95]) | st.integers(0, 950_000).map(
    lambda k: k / 10**6
)


@pytest.mark.parametrize(
    ("size", "roi", "overlap", "starts"),
    [
        (110, 64, 0.5, [0, 23, 46]),  # the example in nnU-Net's source
        (64, 64, 0.5, [0]),
        (65, 64, 0.5, [0, 1]),
        (128, 64, 0.5, [0, 32, 64]),
        (129, 64, 0.5, [0, 22, 43, 65]),  # 21.67, 43.33
        (13, 8, 0.5, [0, 2, 5]),  # 2.5 is rounded to even
        (15, 8, 0.5, [0, 4, 7]),  # 3.5 is, too
        (100, 40, 0.25, [0, 30, 60]),
    ],
)
def test_even_windows_start_where_those_of_nnunet_do(size: int, roi: int, overlap: float, starts: list[int]) -> None:
    assert window_grid((size,), (roi,), (overlap,), border="even").starts == (tuple(starts),)


def even_starts(size: int, roi: int, overlap: float) -> list[int]:
    return list(window_grid((size,), (roi,), (overlap,), border="even").starts[0])


def nnunet_starts(size: int, roi: int, step_size: float) -> list[int]:
    return [start for start, _ in reference_windows.nnunets(size, roi, step_size)]


def check_hundredths(rois: range, beyond: range) -> None:
    """The overlap is what a step size of nnU-Net leaves, subtracted by the user or by the program."""
    for percent, roi, more in itertools.product(range(1, 101), rois, beyond):
        expected = nnunet_starts(roi + more, roi, percent / 100)
        for overlap in {1 - percent / 100, (100 - percent) / 100}:
            assert even_starts(roi + more, roi, overlap) == expected, (percent, roi, more, overlap)


def test_even_windows_are_nnunets_at_every_step_size_of_hundredths() -> None:
    assert len(even_starts(24, 16, 0.9)) == 6
    check_hundredths(range(4, 28, 8), range(0, 28, 4))


@pytest.mark.long
def test_even_windows_are_nnunets_at_every_step_size_of_hundredths_in_many_sizes() -> None:
    check_hundredths(range(1, 33), range(49))


@CASES
@given(st.integers(1, 1000), st.data(), st.integers(1, 40), st.integers(0, 60))
def test_even_windows_are_nnunets_at_step_sizes_that_are_fractions(
    parts: int, data: st.DataObject, roi: int, more: int
) -> None:
    step_size = data.draw(st.integers(-(-parts // 50), parts)) / parts
    assert even_starts(roi + more, roi, 1 - step_size) == nnunet_starts(roi + more, roi, step_size)


@CASES
@given(st.floats(0.5, 1), st.integers(1, 40), st.integers(0, 60))
def test_even_windows_are_nnunets_at_any_step_size_that_an_overlap_tells(step_size: float, roi: int, more: int) -> None:
    """Below a half ``1 - step_size`` has lost the last bits."""
    assert even_starts(roi + more, roi, 1 - step_size) == nnunet_starts(roi + more, roi, step_size)


@CASES
@given(st.sampled_from(["squeeze", "adaptive", "crop"]), st.integers(1, 400), st.data(), st.integers(0, 900))
def test_a_step_in_voxels_is_what_it_leaves_as_an_overlap(
    border: str, roi: int, data: st.DataObject, more: int
) -> None:
    """As Patchly takes it; 1 - 2 / 20 is 0.9, and 20 * (1 - 0.9) is 1.9999999999999996."""
    step = data.draw(st.integers(-(-roi // 20), roi))
    expected = reference_windows.patchlys(border, roi + more, roi, step, 1)
    for overlap in {1 - step / roi, (roi - step) / roi}:
        assert list(window_grid((roi + more,), (roi,), (overlap,), border=border).spans[0]) == expected


def test_only_the_windows_of_monai_have_its_rounding() -> None:
    assert window_grid((26,), (20,), (0.9,)).starts == (tuple(range(7)),)
    for border in ("squeeze", "crop"):
        assert window_grid((26,), (20,), (0.9,), border=border).starts == ((0, 2, 4, 6),)


@CASES
@given(st.data())
def test_windows_are_those_of_who_made_the_rule(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 4))
    borders = data.draw(st.lists(st.sampled_from(sorted(BORDERS)), min_size=dims, max_size=dims))
    roi = data.draw(st.lists(st.integers(1, 12), min_size=dims, max_size=dims))
    size = [r + data.draw(st.integers(0, 40)) for r in roi]
    overlap = data.draw(st.lists(OVERLAPS, min_size=dims, max_size=dims))
    least = [data.draw(st.integers(1, r)) for r in roi]
    expected = [reference_windows.windows(*each) for each in zip(borders, size, roi, overlap, least)]
    assert [list(spans) for spans in window_grid(size, roi, overlap, border=borders, min_size=least).spans] == expected


@CASES
@given(st.sampled_from(sorted(BORDERS)), st.integers(1, 40), st.integers(1, 20), OVERLAPS, st.integers(1, 20))
def test_windows_leave_no_voxel_out_but_those_at_the_end_that_cropping_drops(
    border: str, size: int, roi: int, overlap: float, least: int
) -> None:
    grid = window_grid((size,), (roi,), (overlap,), border=border, min_size=min(least, roi))
    (spans,) = grid.spans
    assert list(spans) == sorted(set(spans))
    assert list(spans) == sorted(spans, key=lambda span: span[::-1])  # both ends ascend
    assert spans[0][0] == 0
    assert all(before[1] >= after[0] for before, after in itertools.pairwise(spans))
    assert all(stop - start == grid.roi_size[0] for start, stop in spans) or border == "adaptive"
    assert min(stop - start for start, stop in spans) >= grid.least_size[0] or border != "adaptive"
    if border == "crop":
        assert spans[-1][1] > grid.image_size[0] - max(int(roi * (1 - Fraction(str(overlap)))), 1)
    else:
        assert spans[-1][1] == grid.image_size[0]


@CASES
@given(st.sampled_from(sorted(BORDERS)), st.integers(1, 40), st.integers(1, 20), OVERLAPS)
def test_each_voxel_goes_to_the_window_over_it_whose_centre_is_nearest(
    border: str, size: int, roi: int, overlap: float
) -> None:
    (spans,) = window_grid((size,), (roi,), (overlap,), border=border).spans
    owners = {}
    for window, (start, stop) in enumerate(nearest(spans)):
        for voxel in range(start, stop):
            assert voxel not in owners
            owners[voxel] = window
    for voxel in range(spans[-1][1]):
        over = [k for k, (start, stop) in enumerate(spans) if start <= voxel < stop]
        assert owners[voxel] == min(over, key=lambda k: (abs(2 * voxel + 1 - sum(spans[k])), k))


def test_where_patchly_divides_by_zero_there_is_one_window() -> None:
    assert window_grid((8, 20), (8, 8), (0.5, 0.5), border="squeeze").starts == ((0,), (0, 4, 8, 12))


def test_images_are_padded_to_a_window_unless_windows_are_cut() -> None:
    assert window_grid((5,), (8,), (0.5,), border="crop").image_size == (8,)
    assert window_grid((5,), (8,), (0.5,), border="adaptive").image_size == (5,)
    assert window_grid((5,), (8,), (0.5,), border="adaptive", min_size=6).image_size == (6,)
