"""Where finished chunks go: in memory, on disk, or wherever there is room, always with MONAI's values."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer, NumpyOutput, Result

OUTPUTS = ["device", "cpu", "disk", "auto"]
SETTINGS: dict[str, Any] = {"roi_size": 6, "overlap": 0.5, "mode": "gaussian"}

BYTES = 2 * 3 * 9 * 10 * 11 * 4
"""Of the scores of ``volume()``."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower with more, and much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As inference runs; the tests that want gradients enable them."""
    with torch.no_grad():
        yield


def volume(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((2, 1, *(size or (9, 10, 11))), generator=torch.Generator().manual_seed(seed))


def network(windows: torch.Tensor) -> torch.Tensor:
    return torch.cat([windows, windows.sin(), 1 - windows], 1)


def identity(windows: torch.Tensor) -> torch.Tensor:
    return windows.clone()  # MONAI writes to what the network returns


def infer(inputs: torch.Tensor, predictor: Callable[..., Any] = network, **parameters: Any) -> Any:
    return ChunkedSlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, predictor)


def monai(inputs: torch.Tensor, predictor: Callable[..., Any] = network, **parameters: Any) -> Any:
    return SlidingWindowInferer(**{**SETTINGS, **parameters})(inputs, predictor)


def is_on_disk(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor belongs to the map of a file."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what memory belongs to a file")
    address = tensor.untyped_storage().data_ptr()
    for line in maps.read_text().splitlines():
        borders, *_, path = line.split(maxsplit=5)
        start, stop = (int(border, 16) for border in borders.split("-"))
        if start <= address < stop:
            return path.endswith((".npy", " (deleted)"))
    raise AssertionError("the tensor has no memory")


def same_array(array: np.ndarray, tensor: torch.Tensor) -> bool:
    expected = tensor.numpy()
    return array.dtype == expected.dtype and np.array_equal(array, expected)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def mapped_from(folder: Path) -> int:
    """How many files of a folder are mapped; those without a name count too."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what memory belongs to a file")
    lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines()]
    return len({line[4] for line in lines if line[5:] and line[5].startswith(f"{folder}{os.sep}")})


# ---------------------------------------------------------------- the same values everywhere


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("chunk_size", [None, (4, 3, 11), (9, 10, 1), (1, 10, 5), (2, 3, 4), 100], ids=str)
def test_every_output_holds_monais_bits_for_chunks_that_cut_any_dimension_and_a_batch_of_images(
    output: str, chunk_size: Any
) -> None:
    result = infer(volume(), output=output, chunk_size=chunk_size)
    assert torch.equal(result, monai(volume()))


@pytest.mark.parametrize("size", [(37,), (13, 17), (5, 6, 7), (3, 4, 5, 3)], ids=len)
@pytest.mark.parametrize("sw_batch_size", [1, 5])
def test_a_file_holds_monais_bits_for_any_number_of_dimensions(
    size: tuple[int, ...], sw_batch_size: int, tmp_path: Path
) -> None:
    parameters: dict[str, Any] = {"roi_size": 4, "sw_batch_size": sw_batch_size}
    reference = monai(volume(*size), **parameters)
    result = infer(volume(*size), **parameters, chunk_size=2, output="disk", output_dir=tmp_path)
    assert torch.equal(result, reference)
    assert same_array(np.load(tmp_path / "prediction-0001.npy"), reference)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_file_is_the_same_through_maps_and_through_writes(data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    cuts = tuple((0, *sorted(data.draw(st.sets(st.integers(1, n)))), n) for n in size)
    cuts = tuple(tuple(sorted(set(each))) for each in cuts)
    values = torch.rand(2, 3, *size)
    result = Result("prediction", tuple(values.shape), values.dtype, cuts, ({}, {}))
    boxes = list(itertools.product(*([slice(*each) for each in itertools.pairwise(c)] for c in cuts)))
    for short_run in (0, 8, 4096):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("monai_chunked.outputs.numpy.SHORT_RUN", short_run)
            writer = NumpyOutput().create(result)
            for image, box in data.draw(st.permutations([(k, box) for k in range(2) for box in boxes])):
                writer.write(image, box, values[image][(slice(None), *box)])
                assert torch.equal(writer.read(image, box), values[image][(slice(None), *box)])
            assert torch.equal(writer.finish(), values)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the peak of a process")
def test_scores_in_memory_take_no_memory_beside_the_result() -> None:
    """In a process of its own: the peak over the start. Its ``ru_maxrss`` would begin with that of this process."""
    code = """
