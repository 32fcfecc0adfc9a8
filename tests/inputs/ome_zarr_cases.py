"""OME-Zarr stores of all versions, as the specifications have them; a helper."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from monai_chunked import open_image

SIZES = {"t": 3, "c": 2, "z": 4, "y": 5, "x": 6}


def voxels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype("i2")


def write_group(
    path: Any,
    attributes: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    zarr_format: int = 3,
    names: Sequence[str] | None = None,
) -> Any:
    """A group with attributes, and arrays in it by their paths."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    for name, array in arrays.items():
        chunks = tuple(min(n, 4) for n in array.shape)
        group.create_array(name, data=array, chunks=chunks, dimension_names=names if zarr_format == 3 else None)
    group.attrs.update(attributes)
    return group


def scaled(values: Sequence[float], translation: Sequence[float] | None = None) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": list(values)}]
    return steps if translation is None else [*steps, {"type": "translation", "translation": list(translation)}]


def image(
    version: str,
    axes: Sequence[Any],
    steps: Sequence[Any] = (),
    path: str = "0",
    **multiscale: Any,
) -> dict[str, Any]:
    """Attributes of an image of one level."""
    dataset: dict[str, Any] = {"path": path}
    if steps:
        dataset["coordinateTransformations"] = list(steps)
    stated: dict[str, Any] = {"datasets": [dataset], "name": "image", **multiscale}
    if version in ("0.3", "0.4", "0.5"):
        stated["axes"] = list(axes)
    if version in ("0.5", "0.6"):
        return {"ome": {"version": version, "multiscales": [stated]}}
    return {"multiscales": [{"version": version, **stated}]}


def space(name: str, unit: str | None = None) -> dict[str, str]:
    return {"name": name, "type": "space"} | ({} if unit is None else {"unit": unit})


def write_plate(path: Path, version: str = "0.4") -> None:
    """Two wells with two images each."""

    def stated(kind: str, value: Any) -> dict[str, Any]:
        return {"ome": {"version": version, kind: value}} if version == "0.5" else {kind: value}

    zarr_format = 3 if version == "0.5" else 2
    rows = {"rows": [{"name": "A"}], "columns": [{"name": "1"}, {"name": "2"}]}
    wells = [{"path": f"A/{column}", "rowIndex": 0, "columnIndex": column - 1} for column in (1, 2)]
    plate = {"version": version, **rows, "wells": wells}
    write_group(path, stated("plate", plate), {}, zarr_format)
    zarr.open_group(path / "A", mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    described = [space(name, "micrometer") for name in "zyx"]
    for column in (1, 2):
        write_group(
            path / f"A/{column}",
            stated("well", {"version": version, "images": [{"path": "0"}, {"path": "1"}]}),
            {},
            zarr_format,
        )
        for number in (0, 1):
            attributes = image(version, described, scaled([5, 3, 2 + number]))
            array = voxels(9, 9, 9) + 10 * column + number
            write_group(path / f"A/{column}/{number}", attributes, {"0": array}, zarr_format, list("zyx"))


def into_zip(folder: Path, archive: Path, within: str = "") -> Path:
    """A zip file of a store, which lies at its root by RFC-9, or in a folder in it."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            file.write(path, within + path.relative_to(folder).as_posix())
    return archive


def spacing(path: Any, **parameters: Any) -> list[float]:
    """Of an image as it is opened, along x, y and z in millimeters."""
    affine = open_image(path, **parameters).meta[0]["affine"].numpy()
    return [float(f"{length:.12g}") for length in np.diag(affine)[:-1]]
