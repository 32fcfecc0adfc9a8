"""``python -m monai_chunked bundle run`` saves what ``python -m monai.bundle run`` saves, of bundles as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import run

from monai_chunked.__main__ import main
from tests import ROOT
from tests.api.zoo import ARGMAX, BUNDLES, assert_same_files, invert, save, write_bundle

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

RUN = ["bundle", "run", "--config_file"]

IN_CHUNKS: dict[str, str] = {
    "spleen_ct": "Activationsd(pred), Invertd(pred), AsDiscreted(pred)",
    "swin_unetr_btcv": "Activationsd(pred), Invertd(pred), AsDiscreted(pred)",
    "renalStructures_CECT": "Invertd(pred), ToDeviced(pred), Activationsd(pred), AsDiscreted(pred)",
    "wholeBody_ct": "Activationsd(pred), AsDiscreted(pred), Invertd(pred)",
    "prostate_mri": "AsDiscreted(pred)",
    "brats_mri": "Activationsd(pred), Invertd(pred), AsDiscreted(pred)",
    "pediatric_abdominal": "Activationsd(pred), Invertd(pred), AsDiscreted(pred)",
}
"""What runs in chunks."""


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_saves_the_same_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, ours = write_bundle(tmp_path / "monai", name), write_bundle(tmp_path / "ours", name)
    run(config_file=str(reference))
    capsys.readouterr()
    assert main([*RUN, str(ours)]) == 0
    assert_same_files(tmp_path / "ours", tmp_path / "monai")
    printed = capsys.readouterr().out
    assert f"in chunks: {IN_CHUNKS[name]}\n" in printed
    assert printed.count("MONAI's scores") == 1


def test_a_batch_of_images_is_saved_too(tmp_path: Path) -> None:
    for place in ("monai", "ours"):
        config = write_bundle(tmp_path / place, "wholeBody_ct")
        # images of other sizes cannot be in one batch; these are of one
        options = {"dataloader#batch_size": 2, "evaluator#amp": False}
        if place == "monai":
            run(config_file=str(config), **options)
        else:
            assert main([*RUN, str(config), *(f"--{name}={value}" for name, value in options.items())]) == 0
    assert_same_files(tmp_path / "ours", tmp_path / "monai")


@pytest.mark.long
def test_as_a_user_types_it(tmp_path: Path) -> None:
    """A YAML config with another one that overrides it, IDs, metadata, logging, and values on the command line."""
    printed = {}
    for module, folder in (("monai.bundle", tmp_path / "monai"), ("monai_chunked bundle", tmp_path / "ours")):
        config = write_bundle(folder, "prostate_mri", evaluating=["$@evaluator.run()"], run=["$1 / 0"])
        config.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(config.read_text())))
        (config.parent / "other.yaml").write_text(yaml.safe_dump({"inferer#overlap": 0.25, "output_dir": "$1 / 0"}))
        (config.parent / "metadata.json").write_text(json.dumps({"version": "0.0.1"}))
        (config.parent / "logging.conf").write_text((ROOT / "configs" / "logging.conf").read_text())
        files = [str(config.with_suffix(".yaml")), str(config.parent / "other.yaml")]
        arguments = ["--config_file", str(files), "--meta_file", str(config.parent / "metadata.json")]
        arguments += ["--logging_file", str(config.parent / "logging.conf"), "--output_dir", str(folder / "eval")]
        arguments += ["--inferer#sw_batch_size", "2", "--evaluator#amp=False"]
        command = [sys.executable, "-m", *module.split(), "run", "evaluating", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed[module] = done.stdout
    ours = printed["monai_chunked bundle"]
    assert "in chunks: AsDiscreted(pred)\nbehind: FillHolesd(pred), Invertd(pred), SaveImaged(pred)\n" in ours
    assert "the first image:\nimage                " in ours
    assert "in chunks" not in printed["monai.bundle"]


@pytest.mark.parametrize("target", ["monai.engines.SupervisedEvaluator", "monai_chunked.ChunkedEvaluator"])
def test_an_evaluator_is_found_by_its_full_name_and_behind_a_macro(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_bundle(tmp_path, "prostate_mri", run=["$@other.run()"], other="%evaluator")
    config = json.loads(path.read_text())
    config["evaluator"]["_target_"] = target
    path.write_text(json.dumps(config))
    assert main([*RUN, str(path)]) == 0
    assert "in chunks: AsDiscreted(pred)" in capsys.readouterr().out


def test_a_lambda_of_a_config_can_be_vouched_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda labels: (labels > 0).float()"}
    for place, vouched in (("monai", merge), ("ours", {"_target_": "monai_chunked.each_voxel", "transform": merge})):
        transforms = [ARGMAX, vouched, invert(True), save()]
        changed = {"postprocessing": {"_target_": "Compose", "transforms": transforms}}
        path = str(write_bundle(tmp_path / place, "prostate_mri", **changed))
        if place == "monai":
            run(config_file=path)
        else:
            assert main([*RUN, path]) == 0
    assert_same_files(tmp_path / "ours", tmp_path / "monai")
    assert "in chunks: AsDiscreted(pred), Lambdad(pred)" in capsys.readouterr().out


# ---------------------------------------------------------------- evaluators that none of ours can take the place of

ZOO = "tests.api.zoo"
ARGUMENTS = {
    name: f"@{name}" for name in ("device", "network", "inferer", "postprocessing")
} | {"val_data_loader": "@dataloader", "val_handlers": "@handlers"}  # fmt: skip
CALL = ", ".join(f"{name}={value}" for name, value in ARGUMENTS.items())
LEFT = "evaluator: postprocessing left whole: "
BY_OTHERS = LEFT + "the config does not make it by _target_: SupervisedEvaluator"
FROM = ["$from monai.engines import SupervisedEvaluator", "$from tests.api import zoo"]
MORE_IMPORTS = ["$import numpy as np", "$import torch", *FROM]
OWN = {"_target_": f"{ZOO}.OwnEvaluator", **ARGUMENTS}
IS_OWN = LEFT + "it is OwnEvaluator, not SupervisedEvaluator"
ENSEMBLE = {"_target_": "EnsembleEvaluator", "networks": ["@network", "@network"], "pred_keys": ["pred", "other"]}
OTHERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a subclass": ({"evaluator": OWN}, [IS_OWN]),
    "an expression": ({"evaluator": f"$SupervisedEvaluator({CALL})"}, [BY_OTHERS]),
    "a function of a script": ({"evaluator": f"$zoo.make_evaluator({CALL})"}, [BY_OTHERS]),
    "a function as target": ({"evaluator": {"_target_": f"{ZOO}.make_evaluator", **ARGUMENTS}}, [BY_OTHERS]),
    "a subclass and an inferer of one's own": (
        {"evaluator": OWN, "inferer": {"_target_": f"{ZOO}.OwnInferer"}},
        [IS_OWN],
    ),
    "several networks": (
        {"evaluator": {**{k: v for k, v in ARGUMENTS.items() if k != "network"}, **ENSEMBLE}},
        [LEFT + "it is EnsembleEvaluator, not SupervisedEvaluator"],
    ),
    "an evaluator that no config knows": (
        {"evaluator": None, "run": [f"$zoo.make_evaluator({CALL}).run()"]}, []
    ),
    "one of each": (
        {
            "validate": {"evaluator": {"_target_": "SupervisedEvaluator", **ARGUMENTS}},
            "evaluator": OWN,
            "run": ["$@validate#evaluator.run()", "$@evaluator.run()"],
        },
        [IS_OWN, "in chunks: Activationsd(pred), Invertd(pred), AsDiscreted(pred)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_windows_of_other_evaluators_are_blended_in_chunks_and_it_says_what_is_left_whole(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, told = OTHERS[case]
    changes = {"imports": MORE_IMPORTS, **changes}
    reference, ours = (write_bundle(tmp_path / place, "spleen_ct", **changes) for place in ("monai", "ours"))
    run(config_file=str(reference))
    capsys.readouterr()
    assert main([*RUN, str(ours)]) == 0
    assert_same_files(tmp_path / "ours", tmp_path / "monai")
    printed = capsys.readouterr().out
    for each in told:
        assert printed.count(each) == 1
    calls = 4 if case == "several networks" else 2
    assert f"{calls} calls of MONAI's sliding_window_inference ran in chunks" in printed
    assert f"held whole by the program: scores of {calls} calls" in printed


SEVERAL: dict[str, dict[str, Any]] = {
    "an inferer that is an expression": {"inferer": "$monai.inferers.SlidingWindowInferer(16, overlap=0.5)"},
    "an inferer that is chosen": {"inferer": "$@small if True else @large"},
    "an inferer that initialize sets": {"initialize": ["$setattr(@evaluator, 'inferer', @small)"]},
    "an inferer that initialize changes": {"initialize": ["$@evaluator", "$setattr(@inferer, 'overlap', 0.75)"]},
    "several evaluators": {
        "validate": {"again": {"_target_": "SupervisedEvaluator", **ARGUMENTS, "inferer": "@small"}},
        "run": ["$@evaluator.run()", "$@validate#again.run()"],
    },
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
def test_whatever_inferers_a_config_makes_and_sets_they_run_in_chunks(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"_target_": "SlidingWindowInferer", "roi_size": [12, 16, 8], "overlap": 0.25}
    changes = {"small": small, "large": None, "imports": [*MORE_IMPORTS, "$import monai"], **SEVERAL[case]}
    reference, ours = (write_bundle(tmp_path / place, "spleen_ct", **changes) for place in ("monai", "ours"))
    run(config_file=str(reference))
    capsys.readouterr()
    assert main([*RUN, str(ours)]) == 0
    assert_same_files(tmp_path / "ours", tmp_path / "monai")
    printed = capsys.readouterr().out
    expected = "in chunks: Activationsd(pred), Invertd(pred), AsDiscreted(pred)"
    assert printed.count(expected) == (2 if case == "several evaluators" else 1)
    assert "left whole" not in printed


# ---------------------------------------------------------------- sentences


def test_a_bundle_in_which_nothing_can_run_in_chunks_runs_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, str(write_bundle(tmp_path, "spleen_ct", run=["$print('ran')"]))]) == 0
    printed = capsys.readouterr().out
    assert "ran\n" in printed
    assert "nothing ran in chunks: no sliding window inferer of MONAI's was called" in printed


def test_errors_of_monai_are_monais(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Cannot find the config file"):
        main([*RUN, str(tmp_path / "missing.json")])
    with pytest.raises(ValueError, match="run ID 'nope' doesn't exist"):
        main(["bundle", "run", "nope", "--config_file", str(write_bundle(tmp_path, "spleen_ct"))])


def test_a_run_that_fails_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        main([*RUN, str(write_bundle(tmp_path, "spleen_ct", run=["$1 / 0"]))])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_unknown_command_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bundle", "runn"])
    assert caught.value.code == 2
    assert "runn" in capsys.readouterr().err
