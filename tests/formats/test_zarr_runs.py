"""OME-Zarr stores of runs that stopped can be gone on with, also behind URLs, and what cannot be held is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import zarr

from monai_chunked import Expected, ZarrOutput
from monai_chunked.plan.boxes import Box
from tests.formats.zarr_cases import at, boxes, described, monai, random_values, result, volume, write_all
from tests.outputs.cases import infer_into

# ---------------------------------------------------------------- crashes


CUTS = ((0, 3, 7), (0, 5), (0, 4, 6))


def left_by_a_crash(output: ZarrOutput, values: torch.Tensor, chunks: int) -> list[tuple[int, Box]]:
    """Write so many chunks, forget the writer; returns what it said would survive."""
    writer = output.create(result(values.shape, CUTS))
    safe = []
    for box in boxes(CUTS)[:chunks]:
        writer.write(0, box, values[at(0, box)])
        safe += list(writer.flush())
    return safe


@pytest.mark.parametrize("storage_chunk_size", [3, 2, 100])
@pytest.mark.parametrize("chunks", range(5))
def test_a_run_goes_on_where_it_stopped(storage_chunk_size: int, chunks: int, tmp_path: Path) -> None:
    values = random_values((1, 2, 7, 5, 6))
    output = ZarrOutput(tmp_path, storage_chunk_size=storage_chunk_size, levels=2)
    safe = left_by_a_crash(output, values, chunks)
    path = tmp_path / "0" / "0_trans.ome.zarr"
    assert not path.exists()
    writer = output.resume(result(values.shape, CUTS))
    assert not writer.complete
    for image, box in safe:
        assert torch.equal(writer.read(image, box), values[at(image, box)])
    for box in boxes(CUTS):
        if (0, box) not in safe:
            writer.write(0, box, values[at(0, box)])
    array = writer.finish()
    assert np.array_equal(array[...], values[0].numpy())
    pooled = torch.nn.functional.avg_pool3d(values[0], 2, ceil_mode=True, count_include_pad=False)
    assert np.allclose(zarr.open_group(path, mode="r")["1"][...], pooled.numpy(), rtol=1e-6)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert np.array_equal(output.load(result(values.shape, CUTS))[...], values[0].numpy())
    finished = output.resume(result(values.shape, CUTS))
    assert finished.complete
    assert np.array_equal(finished.finish()[...], values[0].numpy())


def test_some_chunks_are_safe_before_the_last_one_is_written(tmp_path: Path) -> None:
    assert 0 < len(left_by_a_crash(ZarrOutput(tmp_path, storage_chunk_size=3), random_values((1, 2, 7, 5, 6)), 2)) <= 2


def test_abandoning_keeps_what_is_written_and_a_fresh_run_replaces_it(tmp_path: Path) -> None:
    values = random_values((1, 2, 7, 5, 6))
    output = ZarrOutput(tmp_path, storage_chunk_size=3)
    writer = output.create(result(values.shape, CUTS))
    writer.write(0, boxes(CUTS)[0], values[at(0, boxes(CUTS)[0])])
    writer.abandon()
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["0_trans.ome.zarr.partial"]
    array = write_all(output.create(result(values.shape, CUTS)), values, CUTS)
    assert np.array_equal(array[...], values[0].numpy())


def test_an_old_store_stays_until_the_new_one_is_complete_and_only_goes_if_it_may(tmp_path: Path) -> None:
    old, new = random_values((1, 2, 7, 5, 6)), random_values((1, 2, 7, 5, 6)) + 1
    output = ZarrOutput(tmp_path)
    write_all(output.create(result(old.shape, CUTS)), old, CUTS)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        output.create(result(old.shape, CUTS))
    with pytest.raises(FileExistsError, match=r"0_trans\.ome\.zarr"):
        output.check(Expected(0, metadata=result(old.shape, CUTS).metadata, overwrite=False))
    writer = output.create(replace(result(new.shape, CUTS), overwrite=True))
    assert np.array_equal(output.load(result(old.shape, CUTS))[...], old[0].numpy())
    array = write_all(writer, new, CUTS)
    assert np.array_equal(array[...], new[0].numpy())


def test_what_cannot_be_gone_on_with_is_said(tmp_path: Path) -> None:
    values = random_values((1, 2, 7, 5, 6))
    output = ZarrOutput(tmp_path)
    for go_on in (output.resume, output.load):
        with pytest.raises(OSError, match=r"0_trans\.ome\.zarr"):
            go_on(result(values.shape, CUTS))
    left_by_a_crash(output, values, 1)
    for other in (result((1, 3, 7, 5, 6), CUTS), result(values.shape, CUTS, torch.float64)):
        with pytest.raises(OSError, match=r"it holds float32 of shape \(2, 7, 5, 6\).*0_trans\.ome\.zarr"):
            output.resume(other)
    metadata = tmp_path / "0" / "0_trans.ome.zarr.partial" / "0" / "zarr.json"
    metadata.write_text(metadata.read_text()[:100])
    with pytest.raises(OSError, match=r"0_trans\.ome\.zarr"):
        output.resume(result(values.shape, CUTS))


# ---------------------------------------------------------------- URLs, errors, manners


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_url_is_written_in_place_and_removed_if_the_run_fails(protocol: str, tmp_path: Path) -> None:
    url = f"{protocol}://{tmp_path}"
    values = random_values((1, 2, 7, 5, 6))
    options = {"auto_mkdir": True} if protocol == "file" else None
    output = ZarrOutput(url, levels=2, storage_options=options)
    assert output.journal(result(values.shape, CUTS).metadata) is None
    writer = output.create(result(values.shape, CUTS))
    writer.write(0, boxes(CUTS)[0], values[at(0, boxes(CUTS)[0])])
    writer.abandon()
    assert not [path for path in fsspec.filesystem(protocol).find(str(tmp_path)) if "ome.zarr" in path]
    array = write_all(output.create(result(values.shape, CUTS)), values, CUTS)
    assert np.array_equal(array[...], values[0].numpy())
    described(f"{url}/0/0_trans.ome.zarr")
    with pytest.raises(FileExistsError, match=f"{protocol}://"):
        output.check(Expected(0, metadata=result(values.shape, CUTS).metadata, overwrite=False))


def test_what_zarr_or_ngff_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="bfloat16"):
        ZarrOutput(tmp_path).check(Expected(0, torch.bfloat16))
    with pytest.raises(TypeError, match="label=True"):
        ZarrOutput(tmp_path, label=True).check(Expected(0, torch.float32))
    with pytest.raises(ValueError, match="2 or 3 spatial dimensions"):
        ZarrOutput(tmp_path).create(result((1, 1, 4), [(0, 4)]))
    with pytest.raises(ValueError, match="one channel"):
        ZarrOutput(tmp_path, label=True).create(result((1, 2, 4, 4), [(0, 4)] * 2, torch.uint8))
    with pytest.raises(ValueError, match=r"shard_size=\(5, 5\) must be a multiple of storage_chunk_size=\(2, 2\)"):
        ZarrOutput(tmp_path, storage_chunk_size=2, shard_size=5).create(result((1, 2, 4, 4), [(0, 4)] * 2))
    with pytest.raises(ValueError, match="levels=0"):
        ZarrOutput(tmp_path, levels=0)
    with pytest.raises(ValueError, match="compression_level=23"):
        ZarrOutput(tmp_path, compression_level=23)
    with pytest.raises(NotADirectoryError, match="output_dir"):
        ZarrOutput(Path(__file__) / "missing").check(Expected(0))
    assert list(tmp_path.iterdir()) == []


WITHOUT_ZARR = """
import sys
sys.modules["zarr"] = None  # MONAI imports it too if it is there
import monai_chunked
try:
    monai_chunked.ZarrOutput("/tmp")
except ImportError as error:
    print(error)
"""


def test_a_missing_zarr_is_said_at_once(python: Callable[..., Any]) -> None:
    assert python(WITHOUT_ZARR).stdout == "ZarrOutput needs zarr 3: pip install 'zarr>=3'\n"


@pytest.mark.long
def test_importing_the_package_needs_no_zarr() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ZARR], capture_output=True, text=True, check=True)
    assert done.stdout == "ZarrOutput needs zarr 3: pip install 'zarr>=3'\n"


def test_an_output_can_be_copied_and_pickled(tmp_path: Path) -> None:
    for output in (copy.deepcopy(ZarrOutput(tmp_path)), pickle.loads(pickle.dumps(ZarrOutput(tmp_path, "other")))):
        assert np.array_equal(infer_into(volume(), output)[...], monai(volume())[0])
