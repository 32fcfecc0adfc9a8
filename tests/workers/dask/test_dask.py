"""One volume on the workers of a Dask cluster: the bits of one process, whatever happens to workers."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import nibabel
import numpy as np
import psutil
import pytest
import torch
from dask import config
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, Flip, Rotated, Spacing

from monai_chunked import (
    ChunkedSliceInferer,
    ChunkedSlidingWindowInferer,
    MemoryOutput,
    NiftiOutput,
    NumpyOutput,
    Observer,
    open_image,
)
from monai_chunked.dask import infer
from tests.killed_run import OUTPUTS
from tests.outputs.recorded import windows_that_touch_what_is_not_recorded
from tests.run.test_exactness import Network
from tests.run.test_rounding import Rounded
from tests.side_by_side import assert_same, random
from tests.transforms import inverted

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

CASES = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FEW = settings(CASES, max_examples=2)
MANY = settings(CASES, max_examples=40)
DEADLINE = 600  # seconds, in which a run ends whatever happens to workers
KILLS, RUN_SECONDS = 30, 1.5  # the latter is about what a run takes


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two workers, each a process with one thread."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def network(heads: int = 1, kind: str = "tensor") -> Network:
    return Network(1, 3, ((1, 1, 1),) * heads, kind)


def inferer(**more: Any) -> ChunkedSlidingWindowInferer:
    return ChunkedSlidingWindowInferer(6, **{"overlap": 0.5, "mode": "gaussian", **more})


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    sizes = st.lists(st.integers(3, 12), min_size=3, max_size=3)
    kind = draw(st.sampled_from(["tensor", "tuple", "dict"]))
    mask = None
    size = draw(sizes)
    if draw(st.booleans()):
        mask = torch.zeros(size)
        for _ in range(draw(st.integers(0, 2))):
            mask[tuple(draw(st.integers(0, n - 1)) for n in size)] = 1
    return {
        "shape": (draw(st.integers(1, 2)), 1, *size),
        "network": (1 if kind == "tensor" else 2, kind),
        "parts": draw(st.none() | st.integers(1, 7)),
        "inverse": draw(st.booleans()) and kind == "tensor",
        "given": {
            "roi_size": draw(st.lists(st.integers(3, 6), min_size=3, max_size=3)),
            "sw_batch_size": draw(st.integers(1, 4)),
            "overlap": draw(st.sampled_from([0, 0.25, 0.5])),
            "mode": draw(st.sampled_from(["constant", "gaussian", "crop"])),
            "border": draw(st.sampled_from(["edge", "even", "adaptive", "crop"])),
            "buffer_steps": draw(st.none() | st.integers(1, 2)),
            "chunk_size": draw(st.none() | sizes),
            "postprocessing": draw(st.sampled_from([None, "argmax", torch.nn.Identity()])),
            "mask": mask,
            "skip": draw(st.sampled_from([None, None, 0.5])),
            "background": draw(st.sampled_from([0, 0.5])),
        },
    }


FORWARD = Compose([Flip(0), Spacing((1.5, 1.0, 0.8), mode="bilinear")])


def check_same(client: Any, case: dict[str, Any]) -> None:
    image, how = random(*case["shape"]), dict(case["given"])
    if case["inverse"]:
        each = [FORWARD(MetaTensor(one, affine=torch.eye(4))) for one in image]
        image, how = list_data_collate(each), {**how, "inverse": "image", "mask": None}
    one = ChunkedSlidingWindowInferer(**how)
    expected = one(image, network(*case["network"]))
    result = infer(one, image, functools.partial(network, *case["network"]), client, parts=case["parts"])
    assert_same(result, expected)


def halved(dtype: torch.dtype) -> Any:
    return Rounded(network(), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_workers_round_as_monai_rounds(client: Any, dtype: torch.dtype) -> None:
    image, how = random(1, 1, 14, 12, 13), {"roi_size": 6, "overlap": 0.5, "mode": "gaussian"}
    for inputs in (torch.float32, dtype):
        expected = SlidingWindowInferer(**how)(image.to(inputs), halved(dtype))
        one = ChunkedSlidingWindowInferer(**how, rounding="monai")
        assert torch.equal(infer(one, image.to(inputs), functools.partial(halved, dtype), client, parts=3), expected)


@CASES
@given(cases())
def test_workers_give_the_bits_of_one_process(client: Any, case: dict[str, Any]) -> None:
    check_same(client, case)


@pytest.mark.long
@MANY
@given(cases())
def test_workers_give_the_bits_of_one_process_in_many_more_cases(client: Any, case: dict[str, Any]) -> None:
    check_same(client, case)


def check_inverse(client: Any, case: inverted.Case, parts: int | None) -> None:
    note(f"{case.transforms}, {case.parameters}")
    one = ChunkedSlidingWindowInferer(postprocessing=case.chain, **case.sliding, **case.parameters)
    make = functools.partial(inverted.Network, case.kind, case.classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        reference = case.monai()
        inverted.assert_same_images(case.ours(), reference)
        try:
            result = infer(one, case.batch[inverted.KEY], make, client, parts=parts)
        except ValueError as error:
            assert case.may_be_whole and "cannot be done a chunk at a time" in str(error)  # noqa: PT017, PT018
            return
    inverted.assert_same_images(result, reference)


@FEW
@given(inverted.cases(), st.none() | st.integers(1, 5))
def test_workers_undo_any_preprocessing_as_monai_does(client: Any, case: inverted.Case, parts: int | None) -> None:
    check_inverse(client, case, parts)


@pytest.mark.long
@MANY
@given(inverted.cases(), st.none() | st.integers(1, 5))
def test_workers_undo_many_more_preprocessings(client: Any, case: inverted.Case, parts: int | None) -> None:
    check_inverse(client, case, parts)


@pytest.mark.parametrize("output", list(OUTPUTS))
def test_results_on_disk_are_those_of_one_process(client: Any, output: str, tmp_path: Path) -> None:
    image, one = random(1, 1, 12, 11, 10), inferer(postprocessing="argmax")
    expected = one(image, network())
    result = infer(one, image, network, client, OUTPUTS[output](tmp_path), parts=3)
    assert torch.equal(
        torch.as_tensor(np.asarray(result[0] if output != "zarr" else result[:])).reshape(12, 11, 10), expected[0, 0]
    )


def test_an_input_is_opened_by_each_worker(client: Any, tmp_path: Path) -> None:
    volume = random(14, 11, 10)
    nibabel.save(nibabel.Nifti1Image(volume.numpy(), np.diag([2.0, 1, 1, 1])), tmp_path / "image.nii")
    one = inferer(postprocessing="argmax")
    source = functools.partial(open_image, tmp_path / "image.nii")
    assert_same(infer(one, source, network, client), one(source(), network()))


class Told(Observer):
    """As a user writes one: all methods, and all that their docstrings say."""

    def __init__(self) -> None:
        self.windows, self.skipped, self.predicted, self.open, self.closed = 0, 0, 0, [], 0
        self.seen: list[tuple[int, tuple[int, ...]]] = []
        self.finished: list[int] = []

    def start(self, windows: int) -> None:
        self.windows = windows

    def skips(self, windows: int) -> None:
        self.skipped = windows

    def opened(self, open_bytes: tuple[int, ...]) -> None:
        self.open.append(sum(open_bytes))

    def window(self, window: Any, predicted: bool, stitcher: Any) -> None:
        self.seen.append((window.image, window.position))
        self.predicted += predicted
        assert 0 <= stitcher.finished <= stitcher.total
        assert stitcher.open_bytes >= 0
        self.finished.append(stitcher.finished)
        self.total = stitcher.total

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("masked", [False, True])
def test_an_observer_sees_what_it_sees_without_workers(client: Any, masked: bool) -> None:
    image, mask = random(2, 1, 12, 11, 10), torch.zeros(2, 1, 12, 11, 10)
    mask[:, :, :5, :6] = 1
    told, alone = Told(), Told()
    more = {"mask": mask} if masked else {}
    infer(inferer(progress=told, **more), image, network, client, parts=5)
    inferer(progress=alone, **more)(image, network())
    assert told.windows == len(told.seen) > told.skipped == told.windows - told.predicted
    assert (told.skipped > 0) == masked
    assert (told.windows, told.skipped, told.predicted, told.total, told.closed) == (
        (alone.windows, alone.skipped, alone.predicted, alone.total, alone.closed)
    )
    assert sorted(told.seen) == sorted(alone.seen)
    assert told.finished == sorted(told.finished)


# ---------------------------------------------------------------- what goes wrong


class Failing(Network):
    """Fails at a window that begins in a voxel of some value, so many times, as files count them."""

    def __init__(self, folder: Path, times: int, ends_process: bool = False) -> None:
        super().__init__(1, 3, ((1, 1, 1),), "tensor")
        self.folder, self.times, self.ends_process = folder, times, ends_process

    def forward(self, x: torch.Tensor) -> Any:
        if (x == 7).any() and len(list(self.folder.iterdir())) < self.times:
            (self.folder / f"{time.monotonic_ns()}").touch()
            if self.ends_process:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no such luck")
        return super().forward(x)


def test_argmax_over_one_channel_is_refused_before_there_are_parts(client: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one channel.*AsDiscrete\(threshold=0\.5\)"):
        infer(
            inferer(postprocessing="argmax"), random(1, 1, 12, 11, 10), torch.nn.Identity, client, NumpyOutput(tmp_path)
        )
    assert not list(tmp_path.iterdir())


def image_with_seven() -> torch.Tensor:
    image = random(1, 1, 18, 11, 10)
    image[0, 0, -1, -1, -1] = 7
    return image


def test_a_part_that_fails_twice_is_tried_again(client: Any, tmp_path: Path) -> None:
    image, one = image_with_seven(), inferer()
    result = infer(one, image, functools.partial(Failing, tmp_path, 2), client, parts=4)
    assert torch.equal(result, one(image, network()))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_part_that_fails_again_and_again_is_named(client: Any, tmp_path: Path) -> None:
    message = (
        r"no such luck \(while predicting window image 0 .*\) \(in part 3 of 4, windows \d+ to \d+, tried 3 times\)"
    )
    with pytest.raises(ValueError, match=message):
        infer(inferer(), image_with_seven(), functools.partial(Failing, tmp_path, 99), client, parts=4)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_part_whose_worker_is_lost_is_done_by_another(client: Any, tmp_path: Path) -> None:
    image, one = image_with_seven(), inferer()
    result = infer(one, image, functools.partial(Failing, tmp_path, 1, True), client, parts=4)
    assert torch.equal(result, one(image, network()))


def test_a_run_that_failed_goes_on_with_what_is_missing(client: Any, tmp_path: Path) -> None:
    image, one = image_with_seven(), inferer(network_id="one", run_id="one")
    counted, results = tmp_path / "counted", NumpyOutput(tmp_path / "results")
    counted.mkdir()
    with pytest.raises(ValueError, match="no such luck"):
        infer(one, image, functools.partial(Failing, counted, 3), client, results, parts=6)
    needed = missing_in(tmp_path)
    told = Told()
    one.progress = told
    result = infer(one, image, functools.partial(Failing, counted, 3), client, results, parts=3)
    assert torch.equal(result, inferer()(image, network()))
    assert told.predicted == needed
    assert told.windows == len(told.seen)


def missing_in(folder: Path) -> int:
    """How many windows of the image with a seven are to be predicted yet; how far a run came is chance."""
    return len(windows_that_touch_what_is_not_recorded(folder, (18, 11, 10), (6, 6, 6), images=1))


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)], ids=["by workers first", "here first"])
def test_a_run_goes_on_by_workers_or_here_whoever_began_it(
    client: Any, tmp_path: Path, first: bool, then: bool
) -> None:
    image, counted, told = image_with_seven(), tmp_path / "counted", Told()
    counted.mkdir()

    def run(by_workers: bool, times: int, **more: Any) -> Any:
        one = inferer(network_id="one", run_id="one", **more)
        make, results = functools.partial(Failing, counted, times), NiftiOutput(tmp_path / "results")
        if by_workers:
            return infer(one, image, make, client, results, parts=6)
        one.output = results
        return one(image, make())

    with pytest.raises(ValueError, match="no such luck"):
        run(first, 99)
    needed = missing_in(tmp_path)
    (result,) = run(then, 0, progress=told)
    assert np.array_equal(np.asarray(result[:]).reshape(3, 18, 11, 10), inferer()(image, network())[0].numpy())
    assert told.predicted == needed
    assert told.windows == len(told.seen)


def rotated() -> inverted.Case:
    turn = Rotated(inverted.KEY, angle=(0.1, 0.0, 0.0))
    return inverted.Case([turn], (15, 18, 16), inverted.affine_of("plain", (1.1, 0.9, 1.7)))


def test_an_inverse_of_the_whole_prediction_is_refused() -> None:
    case = rotated()
    message = "cannot be done a chunk at a time, so not by several workers: .*Rotate.*leave it out and undo the result"
    with pytest.raises(ValueError, match=message):
        infer(inferer(postprocessing=case.chain), case.batch[inverted.KEY], network, None)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"inferer": ChunkedSliceInferer(2, roi_size=(8, 8))}, TypeError, "ChunkedSliceInferer"),
        ({"inferer": SlidingWindowInferer(8)}, TypeError, "must be a ChunkedSlidingWindowInferer, got SlidingWindow"),
        ({"source": np.zeros((3, 3))}, ValueError, r"\(B, C, \*spatial\)"),
        ({"parts": 0}, ValueError, "parts=0 must be at least 1"),
        ({"inferer": inferer(overlap=2)}, ValueError, "overlap"),
        ({"inferer": inferer(process_group="world")}, ValueError, "process_group is for torchrun"),
    ],
)
def test_what_cannot_run_is_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    how = {"inferer": inferer(), "source": random(1, 1, 9, 9, 9), "network_factory": network, "client": None, **given}
    with pytest.raises(error, match=words):
        infer(**how)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match="pip install distributed"):
        infer(inferer(), random(1, 1, 9, 9, 9), network, None)


class Slow(Network):
    def forward(self, x: torch.Tensor) -> Any:
        time.sleep(0.02)
        return super().forward(x)


def slow() -> Slow:
    return Slow(1, 3, ((1, 1, 1),), "tensor")


def children() -> set[psutil.Process]:
    """All processes that this one has started, but for that of Python's multiprocessing, which lives as long."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.add(child)
    return found


