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
from tests.inference.zoo import ARGMAX, BUNDLES, assert_same_files, invert, save, saved, write_bundle

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


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("evaluator", "found"),
    [
        ({"_target_": "EnsembleEvaluator"}, "it has EnsembleEvaluator as 'evaluator'"),
        ("$None", "it has no evaluator"),
    ],
)
def test_a_bundle_without_an_evaluator_that_can_be_replaced_is_a_sentence(
    evaluator: Any, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, str(write_bundle(tmp_path, "spleen_ct", evaluator=evaluator))]) == 2
    error = capsys.readouterr().err
    assert f"error: the config has no _target_: SupervisedEvaluator that could run in chunks; {found}; " in error
    assert not saved(tmp_path)


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
