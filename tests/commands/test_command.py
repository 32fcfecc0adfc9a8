"""``python -m monai_chunked``: plans from bundles as they are, and a sentence where it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.inferers import Inferer, SlidingWindowInferer

from monai_chunked import ChunkedSlidingWindowInferer, __version__
from monai_chunked.__main__ import main
from tests import ROOT

SIZE = ["--image-size", "100", "110", "120"]
WINDOWS: dict[str, Any] = {"roi_size": [48, 48, 48], "overlap": 0.5}
NETWORK = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 7, "channels": [4], "strides": []}


class Holding(Inferer):
    """As inferers of bundles that prepare something and then slide a window."""

    def __init__(self, inner: SlidingWindowInferer | None = None) -> None:
        self.inner = inner or SlidingWindowInferer(**WINDOWS)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def write(folder: Path, **config: Any) -> str:
    path = folder / "inference.yaml"
    path.write_text(yaml.safe_dump({"inferer": {"_target_": "SlidingWindowInferer", **WINDOWS}, **config}))
    return str(path)


def plan(*arguments: str) -> int:
    return main(["plan", *SIZE, *arguments])


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What an error says: one line, no traceback."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"monai-chunked {__version__}\n"


@pytest.mark.parametrize(
    "network",
    [
        {"network_def": NETWORK},
        {"network_def": NETWORK, "network": "$@network_def.to('cpu')"},
        {"network": NETWORK},
        {"network_def": {**NETWORK, "out_channels": "@classes"}, "classes": 7},
        {"network_def": {**NETWORK, "out_channels": "$len(@names)"}, "names": list("abcdefg")},
        {"network_def": {"_target_": "no.such.Network", "out_channels": 7}},
    ],
    ids=str,
)
def test_classes_are_those_of_the_network_of_the_bundle(
    network: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--config-file", write(tmp_path, **network)) == 0
    expected = str(ChunkedSlidingWindowInferer(**WINDOWS).plan((1, 1, 100, 110, 120), 7))
    assert capsys.readouterr().out.splitlines() == expected.splitlines()


def test_classes_of_the_command_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config-file", write(tmp_path, network_def=NETWORK), "--classes", "3") == 0
    assert capsys.readouterr().out == f"{ChunkedSlidingWindowInferer(**WINDOWS).plan((1, 1, 100, 110, 120), 3)}\n"


def test_the_bundle_of_the_repository_needs_nothing_but_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config-file", str(ROOT / "configs" / "inference.yaml")) == 0
    assert "20.1 MiB" in capsys.readouterr().out.split("output ")[1].splitlines()[0]  # scores of 4 classes


def test_an_inferer_that_adapts_itself_is_planned_for_as_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt = {"_target_": "SlidingWindowInfererAdapt", **WINDOWS}
    assert plan("--config-file", write(tmp_path, inferer=adapt, network_def=NETWORK)) == 0
    assert "of 48 x 48 x 48 voxels" in capsys.readouterr().out


def test_a_json_config_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "inference.json"
    path.write_text(json.dumps({"network_def": NETWORK, "inferer": {"_target_": "SlidingWindowInferer", **WINDOWS}}))
    assert plan("--config-file", str(path)) == 0


# ---------------------------------------------------------------- sentences


def test_an_unknown_id_is_a_sentence_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--config-file", write(tmp_path, network_def=NETWORK), "--inferer-id", "nope") == 2
    assert "--inferer-id nope is not in the config, which has inferer, network_def" in sentence(capsys)


def test_a_missing_number_of_classes_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--config-file", write(tmp_path, network="$torch.nn.Identity()")) == 2
    assert "--classes is needed here: no network_def or network or net says out_channels" in sentence(capsys)
    assert plan("--roi-size", "48") == 2
    assert "--classes is needed where there is no --config-file" in sentence(capsys)


def test_yaml_without_pyyaml_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "__init__.py").write_text("raise ModuleNotFoundError('yaml', name='yaml')")
    path = write(tmp_path, network_def=NETWORK)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "monai_chunked", "plan", *SIZE, "--config-file", path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: reading {path} needs PyYAML: pip install pyyaml\n"


def test_a_config_that_is_none_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text("inferer: [\n")
    assert plan("--config-file", str(tmp_path / "broken.yaml")) == 2
    assert "broken.yaml cannot be read" in sentence(capsys)
    assert plan("--config-file", str(tmp_path / "missing.yaml")) == 2
    assert "missing.yaml" in sentence(capsys)


def test_an_inferer_that_cannot_be_made_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for inferer in ({"_target_": "SlidingWindowInferer", "roi_sise": 4}, {"_target_": "scripts.Own"}, "@lost"):
        assert plan("--config-file", write(tmp_path, inferer=inferer, network_def=NETWORK)) == 2
        assert "'inferer' of the config cannot be made" in sentence(capsys)


def test_an_inferer_that_holds_one_says_how_to_plan_for_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"_target_": f"{Holding.__module__}.Holding"}
    inner = {"_target_": "SlidingWindowInferer", **WINDOWS}
    path = write(tmp_path, network_def=NETWORK, inferer={**target, "inner": inner})
    assert plan("--config-file", path) == 2
    assert "'inferer' is Holding, not a SlidingWindowInferer, but it holds one: --inferer-id inferer#inner" in sentence(
        capsys
    )
    assert plan("--config-file", path, "--inferer-id", "inferer#inner") == 0
    assert "of 48 x 48 x 48 voxels" in capsys.readouterr().out

    path = write(tmp_path, network_def=NETWORK, inferer={**target, "inner": "@windows"}, windows=inner)
    assert plan("--config-file", path) == 2
    assert "--inferer-id windows plans for it" in sentence(capsys)

    assert plan("--config-file", write(tmp_path, network_def=NETWORK, inferer=target)) == 2
    assert "it holds one as 'inner'; give its parameters instead of --config-file, as in --roi-size" in sentence(capsys)
    assert plan("--config-file", write(tmp_path, network_def=NETWORK, inferer={"_target_": "SimpleInferer"})) == 2
    assert "'inferer' is SimpleInferer, not a SlidingWindowInferer; give its parameters" in sentence(capsys)
