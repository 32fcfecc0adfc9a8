"""A result on disk is a tensor over the map of a file, which has a name or is gone with the tensor."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_chunked import ChunkedSlidingWindowInferer
from tests.outputs.cases import (
    SETTINGS,
    identity,
    infer,
    is_on_disk,
    left_in,
    mapped_from,
    monai,
    network,
    same_array,
    volume,
)

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


# ---------------------------------------------------------------- disk: a tensor over the map of a file


def test_on_disk_the_result_is_a_tensor_over_the_map_of_a_npy_file(tmp_path: Path) -> None:
    result = infer(volume(), output="disk", output_dir=tmp_path)
    assert type(result) is torch.Tensor
    assert is_on_disk(result)
    assert left_in(tmp_path) == ["prediction-0001.npy"]
    stored = np.load(tmp_path / "prediction-0001.npy")
    assert stored.flags.c_contiguous
    assert same_array(stored, monai(volume()))
    assert torch.equal(result, monai(volume()))


@pytest.mark.parametrize("kind", [str, Path])
def test_output_dir_is_a_string_or_a_path(kind: type, tmp_path: Path) -> None:
    infer(volume(), output="disk", output_dir=kind(tmp_path))
    assert left_in(tmp_path) == ["prediction-0001.npy"]


@pytest.mark.parametrize("meta", [False, True], ids=["tensor", "MetaTensor"])
def test_on_disk_what_is_written_to_the_tensor_reaches_the_file(meta: bool, tmp_path: Path) -> None:
    inputs = MetaTensor(volume()) if meta else volume()
    result = infer(inputs, output="disk", output_dir=tmp_path)
    result[1, 2, 3:5] = 7
    result.mul_(2)
    stored = np.load(tmp_path / "prediction-0001.npy")
    assert (stored[1, 2, 3:5] == 14).all()
    assert np.array_equal(stored[0], 2 * monai(volume())[0].numpy())


def test_on_disk_everything_downstream_works_unchanged() -> None:
    result, reference = infer(volume(), output="disk"), monai(volume())
    assert torch.equal(result.softmax(1).argmax(1), reference.softmax(1).argmax(1))
    assert torch.equal(pickle.loads(pickle.dumps(result)), reference)
    assert torch.equal(copy.deepcopy(result), reference)
    assert np.array_equal(result.numpy(), reference.numpy())
    assert torch.equal(result.to(torch.float64), reference.double())


def test_on_disk_a_result_in_output_dir_stays_when_the_tensor_is_gone(tmp_path: Path, temporary: Path) -> None:
    infer(volume(), output="disk", output_dir=tmp_path)
    assert left_in(tmp_path) == ["prediction-0001.npy", "temporary"]
    assert left_in(temporary) == []


# ---------------------------------------------------------------- disk: a file without a name


@pytest.mark.parametrize(
    "keep",
    [
        lambda result: result,
        lambda result: result[1],
        lambda result: result.permute(0, 2, 3, 4, 1)[..., 2],
        lambda result: result.flatten(),
        lambda result: result.detach(),
        lambda result: result.numpy(),
        lambda result: MetaTensor(result),
        lambda result: MetaTensor(result)[0],
        lambda result: [{"pred": image} for image in result],
    ],
    ids=["tensor", "image", "permuted", "flattened", "detached", "array", "MetaTensor", "image of it", "decollated"],
)
def test_the_file_without_a_name_lives_as_long_as_anything_that_shares_the_memory(
    keep: Callable[[torch.Tensor], Any], temporary: Path
) -> None:
    result = infer(volume(), output="disk")
    kept = keep(result)
    before = repr(kept)
    del result
    assert mapped_from(temporary) == 1
    assert left_in(temporary) == []
    assert repr(kept) == before
    del kept
    assert mapped_from(temporary) == 0


def test_the_file_without_a_name_of_a_metatensor_is_gone_with_it(temporary: Path) -> None:
    result = infer(MetaTensor(volume()), output="disk")
    assert isinstance(result, MetaTensor)
    assert is_on_disk(result)
    assert mapped_from(temporary) == 1
    del result
    assert mapped_from(temporary) == 0


def test_each_output_and_call_has_a_file_without_a_name_of_its_own(temporary: Path) -> None:
    first, second = infer(volume(), lambda w: (network(w), identity(w)), output="disk")
    third = infer(volume(seed=1), output="disk")
    assert mapped_from(temporary) == 3
    del first
    assert mapped_from(temporary) == 2
    assert torch.equal(second, monai(volume(), identity))
    del second
    assert torch.equal(third, monai(volume(seed=1)))
    del third
    assert mapped_from(temporary) == 0


END_WITH_A_RESULT = """
import os, sys, tempfile
import torch
from monai_chunked import ChunkedSlidingWindowInferer

