"""What is compared before a result is used again, what cannot be, and what the user vouches for."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from monai.networks import nets
from torch.utils._python_dispatch import TorchDispatchMode

from monai_chunked import ChunkedSlidingWindowInferer, NiftiOutput, NumpyOutput, ZarrOutput
from monai_chunked.recovery.description import arrays as array_description
from monai_chunked.recovery.description.describer import Describer, Undescribable
from monai_chunked.recovery.journal import Journal
from tests.recovery.things_that_change.inputs import as_image
from tests.recovery.things_that_change.makers import Network, call, image, named

OUTPUTS = {"npy": NumpyOutput, "nii": NiftiOutput, "zarr": lambda folder: ZarrOutput(folder, storage_chunk_size=4)}


def text(value: Any) -> str:
    return Describer().text(value, "value")


class Model:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, values: Any) -> Any:
        return values * 2


class Wrapper:
    def __init__(self, model: Any) -> None:
        self.func = {"model": model}

    def __call__(self, values: Any) -> Any:
        return self.func["model"](values)


def test_what_cannot_be_described_is_said_once_with_its_path_and_leaves_no_journal(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call({"postprocessing": Wrapper(Model())}, tmp_path)
    (said,) = [str(warning.message) for warning in caught]
    assert "cannot be resumed" in said
    assert "postprocessing.func.model.lock: <class '_thread.lock'>" in said
    assert "run_id=" in said
    assert "network_id=" in said
    assert not any(tmp_path.rglob("*.journal"))
    with pytest.raises(FileExistsError, match="overwrite=True"), pytest.warns(UserWarning, match="cannot be resumed"):
        call({"postprocessing": Wrapper(Model())}, tmp_path)


@pytest.mark.parametrize(
    "thing",
    [threading.Lock(), (k for k in range(3)), memoryview(b""), sys.__stdout__, torch.empty(2, device="meta")],
    ids=lambda thing: type(thing).__name__,
)
def test_what_has_no_value_is_refused(thing: Any) -> None:
    with pytest.raises(Undescribable, match=r"value\.held: <class"):
        text({"held": thing})


def test_a_run_id_vouches_for_what_cannot_be_compared_and_for_nothing_else(tmp_path: Path) -> None:
    def made(**more: Any) -> Any:
        return call({"postprocessing": Wrapper(Model()), **more}, tmp_path)

    first = made(run_id="1")
    with pytest.warns(UserWarning, match="is returned as an earlier run finished it"):
        assert torch.equal(made(run_id="1"), first)
    with pytest.raises(FileExistsError, match=r"what differs: run_id \('1' before, '2' now\)"):
        made(run_id="2")
    with pytest.raises(FileExistsError, match="what differs: overlap"):
        made(run_id="1", overlap=0.5)
    with pytest.raises(FileExistsError, match="what differs: network"):
        made(run_id="1", network=Network(2.0))


def test_an_array_that_nobody_knows_is_sampled_where_the_user_vouches_for_it(tmp_path: Path) -> None:
    class Own:
        shape, dtype, meta = image().shape, np.dtype(np.float32), {"filename_or_obj": "scan.nii"}

        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __getitem__(self, index: Any) -> np.ndarray:
            return self.values[index]

    call({"inputs": Own(image())}, tmp_path, run_id="1")
    with pytest.raises(FileExistsError, match="what differs: input"):
        call({"inputs": Own(image(True))}, tmp_path, run_id="1")


def test_a_network_id_stands_for_code_and_attributes_but_not_for_weights(tmp_path: Path) -> None:
    class Counting(Network):
        calls = 0

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(windows)

    network = Counting()
    call({"network": network}, tmp_path)
    with pytest.raises(FileExistsError, match=r"what differs: network\.calls \(\d+ before, \d+ now\) \(network_id="):
        call({"network": network}, tmp_path)
    call({"network": network}, tmp_path, network_id="first", overwrite=True)
    with pytest.warns(UserWarning, match="is returned as an earlier run finished it"):
        call({"network": network}, tmp_path, network_id="first")
    torch.nn.init.zeros_(network.convolution.weight)
    with pytest.raises(FileExistsError, match="what differs: network weights"):
        call({"network": network}, tmp_path, network_id="first")
    with pytest.raises(FileExistsError, match="what differs: network weights, network_id"):
        call({"network": network}, tmp_path, network_id="second")


def test_a_result_without_journal_never_lies_beside_the_journal_of_another(tmp_path: Path) -> None:
    other = {"postprocessing": Wrapper(Model())}
    first = call({}, tmp_path).clone()
    with pytest.raises(FileExistsError, match="cannot be compared"), pytest.warns(UserWarning, match="be resumed"):
        call(other, tmp_path)
    with pytest.warns(UserWarning, match="be resumed"):
        replaced = call(other, tmp_path, overwrite=True)
    assert torch.equal(replaced, first * 2)
    with pytest.raises(FileExistsError, match="exists"):
        call({}, tmp_path)
    assert torch.equal(call({}, tmp_path, overwrite="changed"), first)


def test_a_result_whose_origin_is_not_known_is_replaced_if_changes_are(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    call({}, tmp_path)
    for journal in tmp_path.rglob("*.journal"):
        journal.unlink()
    with pytest.raises(FileExistsError, match="exists"):
        call({"kwargs": {"shift": 1.0}}, tmp_path)
    again = call({"kwargs": {"shift": 1.0}}, tmp_path, overwrite="changed")
    assert torch.equal(again, call({"kwargs": {"shift": 1.0}}, tmp_path / "fresh"))


@pytest.mark.parametrize("output", list(OUTPUTS))
def test_what_is_the_same_goes_on_or_is_returned_and_what_has_changed_is_replaced(output: str, tmp_path: Path) -> None:
    def run(network: Any, inputs: Any) -> Any:
        inferer = ChunkedSlidingWindowInferer(
            4, overlap=0, output=OUTPUTS[output](tmp_path), overwrite="changed", network_id="first"
        )
        with torch.no_grad():
            return torch.as_tensor(np.asarray(inferer(inputs, network)[:]))

    class Counting(Network):
        calls, stop = 0, 0

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == self.stop:
                raise KeyboardInterrupt
            return super().forward(windows)

    stopped, resumed, returned, replaced = (Counting() for _ in range(4))
    stopped.stop = 10
    with pytest.raises(KeyboardInterrupt):
        run(stopped, named(image()))
    first = run(resumed, named(image()))
    with pytest.warns(UserWarning, match="is returned as an earlier run finished it"):
        assert torch.equal(run(returned, named(image())), first)
    assert not torch.equal(run(replaced, named(image(True))), first)
    assert 0 < resumed.calls < replaced.calls
    assert returned.calls == 0


@pytest.mark.parametrize("overwrite", ["always", 1, None])
def test_any_other_overwrite_is_refused(overwrite: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"overwrite={overwrite!r} must be True, False or 'changed'"):
        call({}, tmp_path, overwrite=overwrite)


@pytest.mark.parametrize("kind", ["memmap", "zarr"])
def test_touching_a_file_is_no_change_unless_it_is_too_large_to_compare(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "image.npy", image())
    zarr.create_array(tmp_path / "image.zarr", data=image(), chunks=(1, 1, 4, 4, 4))

    def inputs() -> Any:
        if kind == "memmap":
            return as_image(np.load(tmp_path / "image.npy", mmap_mode="r"))
        return as_image(zarr.open_array(tmp_path / "image.zarr", mode="r"))

    for small in (True, False):
        monkeypatch.setattr(array_description, "SMALL", 2**26 if small else 0)
        results = tmp_path / f"results-{small}"
        results.mkdir()
        call({"inputs": inputs()}, results)
        for path in (tmp_path / "image.npy", *(p for p in (tmp_path / "image.zarr").rglob("*") if p.is_file())):
            os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))
        if small:
            with pytest.warns(UserWarning, match="is returned as an earlier run finished it"):
                call({"inputs": inputs()}, results)
        else:
            with pytest.raises(FileExistsError, match="what differs: input"):
                call({"inputs": inputs()}, results)


def test_a_private_copy_of_a_mapped_file_is_known_by_its_own_voxels(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", image())
    changed = np.load(tmp_path / "image.npy", mmap_mode="c")
    changed[0, 0, 4, 4, 4] += 1
    assert text(changed) == text(image(True))


def test_the_journal_of_another_version_is_refused_as_such(tmp_path: Path) -> None:
    call({}, tmp_path)
    (path,) = tmp_path.rglob("*.journal")
    data = json.dumps({**Journal.read(path).records[0], "format": 1}, sort_keys=True).encode()
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(data), data))
    with pytest.raises(FileExistsError, match=r"another version of monai_chunked .* overwrite=True"):
        call({}, tmp_path)


def test_circles_and_deep_objects_are_followed_to_their_end() -> None:
    def deep(end: Any) -> Any:
        held: Any = [end]
        for _ in range(25):
            held = Wrapper(held)
        return held

    assert text(deep(1)) == text(deep(1)) != text(deep(2))
    circle: list[Any] = [1]
    circle.append({"self": circle})
    assert text(circle) == text(circle)
    very_deep: Any = []
    for _ in range(100_000):
        very_deep = [very_deep]
    with pytest.raises(Undescribable, match="nested too deep"):
        text(very_deep)


def test_sets_do_not_depend_on_their_order() -> None:
    first, second = set(range(0, 5000, 1000)), set(range(4000, -1, -1000))
    first |= {k * 8 for k in range(9)}
    second |= {k * 8 for k in range(8, -1, -1)}
    assert text(first) == text(second)


NETWORKS = {
    "SegResNet": lambda: nets.SegResNet(init_filters=8),
    "UNet": lambda: nets.UNet(3, 1, 2, (4, 8, 16), (2, 2)),
    "DynUNet": lambda: nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], deep_supervision=True),
    "SwinUNETR": lambda: nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=12),
    "AttentionUnet": lambda: nets.AttentionUnet(3, 1, 2, (4, 8), (2,)),
    "LSTM": lambda: torch.nn.LSTM(3, 4),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks_of_monai_built_alike_with_the_same_weights_are_the_same(name: str) -> None:
    networks = [NETWORKS[name](), NETWORKS[name]()]
    networks[1].load_state_dict(networks[0].state_dict())
    networks[1].register_forward_hook(print).remove()  # numbers of hooks go on throughout the process
    assert text(networks[0]) == text(networks[1])
    assert text(networks[0]) != text(networks[1].eval())


class Operations(TorchDispatchMode):
    """Counts what is done to tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_describing_a_network_does_not_read_its_weights_again() -> None:
    network = nets.SegResNet(init_filters=8)
    describer = Describer()
    with Operations() as first:
        describer.weights_text(network.state_dict())
    with Operations() as second:
        describer.text(network, "network")
    assert first.count > len(network.state_dict())
    assert second.count == 0
