"""A journal that was cut or damaged, or that is of another run, never gives a wrong result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked import (
    NumpyOutput,
)
from monai_chunked.recovery.journal import Journal
from tests.killed_run import OUTPUTS, Network, image, inferer
from tests.outputs.recorded import FORMATS, expected, journal_in, stopped, voxels


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_journal_cut_anywhere_never_gives_a_wrong_result(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = stopped(folder)
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    path.write_bytes(whole[: int(data.draw(st.floats(0, 0.999), "part") * len(whole))])
    with torch.no_grad():
        if path.stat().st_size < header:
            with pytest.raises(OSError, match=r"journal is damaged.*overwrite=True"):
                inferer(NumpyOutput(folder))(image(), Network())
        else:
            result = inferer(NumpyOutput(folder), overwrite=False)(image(), Network())
            assert torch.equal(voxels(result), expected())


@pytest.mark.parametrize("output", FORMATS)
def test_a_journal_that_lacks_records_of_a_finished_result_is_refused(output: str, tmp_path: Path) -> None:
    with torch.no_grad():
        inferer(OUTPUTS[output](tmp_path))(image(), Network())
        path = journal_in(tmp_path)
        path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:10]) + b"\n")
        with pytest.raises(OSError, match=r"journal lacks chunks .* overwrite=True"):
            inferer(OUTPUTS[output](tmp_path))(image(), Network())


def test_a_record_that_was_cut_off_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = stopped(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with torch.no_grad():
        inferer(NumpyOutput(tmp_path))(image(), Network())
    assert "ends in the middle of a record" in caplog.text


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_in_the_journal_is_noticed(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    path = stopped(folder)
    content = bytearray(path.read_bytes())
    at = int(data.draw(st.floats(0, 0.999), "position") * (len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"journal is damaged.*overwrite=True"), torch.no_grad():
        inferer(NumpyOutput(folder))(image(), Network())


@pytest.mark.parametrize("output", FORMATS)
def test_data_that_is_not_what_was_recorded_is_noticed(output: str, tmp_path: Path) -> None:
    stopped(tmp_path, output)
    data = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".journal", ".json", ".lock")]
    largest = max(data, key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    for damage in (whole[: len(whole) // 2], bytes(len(whole)), whole[:200] + bytes(len(whole) - 200)):
        largest.write_bytes(damage)
        with pytest.raises(OSError, match=r"overwrite=True"), torch.no_grad():
            inferer(OUTPUTS[output](tmp_path))(image(), Network())
    with torch.no_grad():
        result = inferer(OUTPUTS[output](tmp_path), overwrite=True)(image(), Network())
    assert torch.equal(voxels(result), expected())


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mine, other = stopped(tmp_path / "a"), stopped(tmp_path / "b")
    header = {**Journal.read(other).records[0]["fingerprint"], "input": "0" * 32}
    Journal.create(other, {"fingerprint": header})
    mine.write_bytes(other.read_bytes())
    with pytest.raises(FileExistsError, match="what differs: input"), torch.no_grad():
        inferer(NumpyOutput(tmp_path / "a"))(image(), Network())
