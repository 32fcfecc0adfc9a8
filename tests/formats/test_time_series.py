"""A time series becomes a result for each point of time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monai_chunked import NumpyOutput, ZarrOutput, open_image
from tests.formats.ngff_cases import assert_same_place, expected, label, world, write


@pytest.mark.parametrize("axes", ["tczyx", "tzyx"])
def test_a_time_series_becomes_a_result_for_each_point_with_its_number_behind_the_name(
    axes: str, tmp_path: Path
) -> None:
    path = tmp_path / "movie.ome.zarr"
    data = write(path, axes)
    points = data if "c" in axes else data[:, None]
    (folder := tmp_path / "results").mkdir()
    arrays = label(open_image(path), ZarrOutput(folder, "labels", separate_folder=False, levels=2))
    found = sorted(p.name for p in folder.glob("*.zarr"))
    assert found == [f"movie_labels_t00{time}.ome.zarr" for time in range(3)]
    for time, array in enumerate(arrays):
        assert np.array_equal(array[...], expected(points[time]))
    index = [1, 2, 3]
    ours = world(folder / "movie_labels_t001.ome.zarr", 0, [0, *index])
    assert_same_place(ours, world(path, 0, [*[0] * (len(axes) - 3), *index]))


def test_one_point_of_a_time_series_is_read_and_named_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "movie.ome.zarr"
    data = write(path, "tczyx")
    (folder := tmp_path / "results").mkdir()
    for time in range(len(open_image(path))):
        image = open_image(path, time=time)
        assert image.shape == (1, 1, 14, 12, 9)
        assert np.array_equal(image, open_image(path)[time : time + 1])
        assert np.array_equal(image[0, :, 3:5, ..., 2], open_image(path)[time, :, 3:5, ..., 2])
        array = label(image, ZarrOutput(folder, "labels", separate_folder=False))
        assert np.array_equal(array[...], expected(data[time]))
        label(image, ZarrOutput(place="labels", output_postfix="cells"))
    assert sorted(p.name for p in folder.glob("*.zarr")) == [f"movie_labels_t00{time}.ome.zarr" for time in range(3)]
    assert sorted(p.name for p in (path / "labels").iterdir() if p.is_dir()) == [f"cells_t00{t}" for t in range(3)]


def test_a_npy_holds_all_points_of_a_batch_and_has_the_number_of_one_alone(tmp_path: Path) -> None:
    write(tmp_path / "movie.ome.zarr", "tczyx")
    output = NumpyOutput(tmp_path, "labels", separate_folder=False)
    assert len(label(open_image(tmp_path / "movie.ome.zarr"), output)) == 3
    assert len(label(open_image(tmp_path / "movie.ome.zarr", time=1), output)) == 1
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["movie_labels.npy", "movie_labels_t001.npy"]


def test_a_time_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "movie.ome.zarr", "tczyx")
    for time in (-1, 3):
        with pytest.raises(ValueError, match=f"time={time} must be at least 0 and less than 3"):
            open_image(tmp_path / "movie.ome.zarr", time=time)
