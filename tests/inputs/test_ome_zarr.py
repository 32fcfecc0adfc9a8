"""An OME-Zarr image of any version opens with the axes, the spacing and the units that its metadata name."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import ome_zarr_models.v04 as models_04
import pytest
import scipy.constants
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked import NiftiOutput, open_image
from tests.formats.ngff_cases import label
from tests.inputs.ome_zarr_cases import SIZES, image, scaled, space, spacing, voxels, write_group


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---------------------------------------------------------------- what a dimension is, and what it is called


@pytest.mark.parametrize("axes", [None, "tczyx", "TCZYX"])
def test_names_in_upper_case_open_by_themselves_with_spacing_and_units(axes: str | None, tmp_path: Path) -> None:
    described = [{"name": "T", "type": "time"}, {"name": "C", "type": "channel"}]
    described += [space(name, "micrometer") for name in "ZYX"]
    steps = scaled([2, 1, 500, 300, 250], [0, 0, 1000, 0, -50])
    array = voxels(*SIZES.values())
    write_group(tmp_path / "a.zarr", image("0.4", described, steps), {"0": array}, 2)
    models_04.Image.from_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
    opened = open_image(tmp_path / "a.zarr", axes=axes)
    assert np.array_equal(opened, array.transpose(0, 1, 4, 3, 2))
    affine = np.diag([0.25, 0.3, 0.5, 1])
    affine[:3, 3] = -0.05, 0, 1
    for meta in opened.meta:
        assert np.allclose(meta["affine"], affine, rtol=1e-12)
        assert (meta["axes"], meta["axis_units"]) == (("z", "y", "x"), ("micrometer",) * 3)


def test_axes_that_are_called_otherwise_keep_what_the_file_says_of_them(tmp_path: Path) -> None:
    described = [{"name": "c", "type": "channel"}, *[space(name, "millimeter") for name in "zyx"]]
    write_group(tmp_path / "a.zarr", image("0.5", described, scaled([1, 5, 3, 2])), {"0": voxels(2, 4, 5, 6)})
    assert spacing(tmp_path / "a.zarr") == [2, 3, 5]
    assert spacing(tmp_path / "a.zarr", axes="cxyz") == [5, 3, 2]
    assert spacing(tmp_path / "a.zarr", axes="xczy")[0] == 1  # the dimension that the file calls c


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_letter_k_of_axes_takes_scale_translation_and_unit_k_of_the_file(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 5))
    names = data.draw(st.lists(st.sampled_from("tczyxTCZYXabc"), min_size=count, max_size=count, unique=True))
    axes = "".join(
        data.draw(st.permutations("tczyx").filter(lambda letters: set(letters[:count]) & set("xyz")))[:count]
    )
    numbers = st.floats(0.01, 100).map(lambda value: round(value, 3))
    scale, moved = (data.draw(st.lists(numbers, min_size=count, max_size=count)) for _ in range(2))
    units = data.draw(st.lists(st.sampled_from([None, "meter", "um"]), min_size=count, max_size=count))
    millimeters = {None: 1, "meter": 1000, "um": 0.001}
    with tempfile.TemporaryDirectory() as folder:
        described = [space(name, unit) for name, unit in zip(names, units)]
        array = voxels(*range(2, 2 + count))
        write_group(folder, image("0.5", described, scaled(scale, moved)), {"0": array})
        opened = open_image(folder, axes=axes)
        affine = opened.meta[0]["affine"].numpy()
        for d, letter in enumerate(letter for letter in "xyz" if letter in axes):
            k = axes.index(letter)
            assert opened.shape[2 + d] == array.shape[k]
            assert np.allclose(affine[d, [d, 3]], np.array([scale[k], moved[k]]) * millimeters[units[k]], rtol=1e-12)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["depth", "y", "x"], r"axes must say .*called depth, y, x\)"),
        (["z", "y", "y"], "axes='zyy' must be a letter for each dimension"),
        (["", "y", "x"], "axes must say"),
    ],
)
def test_names_that_say_nothing_are_asked_for(names: list[str], message: str, tmp_path: Path) -> None:
    write_group(tmp_path / "a.zarr", image("0.5", [space(name) for name in names]), {"0": voxels(4, 5, 6)})
    with pytest.raises(ValueError, match=message):
        open_image(tmp_path / "a.zarr")
    assert open_image(tmp_path / "a.zarr", axes="zyx").shape == (1, 1, 6, 5, 4)


def test_dimension_names_of_an_array_may_be_in_upper_case(tmp_path: Path) -> None:
    array = voxels(4, 5, 6)
    zarr.create_array(tmp_path / "a.zarr", data=array, dimension_names=["Z", "Y", "X"])
    assert np.array_equal(open_image(tmp_path / "a.zarr"), array.transpose()[None, None])


# ---------------------------------------------------------------- units

SPECIFIED = [
    *("angstrom", "attometer", "centimeter", "decimeter", "exameter", "femtometer", "foot", "gigameter", "hectometer"),
    *("inch", "kilometer", "megameter", "meter", "micrometer", "mile", "millimeter", "nanometer", "parsec"),
    *("petameter", "picometer", "terameter", "yard", "yoctometer", "yottameter", "zeptometer", "zettameter"),
]
"""Units of axes of space, in the order of the specification."""

ABBREVIATED = {
    "nm": "nano",
    "um": "micro",
    "\N{MICRO SIGN}m": "micro",
    "\N{GREEK SMALL LETTER MU}m": "micro",
    "mm": "milli",
    "cm": "centi",
    "micrometers": "micro",
    "Micrometre": "micro",
}


def in_millimeters(unit: str) -> float:
    prefix = ABBREVIATED.get(unit, unit.removesuffix("meter"))
    return (getattr(scipy.constants, prefix) if prefix and unit != "m" else 1.0) * 1000


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("unit", [*SPECIFIED, *ABBREVIATED, "m"])
def test_a_length_in_any_unit_of_the_specification_becomes_millimeters(unit: str, tmp_path: Path) -> None:
    described = [space("z", unit), space("y", "millimeter"), space("x", unit)]
    write_group(
        tmp_path / "a.zarr", image("0.5", described, scaled([13.48, 2, 0.5], [1, 0, 0])), {"0": voxels(4, 5, 6)}
    )
    affine = open_image(tmp_path / "a.zarr").meta[0]["affine"].numpy()
    expected = in_millimeters(unit)
    assert np.allclose(np.diag(affine)[:3] / [0.5 * expected, 2, 13.48 * expected], 1, rtol=1e-12)
    assert affine[2, 3] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("unit", ["pixel", "Mm", "second", "furlong", 7])
def test_a_unit_that_is_not_known_is_warned_of_and_counts_as_none(unit: Any, tmp_path: Path) -> None:
    described = [{"name": "t", "type": "time", "unit": "fortnight"}, space("z", unit), space("y", "um"), space("x")]
    write_group(tmp_path / "a.zarr", image("0.5", described, scaled([1, 13.48, 250, 3])), {"0": voxels(2, 4, 5, 6)})
    with pytest.warns(UserWarning, match=rf"^{unit!r}, the unit of axis z of .*a.zarr, is no unit of length") as caught:
        opened = open_image(tmp_path / "a.zarr")
    assert len(caught) == 1  # nobody asks for units of time
    assert "its spacing is 13.48" in str(caught[0].message)
    assert np.allclose(np.diag(opened.meta[0]["affine"])[:3], [3, 0.25, 13.48])
    assert opened.meta[0]["axis_units"] == ("", "micrometer", "")


@pytest.mark.parametrize(("unit", "code"), [("um", 2), (None, 0)])
def test_a_nifti_of_an_ome_zarr_says_millimeters_if_that_is_known(unit: str | None, code: int, tmp_path: Path) -> None:
    described = [space(name, unit) for name in "zyx"]
    write_group(tmp_path / "a.zarr", image("0.5", described, scaled([5, 3, 2])), {"0": voxels(9, 9, 9)})
    result = label(open_image(tmp_path / "a.zarr"), NiftiOutput(tmp_path))
    assert len(list(tmp_path.rglob("*.nii"))) == 1
    (path,) = tmp_path.rglob("*.nii")
    header = nibabel.load(path).header
    assert header["xyzt_units"] == code
    factor = 0.001 if unit else 1
    assert np.allclose(header.get_zooms()[:3], np.array([2, 3, 5]) * factor)
    assert result is not None


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("version", ["0.1", "0.2", None])
def test_what_has_no_axes_is_tczyx_as_the_first_versions_were(version: str | None, tmp_path: Path) -> None:
    array = voxels(*SIZES.values())
    attributes = {"multiscales": [{"datasets": [{"path": "0"}]} | ({"version": version} if version else {})]}
    write_group(tmp_path / "a.zarr", attributes, {"0": array}, 2)
    for axes in (None, "tczyx"):
        assert np.array_equal(open_image(tmp_path / "a.zarr", axes=axes), array.transpose(0, 1, 4, 3, 2))
    assert np.array_equal(open_image(tmp_path / "a.zarr", axes="tcxyz"), array)


def test_what_has_no_axes_though_it_must_is_asked_for_them(tmp_path: Path) -> None:
    write_group(
        tmp_path / "a.zarr",
        {"multiscales": [{"version": "0.4", "datasets": [{"path": "0"}]}]},
        {"0": voxels(2, 3, 4, 5, 6)},
        2,
    )
    write_group(
        tmp_path / "b.zarr",
        {"multiscales": [{"version": "0.2", "datasets": [{"path": "0"}]}]},
        {"0": voxels(4, 5, 6)},
        2,
    )
    for name, message in (("a.zarr", "axes must say"), ("b.zarr", "metadata of 5 axes, but its '0' has shape")):
        with pytest.raises(ValueError, match=message):
            open_image(tmp_path / name)
    assert open_image(tmp_path / "a.zarr", axes="tczyx").shape == (2, 3, 6, 5, 4)


def test_axes_of_version_0_3_are_names(tmp_path: Path) -> None:
    array = voxels(2, 4, 5, 6)
    write_group(tmp_path / "a.zarr", image("0.3", ["c", "z", "y", "x"]), {"0": array}, 2)
    assert np.array_equal(open_image(tmp_path / "a.zarr"), array[None].transpose(0, 1, 4, 3, 2))


AXES_06 = [
    {"name": "c", "type": "channel"},
    space("z", "micrometer"),
    space("y", "micrometer"),
    space("x", "nanometer"),
]

SEQUENCE = {
    "type": "sequence",
    "transformations": [
        {"type": "scale", "scale": [1, 2, 4, 5]},
        {"type": "translation", "translation": [0, 10, 0, 3]},
    ],
}


@pytest.mark.parametrize(
    "step",
    [
        {**SEQUENCE, "input": {"path": "0"}, "output": {"name": "intrinsic"}},
        {**SEQUENCE, "input": "0", "output": "intrinsic"},  # as drafts of it had names
        {"type": "sequence", "transformations": [{"type": "identity"}, SEQUENCE], "output": {"name": "intrinsic"}},
    ],
    ids=["0.6", "draft", "nested"],
)
def test_version_0_6_leads_to_the_coordinate_system_that_its_levels_name(step: Any, tmp_path: Path) -> None:
    systems = [
        {"name": "elsewhere", "axes": [space(name, "meter") for name in "abcd"]},
        {"name": "intrinsic", "axes": AXES_06},
    ]
    further = {"type": "scale", "scale": [9, 9, 9, 9], "input": {"name": "intrinsic"}, "output": {"name": "elsewhere"}}
    attributes = image("0.6", [], [step], coordinateSystems=systems, coordinateTransformations=[further])
    array = voxels(2, 4, 5, 6)
    write_group(tmp_path / "a.zarr", attributes, {"0": array})
    opened = open_image(tmp_path / "a.zarr")
    assert np.array_equal(opened, array[None].transpose(0, 1, 4, 3, 2))
    affine = np.diag([5e-6, 4e-3, 2e-3, 1])
    affine[:3, 3] = 3e-6, 0, 10e-3
    assert np.allclose(opened.meta[0]["affine"], affine, rtol=1e-12, atol=0)
    assert opened.meta[0]["axis_units"] == ("micrometer", "micrometer", "nanometer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [{"type": "affine", "affine": [[1.0]]}]}, "transformation .*affine.* is no scale, translation"),
        ({"steps": scaled([1, 2])}, r"scale of \[1, 2\]; it should be 3 numbers"),
        ({"steps": [{"type": "scale", "path": "elsewhere"}]}, "scale of None; it should be 3 numbers"),
        ({"steps": scaled([1, float("nan"), 1])}, "should be 3 numbers"),
        ({"axes": [space("y"), space("x")]}, r"metadata of 2 axes, but its '0' has shape \(4, 5, 6\)"),
        ({"steps": scaled([1, 0, 1])}, "axis y of .* has a spacing of 0"),
        ({"axes": 3}, "axes are 3, and should be a list"),
        ({"datasets": []}, "datasets are .*should be a list of objects"),
        ({"datasets": [{}]}, "a level without a path"),
        ({"datasets": [{"path": "inner"}]}, "'inner' in .*a.zarr is a group"),
    ],
    ids=str,
)
def test_metadata_that_say_nothing_of_use_are_refused_with_the_path(change: Any, message: str, tmp_path: Path) -> None:
    attributes = image("0.5", [space(name) for name in "zyx"], change.pop("steps", ()))
    attributes["ome"]["multiscales"][0].update(change)
    write_group(tmp_path / "a.zarr", attributes, {"0": voxels(4, 5, 6), "inner/0": voxels(4, 5, 6)})
    with pytest.raises(ValueError, match=message) as caught:
        open_image(tmp_path / "a.zarr")
    assert "a.zarr" in str(caught.value)


def test_coordinate_systems_of_which_a_level_names_none_are_refused(tmp_path: Path) -> None:
    systems = [{"name": name, "axes": [space(axis) for axis in "zyx"]} for name in ("one", "other")]
    attributes = image("0.6", [], scaled([1, 2, 3]), coordinateSystems=systems)
    write_group(tmp_path / "a.zarr", attributes, {"0": voxels(4, 5, 6)})
    with pytest.raises(ValueError, match="coordinate systems one, other, and a level that leads to none"):
        open_image(tmp_path / "a.zarr")
    write_group(
        tmp_path / "b.zarr", image("0.6", [], scaled([1, 2, 3]), coordinateSystems=systems[:1]), {"0": voxels(4, 5, 6)}
    )
    assert spacing(tmp_path / "b.zarr") == [3, 2, 1]


# ---------------------------------------------------------------- levels


def test_a_level_that_is_missing_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    axes = [space(name) for name in "zyx"]
    write_group(tmp_path / "a.zarr", image("0.5", axes), {"1": voxels(4, 5, 6), "2": voxels(2, 3, 3)})
    with pytest.raises(FileNotFoundError, match=r"metadata name '0', which is not there.*it has 1, 2.*a.zarr"):
        open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("array", ["0", "scale0/image"])
def test_an_array_that_is_a_level_of_an_image_has_its_spacing(array: str, tmp_path: Path) -> None:
    described = [space(name, "micrometer") for name in "zyx"]
    write_group(tmp_path / "a.zarr", image("0.4", described, scaled([5, 3, 2]), array), {array: voxels(4, 5, 6)}, 2)
    image_, level = open_image(tmp_path / "a.zarr"), open_image(tmp_path / "a.zarr" / array)
    assert np.array_equal(level, image_)
    assert np.array_equal(level.meta[0]["affine"], image_.meta[0]["affine"])
    assert spacing(tmp_path / "a.zarr" / array) == [0.002, 0.003, 0.005]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.zarr"])
def test_levels_and_axes_of_what_has_none_are_refused(name: str, tmp_path: Path) -> None:
    if name == "a.npy":
        np.save(tmp_path / name, voxels(4, 5, 6))
    elif name == "a.zarr":
        zarr.create_array(tmp_path / name, data=voxels(4, 5, 6), dimension_names=list("zyx"))
    else:
        nibabel.save(nibabel.Nifti1Image(voxels(4, 5, 6), np.eye(4)), tmp_path / name)
        with pytest.raises(ValueError, match=r"axes='zyx' is for OME-Zarr, Zarr and \.npy"):
            open_image(tmp_path / name, axes="zyx")
    with pytest.raises(ValueError, match="level=1 is for OME-Zarr"):
        open_image(tmp_path / name, level=1)