import re, torch
from pathlib import Path
from monai_chunked import ChunkedSlidingWindowInferer
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
image, weights = torch.rand(1, 1, 128, 128, 128), torch.rand(1, 32, 1, 1, 1)
inferer = ChunkedSlidingWindowInferer(32, 1, 0.5, "gaussian", output="cpu")
with torch.no_grad():
    inferer(image[..., :32, :32, :32], lambda windows: windows * weights)
    start = peak()
    result = inferer(image, lambda windows: windows * weights)
print((peak() - start) / result.nbytes)
"""
    ratio = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 0.9 < ratio < 1.1  # with chunks of their own 1.3


@pytest.mark.parametrize("output", OUTPUTS)
def test_several_outputs_of_different_sizes_hold_monais_bits(output: str) -> None:
    def predictor(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": network(windows), "zoomed": identity(windows[:, :, ::2, :, ::3])}

    reference = monai(volume(8, 12, 12), predictor, roi_size=(4, 6, 6))
    result = infer(volume(8, 12, 12), predictor, roi_size=(4, 6, 6), output=output, chunk_size=(3, 4, 5))
    assert list(result) == list(reference) == ["scores", "zoomed"]
    for key, expected in reference.items():
        assert torch.equal(result[key], expected)


DTYPES: dict[str, tuple[torch.dtype, Any, torch.dtype]] = {
    "float16": (torch.float16, None, torch.float16),
    "float32": (torch.float32, None, torch.float32),
    "float64": (torch.float64, None, torch.float64),
    "uint8": (torch.float32, "argmax", torch.uint8),
    "int64": (torch.float32, lambda chunk: chunk.argmax(0, keepdim=True), torch.int64),
    "bool": (torch.float32, lambda chunk: chunk > 0.5, torch.bool),
}


@pytest.mark.parametrize("name", DTYPES)
def test_a_file_holds_any_dtype_as_memory_does(name: str, tmp_path: Path) -> None:
    dtype, postprocessing, expected = DTYPES[name]
    inputs = volume().to(dtype)
    in_memory = infer(inputs, postprocessing=postprocessing, output="cpu")
    on_disk = infer(inputs, postprocessing=postprocessing, output="disk", output_dir=tmp_path)
    assert in_memory.dtype == on_disk.dtype == expected
    assert torch.equal(on_disk, in_memory)
    assert same_array(np.load(tmp_path / "prediction-0001.npy"), in_memory)
    reference = monai(inputs.double() if name == "float16" else inputs, lambda w: network(w.to(dtype)).to(w.dtype))
    if name in ("float32", "float64"):
        assert torch.equal(on_disk, reference)
    elif name in ("uint8", "int64"):
        assert torch.equal(on_disk.long(), reference.argmax(1, keepdim=True))
    elif name == "bool":
        assert torch.equal(on_disk, reference > 0.5)
    else:  # MONAI adds up in half precision, so it is asked for the answer in double precision
        assert torch.equal(on_disk, reference.half())


@pytest.mark.parametrize("output", OUTPUTS)
def test_labels_of_300_classes_are_uint16_everywhere(output: str, tmp_path: Path) -> None:
    def classes(windows: torch.Tensor) -> torch.Tensor:
        k = torch.arange(300.0).reshape(1, 300, 1, 1, 1)
        return -(windows * 300 - k).abs()

    inputs = volume(6, 6, 8)
    where = {"output_dir": tmp_path} if output == "disk" else {}
    labels = infer(inputs, classes, postprocessing="argmax", output=output, **where)
    reference = monai(inputs, classes).argmax(1, keepdim=True)
    assert labels.dtype == torch.uint16
    assert reference.max() > 255
    assert torch.equal(labels.long(), reference)
    if output == "disk":
        stored = np.load(tmp_path / "prediction-0001.npy")
        assert stored.dtype == np.uint16
        assert np.array_equal(stored, reference.numpy())


@pytest.mark.parametrize("output", ["cpu", "disk"])
def test_postprocessing_may_return_the_same_memory_every_time(output: str) -> None:
    """As a graph that was captured once does, or a session with bound outputs."""
    memory = torch.empty(3, 24, 24, 1)
    settings: dict[str, Any] = {"roi_size": 24, "output": output, "chunk_size": (24, 24, 1)}  # slow to write
    result = infer(volume(24, 24, 24), postprocessing=lambda chunk: torch.mul(chunk, 2, out=memory), **settings)
    assert torch.equal(result, 2 * monai(volume(24, 24, 24), roi_size=24))


# ---------------------------------------------------------------- in memory


@pytest.mark.parametrize("output", ["device", "cpu", "auto"])
def test_an_output_in_memory_touches_no_disk(output: str, temporary: Path) -> None:
    result = infer(volume(), output=output)
    assert result.device.type == "cpu"
    assert not is_on_disk(result)
    assert left_in(temporary) == []


@pytest.mark.parametrize(
    ("output", "device", "expected"),
    [
        ("device", None, "cpu"),
        ("device", "cpu", "cpu"),
        ("device", "meta", "meta"),
        ("device", torch.device("meta"), "meta"),
        ("cpu", None, "cpu"),
        ("cpu", "meta", "cpu"),
        ("auto", None, "cpu"),
        ("auto", "meta", "meta"),
        ("disk", "meta", "cpu"),
    ],
)
def test_device_means_what_it_means_in_monai_and_cpu_means_cpu(output: str, device: Any, expected: str) -> None:
    """The meta device stands for any that is not the CPU: it has sizes and no values."""
    result = infer(volume(), output=output, device=device)
    reference = monai(volume(), device=device)
    assert result.device.type == expected
    assert result.shape == reference.shape
    if output == "device":
        assert result.device == reference.device


# ---------------------------------------------------------------- auto


def sizes_in(message: str) -> list[str]:
    words = message.replace(",", " ").split()
    units = ("bytes", "KiB", "MiB", "GiB")
    return [f"{words[n - 1]} {unit}" for n, unit in enumerate(words) if unit in units]


class Room:
    """What is free on each device, in bytes; the rest of the package asks for it as it always does."""

    def __init__(self, **free: int) -> None:
        self.free = free

    def __call__(self, device: torch.device) -> int:
        return self.free[device.type]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def leave(**free: int) -> None:
        monkeypatch.setattr("monai_chunked.outputs.auto.available_memory", Room(**free))

    return leave


def infer_and_warnings(*args: Any, **parameters: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = infer(*args, **parameters)
    return result, [str(w.message) for w in caught if "output=" in str(w.message)]


ENOUGH = 10**9


@pytest.mark.parametrize(
    ("free", "device", "steps"),
    [
        ({"cpu": ENOUGH}, None, ["cpu"]),
        ({"cpu": 1024}, None, ["cpu", "disk"]),
        ({"meta": ENOUGH, "cpu": 0}, "meta", ["meta"]),
        ({"meta": 2048, "cpu": ENOUGH}, "meta", ["meta", "cpu"]),
        ({"meta": 2048, "cpu": 0}, "meta", ["meta", "cpu", "disk"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_auto_steps_down_to_where_there_is_room_with_one_warning_of_both_sizes_for_each_step(
    free: dict[str, int], device: Any, steps: list[str], room: Callable[..., None], temporary: Path
) -> None:
    room(**free)
    result, warned = infer_and_warnings(volume(), device=device)
    assert result.device.type == ("meta" if steps[-1] == "meta" else "cpu")
    assert mapped_from(temporary) == (steps[-1] == "disk")
    assert len(warned) == len(steps) - 1
    for message, here, below in zip(warned, steps, steps[1:]):
        assert "output='auto'" in message
        assert f"on {here}" in message
        assert f"to {below}" in message
        needed, available = sizes_in(message)
        assert needed == "23.2 KiB"
        assert (available.split()[0] in ("0", "0.0")) if free[here] == 0 or here == "cpu" else available == "2.0 KiB"
    if result.device.type == "cpu":
        assert torch.equal(result, monai(volume()))


def test_auto_leaves_room_for_open_chunks(room: Callable[..., None]) -> None:
    whole = {"chunk_size": 100}  # one chunk an image: half of the result is open at a time
    room(cpu=BYTES + BYTES // 2)
    assert not is_on_disk(infer(volume(), **whole))
    room(cpu=BYTES + BYTES // 2 - 1)
    with pytest.warns(UserWarning, match="open chunks"):
        assert is_on_disk(infer(volume(), **whole))


def test_auto_puts_the_outputs_that_fit_in_memory_and_the_others_on_disk(room: Callable[..., None]) -> None:
    def predictor(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return identity(windows), network(windows), windows * 2

    room(cpu=BYTES)  # open chunks take some of it, and the three channels in the middle do not fit beside them
    results, warned = infer_and_warnings(volume(), predictor, chunk_size=2)
    assert [is_on_disk(result) for result in results] == [False, True, True]
    assert len(warned) == 2
    assert len(set(warned)) == 2
    for result, reference in zip(results, monai(volume(), predictor)):
        assert torch.equal(result, reference)


def test_auto_counts_labels_not_scores_where_postprocessing_reduces(room: Callable[..., None]) -> None:
    room(cpu=BYTES)
    labels, warned = infer_and_warnings(volume(), postprocessing="argmax", chunk_size=2)
    assert not is_on_disk(labels)
    assert warned == []


def test_auto_writes_to_output_dir_when_it_comes_to_that(room: Callable[..., None], tmp_path: Path) -> None:
    room(cpu=0)
    result, _ = infer_and_warnings(volume(), output_dir=tmp_path)
    assert left_in(tmp_path) == ["prediction-0001.npy"]
    assert same_array(np.load(tmp_path / "prediction-0001.npy"), result)


def test_auto_steps_down_to_disk_also_where_gradients_are_on(room: Callable[..., None]) -> None:
    convolution = torch.nn.Conv3d(1, 3, 1)
    room(cpu=0)
    with torch.enable_grad():
        result, warned = infer_and_warnings(volume(), convolution)
    assert len(warned) == 1
    assert is_on_disk(result)
    assert not result.requires_grad
    assert torch.equal(result, monai(volume(), convolution))


def test_auto_keeps_the_gradients_of_the_outputs_that_stay_in_memory(room: Callable[..., None]) -> None:
    convolution = torch.nn.Conv3d(1, 3, 1)

    def predictor(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return convolution(windows).sum(1, keepdim=True), convolution(windows)

    room(cpu=BYTES)
    with torch.enable_grad():
        results, _ = infer_and_warnings(volume(), predictor, chunk_size=2)
        references = monai(volume(), predictor)
        weights = volume(seed=1)
        assert [is_on_disk(result) for result in results] == [False, True]
        assert [result.requires_grad for result in results] == [True, False]
        (gradient,) = torch.autograd.grad((results[0] * weights).sum(), convolution.weight)
        (expected,) = torch.autograd.grad((references[0] * weights).sum(), convolution.weight)
    assert torch.allclose(gradient, expected, rtol=1e-4)
    for result, reference in zip(results, references):
        assert torch.equal(result, reference)


def test_one_inferer_decides_anew_for_each_call(room: Callable[..., None]) -> None:
    inferer = ChunkedSlidingWindowInferer(**SETTINGS)
    room(cpu=0)
    with pytest.warns(UserWarning, match="output='auto'"):
        assert is_on_disk(inferer(volume(), network))
    room(cpu=ENOUGH)
    for _ in range(3):
        assert not is_on_disk(inferer(volume(), network))


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


def test_nothing_is_left_of_the_file_without_a_name_when_the_interpreter_ends(temporary: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", END_WITH_A_RESULT]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "[]\n"
    assert run.stderr == ""
    assert left_in(temporary) == []


def test_a_run_that_is_killed_leaves_only_a_file_that_says_it_is_partial(temporary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", END_WITH_A_RESULT, str(folder)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
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


# ---------------------------------------------------------------- runs that fail


def fails_at(call: int, error: BaseException) -> Callable[[torch.Tensor], Any]:
    calls = iter(range(1, 10**6))

    def predictor(windows: torch.Tensor) -> Any:
        if next(calls) == call:
            raise error
        return network(windows), windows

    return predictor


def chunk_fails_at(call: int) -> Callable[[torch.Tensor], torch.Tensor]:
    calls = iter(range(1, 10**6))

    def postprocessing(chunk: torch.Tensor) -> torch.Tensor:
        if next(calls) == call:
            raise ArithmeticError("bad chunk")
        return chunk

    return postprocessing


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "without a name"])
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("call", [1, 2, 23, 36])
def test_a_run_whose_network_fails_leaves_nothing_on_disk(
    call: int, error: BaseException, named: bool, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(type(error)):
        infer(volume(), fails_at(call, error), output="disk", output_dir=folder if named else None)
    assert left_in(folder) == left_in(temporary) == []


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "without a name"])
@pytest.mark.parametrize("call", [1, 2, 30])
def test_a_run_whose_postprocessing_fails_leaves_nothing_on_disk(
    call: int, named: bool, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(ArithmeticError, match="bad chunk"):
        infer(
            volume(),
            lambda w: (network(w), identity(w)),
            postprocessing=("argmax", chunk_fails_at(call)),
            output="disk",
            output_dir=folder if named else None,
        )
    assert left_in(folder) == left_in(temporary) == []


@pytest.mark.parametrize("named", [True, False], ids=["output_dir", "without a name"])
def test_a_run_whose_second_output_is_refused_leaves_nothing_of_the_first(
    named: bool, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(TypeError, match="bfloat16"):
        infer(
            volume().bfloat16(),
            lambda w: (w, w),
            postprocessing=("argmax", None),
            output="disk",
            output_dir=folder if named else None,
        )
    assert left_in(folder) == left_in(temporary) == []


def test_while_it_runs_a_file_says_that_it_is_partial(tmp_path: Path) -> None:
    seen = []

    def predictor(windows: torch.Tensor) -> torch.Tensor:
        seen.append(left_in(tmp_path))
        return windows

    infer(volume(), predictor, output="disk", output_dir=tmp_path)
    assert seen[0] == []
    assert all(files == ["prediction-0001.npy.partial"] for files in seen[1:])
    assert left_in(tmp_path) == ["prediction-0001.npy"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not tell what files are open")
def test_runs_leave_no_file_open_and_no_thread_behind(tmp_path: Path) -> None:
    def left() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = left()
    for _ in range(5):
        infer(volume(), output="disk", output_dir=tmp_path)
        with pytest.raises(RuntimeError, match="boom"):
            infer(volume(), fails_at(5, RuntimeError("boom")), output="disk")
        with pytest.raises(ArithmeticError, match="bad chunk"):
            infer(volume(), postprocessing=chunk_fails_at(3), output="disk")
    assert left() == before
