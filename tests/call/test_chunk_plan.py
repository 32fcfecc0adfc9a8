"""A plan says before a run what the run will do, in Python and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer
from monai_chunked.__main__ import main
from monai_chunked.call.bill import plan_inferer
from monai_chunked.plan.borders import BORDERS
from tests import ROOT
from tests.watching import Watching


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_run_does_what_its_plan_says(data: st.DataObject) -> None:
    sizes = st.lists(st.integers(1, 16), min_size=3, max_size=3)
    image_size, images, classes = data.draw(sizes), data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    inferer = ChunkedSlidingWindowInferer(
        roi_size=data.draw(st.lists(st.integers(1, 8), min_size=3, max_size=3)),
        sw_batch_size=data.draw(st.integers(1, 3)),
        overlap=data.draw(st.sampled_from([0, 0.25, 0.6])),
        buffer_steps=data.draw(st.none() | st.integers(1, 2)),
        buffer_dim=data.draw(st.integers(-3, 2)),
        chunk_size=data.draw(st.none() | sizes),
        postprocessing=data.draw(st.sampled_from([None, "argmax"])) if classes > 1 else None,
        border=data.draw(st.lists(st.sampled_from(sorted(BORDERS)), min_size=3, max_size=3)),
        mode=data.draw(st.sampled_from(["constant", "crop"])),
        mirror_axes=data.draw(st.sampled_from([None, (0, 2)])),
    )
    shape = (images, 1, *image_size)
    smallest = 4 * classes * 16**3
    inferer.cpu_memory = data.draw(st.none() | st.integers(smallest // 8, smallest))
    try:
        plan = inferer.plan(shape, classes)
    except ValueError:
        with pytest.raises(ValueError, match="cpu_memory"):
            inferer(torch.rand(shape), lambda x: x.repeat_interleave(classes, 1))
        return

    inferer.progress = watching = Watching()
    calls, windows = 0, 0

    def network(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls, windows
        calls, windows = calls + 1, windows + len(x)
        return x.repeat_interleave(classes, 1)

    with torch.no_grad():
        result = inferer(torch.rand(shape), network)
    assert (plan.passes * plan.windows, plan.passes * plan.batches) == (windows, calls)
    assert plan.cpu_peak == max(held[1] for held in watching.held)
    assert (plan.scratch_written, plan.scratch_read) == (watching.levels.written, watching.levels.read)
    assert plan.output_bytes == result.nbytes


def test_a_plan_takes_the_input_itself() -> None:
    inferer = ChunkedSlidingWindowInferer(8)
    x = torch.rand(1, 1, 20, 20, dtype=torch.float64)
    assert inferer.plan(x, 3).cpu_peak == 2 * inferer.plan(x.shape, 3).cpu_peak


def test_limits_of_a_device_are_planned_without_one() -> None:
    inferer = ChunkedSlidingWindowInferer(32, overlap=0.5, sw_device="cuda", device_memory="2MB", cpu_memory="2MB")
    plan = inferer.plan((1, 1, 128, 128, 128), 5)
    assert 0 < plan.device_peak <= 2 * 10**6
    assert 0 < plan.cpu_peak <= 2 * 10**6
    assert plan.scratch_peak > 0
    assert plan.scratch_written == plan.scratch_read > 0


def test_another_scan_order_is_advised_where_it_saves_a_lot() -> None:
    inferer = ChunkedSlidingWindowInferer(96)
    assert "buffer_steps=1 and buffer_dim=2" in str(inferer.plan((1, 1, 512, 512, 2000), 105))
    assert inferer.plan((1, 1, 512, 512, 512), 105).advice is None


def test_monais_inferer_can_be_planned_for_too() -> None:
    shape = (1, 1, 100, 100, 100)
    assert plan_inferer(SlidingWindowInferer(48), shape, 2) == ChunkedSlidingWindowInferer(48).plan(shape, 2)


@pytest.mark.parametrize(
    ("parameters", "arguments", "words"),
    [
        ({"roi_size": (8, 8)}, ((1, 1, 9, 9, 9), 2), "roi_size"),
        ({"roi_size": 8, "overlap": 1}, ((1, 1, 9, 9), 2), "overlap"),
        ({"roi_size": 8}, ((9, 9), 2), r"\(B, C, \*spatial\)"),
        ({"roi_size": 8}, ((1, 1, 9, 9), 0), "out_channels"),
        ({"roi_size": 8, "cpu_memory": 100}, ((1, 1, 9, 9), 2), "smallest limit that would do"),
    ],
)
def test_what_cannot_run_cannot_be_planned(parameters: dict[str, Any], arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ChunkedSlidingWindowInferer(**parameters).plan(*arguments)


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "plan --image-size 512 512 1000 --roi-size 96 96 96 --overlap 0.25 --classes 105 --cpu-memory 8GB"
    assert main([*arguments.split(), "--plot", str(tmp_path / "plan.png")]) == 0
    printed = capsys.readouterr().out
    for words in ("686 of 96 x 96 x 96 voxels", "cpu_memory=7.5 GiB", "103.5 GiB", "250.0 MiB"):
        assert words in printed
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("size", "unit"), [(100, "MiB"), (1000, "GiB")])
def test_a_drawing_is_in_the_unit_that_fits(tmp_path: Path, size: int, unit: str) -> None:
    plan = ChunkedSlidingWindowInferer(96, overlap=0.25).plan((1, 1, size, size, size), 14)
    plan.plot(tmp_path / "plan.svg")
    assert f"open chunks in {unit}" in (tmp_path / "plan.svg").read_text()


def test_the_command_knows_where_windows_lie_and_how_often_they_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "plan --image-size 90 60 60 --roi-size 40 --overlap 0.5 --classes 2"
    for more, words in (
        ("", "16 of 40 x 40 x 40 voxels"),
        ("--mode crop", "16 of at most 30 x 30 x 30 voxels"),
        ("--border even --overlap 0.3", "12 of 40 x 40 x 40 voxels"),
        ("--border crop", "12 of 40 x 40 x 40 voxels in 12 batches"),
        ("--border edge crop adaptive --min-size 8", "24 of 40 x 40 x 40 voxels in 24 batches"),
        ("--mirror-axes 0 1 2", "16 batches, mirrored in 8 ways"),
    ):
        assert main([*arguments.split(), *more.split()]) == 0
        printed = capsys.readouterr().out
        assert words in printed, printed
    assert main([*arguments.split(), "--border", "reflect"]) == 2
    assert "'even', 'squeeze', 'adaptive', 'crop'" in capsys.readouterr().err


def test_the_command_reads_the_inferer_of_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    for config in ("configs/inference.yaml", "tests/stock_bundle.yaml"):
        assert (
            main(["plan", "--config-file", str(ROOT / config), "--image-size", "99", "99", "99", "--classes", "4"]) == 0
        )
    printed = capsys.readouterr().out
    assert "8 of 96 x 96 x 96 voxels" in printed
    assert "of 48 x 48 x 48 voxels in" in printed


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--image-size", "64", "64", "--classes", "2"]) == 2
    assert "--roi-size" in capsys.readouterr().err
    assert main(["plan", "--image-size", "64", "64", "--classes", "2", "--roi-size", "32", "--cpu-memory", "1kB"]) == 2
    assert "error: cpu_memory=1,000 bytes" in capsys.readouterr().err