def network(windows):
    network.calls += 1
    if network.calls == 12:
        print(*os.listdir(sys.argv[1]), flush=True)
        os._exit(9)  # as if killed
    return windows

network.calls = 0
inferer = ChunkedSlidingWindowInferer(8, output="disk")
result = inferer(torch.rand(1, 1, 12, 12, 12), network)  # 8 windows
print(os.listdir(tempfile.gettempdir()), flush=True)
if sys.argv[1:]:
    inferer.output_dir = sys.argv[1]
    inferer(torch.rand(1, 1, 12, 12, 12), network)
"""


def test_nothing_is_left_of_the_file_without_a_name_when_the_interpreter_ends(
    python: Callable[..., Any], temporary: Path
) -> None:
    run = python(END_WITH_A_RESULT, temporary=temporary)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "[]\n"
    assert run.stderr == ""
    assert left_in(temporary) == []


def test_a_run_that_is_killed_leaves_only_a_file_that_says_it_is_partial(
    python: Callable[..., Any], temporary: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    run = python(END_WITH_A_RESULT, folder, temporary=temporary)
    assert run.returncode == 9, run.stderr
    assert run.stdout.splitlines()[1:] == left_in(folder) == ["prediction-0001.npy.partial"]
    again = infer(volume(), output="disk", output_dir=folder)
    assert torch.equal(again, monai(volume()))


# ---------------------------------------------------------------- disk: several results in one folder


def test_several_calls_with_one_output_dir_do_not_overwrite_each_other(tmp_path: Path) -> None:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, output="disk", output_dir=tmp_path)
    results = [inferer(volume(seed=seed), network) for seed in range(3)]
    assert left_in(tmp_path) == [f"prediction-000{n}.npy" for n in (1, 2, 3)]
    for seed, result in enumerate(results):
        assert torch.equal(result, monai(volume(seed=seed)))
        assert same_array(np.load(tmp_path / f"prediction-000{seed + 1}.npy"), result)


def test_a_file_that_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "prediction-0001.npy").write_text("mine")
    (tmp_path / "prediction-0002.npy.partial").write_text("mine too")
    infer(volume(), output="disk", output_dir=tmp_path)
    assert (tmp_path / "prediction-0001.npy").read_text() == "mine"
    assert (tmp_path / "prediction-0002.npy.partial").read_text() == "mine too"
    assert same_array(np.load(tmp_path / "prediction-0003.npy"), monai(volume()))


def test_several_outputs_in_one_output_dir_are_told_apart_by_name(tmp_path: Path) -> None:
    def predictor(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": network(windows), "edges": identity(windows)}

    infer(volume(), predictor, output="disk", output_dir=tmp_path)
    reference = monai(volume(), predictor)
    assert left_in(tmp_path) == ["prediction-edges-0001.npy", "prediction-scores-0001.npy"]
    for key, expected in reference.items():
        assert same_array(np.load(tmp_path / f"prediction-{key}-0001.npy"), expected)


@pytest.mark.parametrize(
    "keys",
    [("a/b", "a"), ("../up", "down"), (0, 1), ("", " "), ("x" * 300, "y" * 300), ("白" * 100, "灰" * 100)],
    ids=["slash", "folder above", "numbers", "blank", "long", "long in bytes"],
)
@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "without a name"])
def test_outputs_with_names_that_are_no_file_names_reach_the_disk(
    keys: tuple[Any, Any], named: bool, tmp_path: Path, temporary: Path
) -> None:
    def predictor(windows: torch.Tensor) -> dict[Any, torch.Tensor]:
        return {keys[0]: identity(windows), keys[1]: windows + 1}

    folder = tmp_path / "results"
    folder.mkdir()
    results = infer(volume(), predictor, output="disk", output_dir=folder if named else None)
    reference = monai(volume(), predictor)
    for key in keys:
        assert torch.equal(results[key], reference[key])
    assert mapped_from(folder if named else temporary) == 2
    assert len(left_in(folder)) == (2 if named else 0)
    assert all(path.endswith(".npy") for path in left_in(folder))


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "without a name"])
def test_calls_from_several_threads_with_one_output_dir_do_not_overwrite_each_other(
    named: bool, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    inferer = ChunkedSlidingWindowInferer(**SETTINGS, output="disk", output_dir=folder if named else None)
    seeds = range(16)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda seed: inferer(volume(7, 8, 6, seed=seed), network), seeds))
    for seed, result in zip(seeds, results):
        assert torch.equal(result, monai(volume(7, 8, 6, seed=seed)))
    if named:
        assert left_in(folder) == [f"prediction-{n:04d}.npy" for n in range(1, 17)]
    results.clear()
    del result
    assert left_in(temporary) == []
