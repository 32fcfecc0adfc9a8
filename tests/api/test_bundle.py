"""In MONAI's own machinery: bundles from the command line, evaluators, and the files that they save."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.inferers import Inferer, SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityd,
    Spacingd,
)
from ome_zarr_models.v05 import ImageLabel

from monai_chunked import ChunkedSlidingWindowInferer
from tests import ROOT
from tests.formats.nifti_cases import files_in
from tutorials.template import write_template


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The template at 2 mm."""
    return write_template(tmp_path_factory.mktemp("data"), 2)


def run_bundle(*arguments: object) -> str:
    """``python -m monai.bundle run`` as a user types it; returns what it prints."""
    return run_module("monai.bundle", "run", *arguments)


def run_module(*arguments: object) -> str:
    """``python -m`` with these arguments; returns what it prints."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def saved(folder: Path) -> nibabel.Nifti1Image:
    (path,) = folder.rglob("*.nii.gz")
    return nibabel.load(path)


def assert_same_file(ours: nibabel.Nifti1Image, reference: nibabel.Nifti1Image) -> None:
    assert np.array_equal(np.asanyarray(ours.dataobj), np.asanyarray(reference.dataobj))
    assert np.array_equal(ours.affine, reference.affine)
    assert ours.get_data_dtype() == reference.get_data_dtype()
    assert ours.header.get_zooms() == reference.header.get_zooms()
    assert len(np.unique(np.asanyarray(ours.dataobj))) == 4


def run_with_monai(data: dict[str, str], folder: Path, *arguments: object) -> nibabel.Nifti1Image:
    """What the bundle saves with two words changed back: MONAI's evaluator and MONAI's inferer."""
    words = ("--evaluator#_target_", "SupervisedEvaluator", "--inferer#_target_", "SlidingWindowInferer")
    images = [{"image": data["image"]}]
    settings = ("--data", images, "--output_dir", folder, *words, *arguments)
    run_bundle("--config_file", "configs/inference.yaml", *settings)
    return saved(folder)


@pytest.fixture(scope="session")
def reference(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> nibabel.Nifti1Image:
    return run_with_monai(data, tmp_path_factory.mktemp("monai"))


OVERRIDES = [("--inferer#output", "disk"), ("--inferer#chunk_size", 40)]


@pytest.mark.parametrize("overrides", [(), *[pytest.param(each, marks=pytest.mark.long) for each in OVERRIDES]])
def test_the_bundle_saves_the_same_file_as_with_monais_inferer(
    overrides: tuple[object, ...], data: dict[str, str], reference: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    images = [{"image": data["image"]}]
    run_bundle("--config_file", "configs/inference.yaml", "--data", images, "--output_dir", tmp_path, *overrides)
    assert_same_file(saved(tmp_path), reference)


@pytest.mark.long
def test_two_processes_of_torchrun_save_the_same_file(
    data: dict[str, str], reference: nibabel.Nifti1Image, tmp_path: Path
) -> None:
    torchrun = ("torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "monai.bundle", "run")
    settings = ("--data", [{"image": data["image"]}], "--output_dir", tmp_path)
    run_module(*torchrun, "--config_file", "configs/inference_workers.yaml", *settings)
    assert_same_file(saved(tmp_path), reference)


@pytest.mark.long
def test_two_workers_of_dask_save_the_same_file(reference: nibabel.Nifti1Image, tmp_path: Path) -> None:
    run_module("tutorials.demo_dask", "--output-dir", tmp_path, "--resolution", 2)
    assert_same_file(saved(tmp_path), reference)


@pytest.mark.long
def test_parameters_of_monai_are_overridden_from_the_command_line(data: dict[str, str], tmp_path: Path) -> None:
    images = [{"image": data["image"]}]
    arguments = ("--config_file", "configs/inference.yaml", "--data", images, "--inferer#roi_size", [64, 64, 64])
    files = []
    for overlap in (0.25, 0.5):
        run_bundle(*arguments, "--inferer#overlap", overlap, "--output_dir", tmp_path / str(overlap))
        files.append(np.asanyarray(saved(tmp_path / str(overlap)).dataobj))
    assert not np.array_equal(*files)


@pytest.mark.long
def test_the_demo_network_labels_the_template(tmp_path: Path) -> None:
    """At 1 mm, with the data that the bundle writes for itself."""
    files = ["configs/inference.yaml", "configs/evaluate.yaml"]
    run_bundle("--config_file", files, "--dataset_dir", tmp_path / "data", "--output_dir", tmp_path)
    metrics = dict(line.split(",", 1) for line in (tmp_path / "metrics.csv").read_text().splitlines())
    assert min(float(metrics["grey matter"]), float(metrics["white matter"])) >= 0.85


@pytest.mark.long
def test_training_runs_and_saves_weights_that_inference_loads(data: dict[str, str], tmp_path: Path) -> None:
    run_bundle(
        *("--config_file", "configs/train.yaml", "--dataset_dir", Path(data["image"]).parent, "--resolution", 2),
        *("--ckpt_dir", tmp_path, "--train#trainer#max_epochs", 1),
        *("--train#dataset#data", [data]),
    )
    trained = torch.load(tmp_path / "model.pt", weights_only=True)
    shipped = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in shipped.items()}


def test_a_stock_bundle_needs_no_change_but_the_target(data: dict[str, str], tmp_path: Path) -> None:
    stock = (ROOT / "tests" / "stock_bundle.yaml").read_text()
    swapped = stock.replace("_target_: SlidingWindowInferer", "_target_: monai_chunked.ChunkedSlidingWindowInferer")
    assert swapped != stock
    for name, text in (("stock", stock), ("swapped", swapped)):
        (tmp_path / f"{name}.yaml").write_text(text)
        parser = ConfigParser()
        parser.read_config(str(tmp_path / f"{name}.yaml"))
        parser.update({"bundle_root": str(ROOT), "image": data["image"], "output_dir": str(tmp_path / name)})
        assert isinstance(parser.get_parsed_content("inferer"), SlidingWindowInferer)
        parser.get_parsed_content("evaluator").run()
    assert_same_file(saved(tmp_path / "swapped"), saved(tmp_path / "stock"))


@pytest.mark.parametrize("chunked", [{}, {"output": "disk"}, {"chunk_size": 30}])
def test_an_evaluator_computes_the_same_metrics_and_saves_the_same_files(
    chunked: dict[str, Any], data: dict[str, str], tmp_path: Path
) -> None:
    network = UNet(3, 1, 4, channels=(16, 32, 64), strides=(2, 2), num_res_units=1, norm="batch")
    network.load_state_dict(torch.load(ROOT / "models" / "model.pt", weights_only=True))
    preprocessing = Compose(
        [
            LoadImaged(["image", "label"]),
            EnsureChannelFirstd(["image", "label"]),
            Orientationd(["image", "label"], axcodes="LPS", labels=None),
            Spacingd(["image", "label"], pixdim=(3, 3, 3), mode=("bilinear", "nearest")),
            ScaleIntensityd("image"),
        ]
    )

    def evaluate(inferer: Inferer, folder: Path) -> tuple[Any, nibabel.Nifti1Image]:
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset([data], preprocessing), batch_size=1),
            network=network,
            inferer=inferer,
            decollate=True,
            postprocessing=Compose(
                [
                    Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False),
                    Invertd("label", preprocessing, orig_keys="label", nearest_interp=True),
                    AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=[None, None]),
                    SaveImaged("pred", output_dir=folder, separate_folder=False, print_log=False),
                    AsDiscreted(["pred", "label"], to_onehot=4),
                ]
            ),
            key_val_metric={
                "dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
            },
        )
        evaluator.run()
        return evaluator.state.metrics["dice"], saved(folder)

    settings = {"roi_size": (32, 40, 32), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
    dice, file = evaluate(ChunkedSlidingWindowInferer(**settings, **chunked), tmp_path / "ours")
    expected, reference_file = evaluate(SlidingWindowInferer(**settings), tmp_path / "monai")
    assert dice == expected
    assert dice > 0.5
    assert_same_file(file, reference_file)


@pytest.mark.long
def test_the_bundle_writes_labels_straight_to_ome_zarr(data: dict[str, str], tmp_path: Path) -> None:
    """The voxels and the affine of what SaveImaged writes behind MONAI's inferer; the template is in RAS already."""
    reference = run_with_monai(data, tmp_path / "monai", "--pixdim", [2, 2, 2])  # as in the file
    files = ["configs/inference_nifti.yaml", "configs/inference_zarr.yaml"]
    run_bundle("--config_file", files, "--image", data["image"], "--output_dir", tmp_path / "eval")
    (path,) = (tmp_path / "eval").glob("*.zarr")
    assert path.name == Path(data["image"]).name.replace(".nii.gz", "_labels.ome.zarr")
    group = zarr.open_group(path, mode="r")
    assert np.array_equal(group["0"][0], np.asanyarray(reference.dataobj))
    assert np.array_equal(group.attrs["monai_chunked"]["affine"], reference.affine)
    multiscale = ImageLabel.from_zarr(group).attributes.ome.multiscales[0]
    scale, translation = multiscale.datasets[0].coordinateTransformations
    assert np.allclose(scale.scale[1:], reference.header.get_zooms())
    assert np.allclose(translation.translation[1:], reference.affine[:3, 3])
    assert len(multiscale.datasets) == 4


@pytest.mark.long
@pytest.mark.parametrize("resolution", [1, 0.5])
def test_the_bundle_writes_the_file_that_save_imaged_writes(resolution: float, tmp_path: Path) -> None:
    """From a lazy input, with no postprocessing behind the inferer; the other loads, scales and saves the volume."""
    for name, spacing in (("inference", ("--pixdim", [resolution] * 3)), ("inference_nifti", ())):
        arguments = ("--dataset_dir", tmp_path / "data", "--resolution", resolution, "--output_dir", tmp_path / name)
        overlap = ("--inferer#overlap", 0.25 if resolution == 1 else 0.05)  # for the sake of time
        run_bundle("--config_file", f"configs/{name}.yaml", *arguments, *overlap, *spacing)
    (file,) = files_in(tmp_path / "inference")
    assert files_in(tmp_path / "inference_nifti") == [file, f"{file}.journal"]
    assert saved(tmp_path / "inference").shape == ((197, 233, 189) if resolution == 1 else (393, 465, 377))
    assert_same_file(saved(tmp_path / "inference_nifti"), saved(tmp_path / "inference"))
