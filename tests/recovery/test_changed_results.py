"""A result on disk is used again only if nothing that it depends on has changed, and then it is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_chunked.recovery.description import arrays as array_description
from tests.recovery.things_that_change import MAKERS
from tests.recovery.things_that_change.inputs import OPEN
from tests.recovery.things_that_change.makers import call

NOT_RESUMABLE = {
    "array_of_the_user",
    "dask_over_files_that_it_reads_itself",
    "open_file_in_a_function",
    "function_over_a_network",
}
"""What has no value that could be compared."""

BY_OBJECT = {"h5py_in_memory", "zarr_in_memory"}
"""What another process cannot have."""


class Called(Exception):
    """The network was run."""


def never(*_: Any) -> Any:
    raise Called


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Results are returned without predicting anything, or ``Called`` is raised."""
    from monai_chunked.windows.predictor import Predictor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "__call__", never)
        yield


def outcome(made: dict[str, Any], folder: Path, **more: Any) -> tuple[Any, list[str]]:
    """The result, a refusal, and what warnings said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(made, folder, **more)
        except FileExistsError as error:
            return error, []
    return result, [str(warning.message) for warning in caught]


def make_folders(folder: Path) -> tuple[Path, Path, Path]:
    paths = folder / "files", folder / "results", folder / "fresh"
    for path in paths:
        path.mkdir(parents=True)
    return paths


@pytest.mark.parametrize("name", sorted(MAKERS))
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    overwrite=st.sampled_from([False, "changed"]),
    by_content=st.booleans(),
    back=st.booleans(),
)
def test_a_call_that_differs_in_one_thing_has_the_answer_of_a_fresh_run_or_is_refused(
    name: str, overwrite: Any, by_content: bool, back: bool, tmp_path_factory: Any
) -> None:
    files, results, fresh = make_folders(tmp_path_factory.mktemp("pair"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(array_description, "SMALL", 2**26 if by_content else 0)
        first, _ = outcome(MAKERS[name](files, back), results)
        assert isinstance(first, torch.Tensor), first
        reference, _ = outcome(MAKERS[name](files, not back), fresh)
        again, told = outcome(MAKERS[name](files, not back), results, overwrite=overwrite)
    if isinstance(again, FileExistsError):
        assert not overwrite
        return
    assert again.dtype == reference.dtype
    assert again.shape == reference.shape
    assert torch.equal(again, reference)
    assert not any("is returned as an earlier run finished it" in each for each in told)
    assert (name in NOT_RESUMABLE) == any("cannot be resumed" in each for each in told)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_call_that_differs_in_nothing_has_the_same_result_without_the_network(name: str, tmp_path: Path) -> None:
    files, results, _ = make_folders(tmp_path)
    made = MAKERS[name](files, False)
    first, told = outcome(made, results)
    if name in NOT_RESUMABLE:
        assert any("cannot be resumed" in each and "run_id=" in each for each in told)
        assert not any(results.rglob("*.journal"))
        again, told = outcome(made, results, run_id="the first")
        assert torch.equal(again, first) if isinstance(again, torch.Tensor) else "exists" in str(again)
        return
    made = MAKERS[name](files, False)  # fresh objects, and files that were written again
    with without_network():
        again, told = outcome(made, results)
    assert torch.equal(again, first)
    assert any("is returned as an earlier run finished it" in each for each in told)


OTHER_PROCESS = """
import json, sys, warnings
from pathlib import Path
from tests.recovery.test_changed_results import MAKERS, outcome, without_network

request = json.load(sys.stdin)
told = {}
for name in request["names"]:
    files, results = Path(request["folder"], name, "files"), Path(request["folder"], name, "results")
    with without_network():
        told[name] = repr(outcome(MAKERS[name](files, False), results)[1])
json.dump(told, sys.stdout)
"""


def test_another_process_with_other_hashes_finds_the_same_results(tmp_path: Path) -> None:
    names = sorted(set(MAKERS) - NOT_RESUMABLE - BY_OBJECT)
    for name in names:
        files, results, _ = make_folders(tmp_path / name)
        outcome(MAKERS[name](files, False), results)
    for file in OPEN:
        file.close()
    request = json.dumps({"names": names, "folder": str(tmp_path)})
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS],
        input=request, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert [name for name in names if "is returned as an earlier run finished it" not in told[name]] == []