def is_left(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill(worker: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """What hangs is an error."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it took more than {DEADLINE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def wait_for_nannies(cluster: Any) -> None:
    """One that is still starting its worker does not start another one if that is killed."""
    end = time.monotonic() + DEADLINE
    while any(nanny.status.name != "running" for nanny in cluster.workers.values()):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.long
def test_workers_that_are_killed_at_random_moments_change_nothing() -> None:
    image, draw = random(1, 1, 24, 11, 10), Random(0)
    expected = inferer()(image, slow())
    before, seen = children(), set()  # the workers of other tests, and of this one
    with (
        # else LocalCluster gives up a worker that is killed twice, 15 s apart
        config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        for _ in range(KILLS):
            wait_for_nannies(cluster)
            client.wait_for_workers(1, DEADLINE)
            workers = client.run(os.getpid, on_error="ignore")  # one that was killed comes back by itself
            timer = threading.Timer(draw.uniform(0, RUN_SECONDS), kill, [draw.choice(sorted(workers.values()))])
            timer.start()
            with deadline():
                result = infer(inferer(), image, slow, client, MemoryOutput(), parts=draw.randint(2, 6))
            timer.join()
            seen |= children() - before
            assert torch.equal(result, expected)
    assert len(seen) >= KILLS // 2
    assert not [process for process in seen if is_left(process)]
