"""Every output holds MONAI's values, in memory and on disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked import NumpyOutput, Result
from tests.outputs.cases import OUTPUTS, identity, infer, is_on_disk, left_in, monai, network, same_array, volume

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


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
def test_scores_in_memory_take_no_memory_beside_the_result(python: Callable[..., Any]) -> None:
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
    ratio = float(python(code).stdout)
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
