"""Bundles in the manner of MONAI's model zoo, each as small as it can be; a helper.

One config, and what differs from bundle to bundle: preprocessing, inferer, and above all the postprocessing.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.networks.nets import UNet

AFFINE = np.array([[-1.0, 0, 0, 30], [0, -1.2, 0, 20], [0, 0, 2.5, -40], [0, 0, 0, 1]])
SIZE = (37, 33, 19)

SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "softmax": False, "sigmoid": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "argmax": False, "threshold": 0.5}
HOLES = {"_target_": "FillHolesd", "keys": "pred", "applied_labels": [1, 2]}
MERGE = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"


def invert(nearest: bool = False, **options: Any) -> dict[str, Any]:
    """As bundles have it."""
    return {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "meta_key_postfix": "meta_dict",
        "nearest_interp": nearest,
        "to_tensor": True,
        **options,
    }


def save(**options: Any) -> dict[str, Any]:
    return {
        "_target_": "SaveImaged",
        "keys": "pred",
        "meta_keys": "pred_meta_dict",
        "output_dir": "@output_dir",
        "print_log": False,
        **options,
    }


def spatial(pixdim: list[float], axcodes: str = "RAS", keys: Any = "image") -> list[dict[str, Any]]:
    return [
        {"_target_": "LoadImaged", "keys": keys},
        {"_target_": "EnsureChannelFirstd", "keys": keys},
        {"_target_": "Orientationd", "keys": keys, "axcodes": axcodes, "labels": None},
        {"_target_": "Spacingd", "keys": keys, "pixdim": pixdim, "mode": "bilinear"},
    ]


RANGE = {
    "_target_": "ScaleIntensityRanged",
    "keys": "image",
    "a_min": 0,
    "a_max": 1,
    "b_min": 0,
    "b_max": 1,
    "clip": True,
}
TYPED = {"_target_": "EnsureTyped", "keys": "image"}
PHASES = ["artery", "vein", "excret"]

ABDOMEN = {
    "preprocessing": [*spatial([1.6, 1.6, 2.1]), RANGE, TYPED],
    "postprocessing": [SOFTMAX, invert(meta_keys="pred_meta_dict"), ARGMAX, save()],
}


class OwnEvaluator(SupervisedEvaluator):
    """As bundles have that hand their network more than an image."""

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        image = batchdata["image"].to(engine.state.device)
        engine.state.output = {"image": image, "label": None}
        with engine.mode(engine.network):
            engine.state.output["pred"] = 2 * engine.inferer(inputs=image, network=engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class OwnInferer(Inferer):
    """As bundles have that make another one at each call."""

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        return SlidingWindowInfererAdapt(16, 4, 0.5, padding_mode="replicate")(inputs, network, *args, **kwargs)


def make_evaluator(roi_size: int = 16, **arguments: Any) -> SupervisedEvaluator:
    """As bundles have in their scripts."""
    return SupervisedEvaluator(**{**arguments, "inferer": SlidingWindowInferer(roi_size, 4, 0.5)})


BUNDLES: dict[str, dict[str, Any]] = {
    "spleen_ct": {**ABDOMEN, "classes": 2, "inferer": {"sw_batch_size": 4, "overlap": 0.5}},
    "swin_unetr_btcv": {**ABDOMEN, "classes": 14, "inferer": {"sw_batch_size": 4, "overlap": 0.5}},
    "renalStructures_CECT": {
        "classes": 6,
        "channels": 3,
        "preprocessing": [
            *spatial([1.1, 1.1, 1.9], "LPS", PHASES),
            {"_target_": "ConcatItemsd", "keys": PHASES, "name": "image"},
            RANGE,
            TYPED,
        ],
        "inferer": {"sw_batch_size": 4, "overlap": 0.25},
        "postprocessing": [
            invert(orig_keys="artery", meta_keys="pred_meta_dict", device="@device"),
            SIGMOID,
            THRESHOLD,
            {"_target_": "Lambdad", "keys": "pred", "func": MERGE},
            save(),
        ],
    },
    "wholeBody_ct": {
        "classes": 9,
        "preprocessing": [
            *spatial([1.5, 1.5, 1.5]),
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
            {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
        ],
        "inferer": {"overlap": 0.25, "padding_mode": "replicate", "mode": "gaussian", "device": "@device"},
        "postprocessing": [SOFTMAX, ARGMAX, invert(True), save(output_dtype="$np.float32", output_postfix="trans")],
    },
    "prostate_mri": {
        "classes": 3,
        "preprocessing": [
            *spatial([1.4, 1.4, 2.1]),
            {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0, "maxv": 1},
            {"_target_": "NormalizeIntensityd", "keys": "image"},
            TYPED,
        ],
        "inferer": {"sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": [ARGMAX, HOLES, invert(), save(resample=False)],
    },
    "brats_mri": {
        "classes": 3,
        "channels": 4,
        "preprocessing": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
        ],
        "inferer": {"roi_size": [40, 40, 24], "sw_batch_size": 1, "overlap": 0.5},
        "postprocessing": [
            SIGMOID,
            invert(meta_keys="pred_meta_dict"),
            THRESHOLD,
            {"_target_": "Lambdad", "keys": "pred", "func": MERGE},
            save(output_dtype="uint8", resample=False, squeeze_end_dims=True),
        ],
    },
    "pediatric_abdominal": {
        "classes": 4,
        "preprocessing": [
            *spatial([1.9, 1.9, 3.0]),
            RANGE,
            {"_target_": "CropForegroundd", "keys": ["image"], "source_key": "image", "mode": ["minimum"]},
            TYPED,
            {"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.float32"},
        ],
        "inferer": {"sw_batch_size": 4, "overlap": 0.75},
        "postprocessing": [SOFTMAX, invert(), ARGMAX, save(separate_folder=False, output_dtype="$torch.int16")],
    },
}
"""What each bundle has of its own."""


def write_bundle(folder: Path, name: str, **changes: Any) -> Path:
    """Write a bundle with images and weights; returns its config file.

    Args:
        folder: where it goes.
        name: of the bundle.
        changes: entries of the config that are others.
    """
    own = deepcopy(BUNDLES[name])
    channels = own.get("channels", 1)
    for place in ("configs", "models", "data"):
        (folder / place).mkdir(parents=True)
    network = {"spatial_dims": 3, "in_channels": channels, "out_channels": own["classes"], "channels": [4, 8]}
    network |= {"strides": [2], "num_res_units": 1}
    torch.manual_seed(3)
    torch.save(UNet(**network).state_dict(), folder / "models" / "model.pt")
    config = {
        "imports": ["$import numpy as np", "$import torch"],
        "bundle_root": str(folder),
        "output_dir": "$@bundle_root + '/eval'",
        "data": _write_images(folder / "data", PHASES if name == "renalStructures_CECT" else ["image"], channels),
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "UNet", **network},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": own["preprocessing"]},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], **own["inferer"]},
        "postprocessing": {"_target_": "Compose", "transforms": own["postprocessing"]},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            },
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "initialize": ["$setattr(torch.backends.cudnn, 'benchmark', True)"],
        "run": ["$@evaluator.run()"],
        **changes,
    }
    path = folder / "configs" / "inference.json"
    path.write_text(json.dumps(config))
    return path


def _write_images(folder: Path, keys: list[str], channels: int) -> list[dict[str, str]]:
    """Two images of smooth noise, in a frame of zeros."""
    generator = np.random.default_rng(5)
    multichannel = len(keys) == 1 and channels > 1
    images = []
    for number in range(2):
        paths = {}
        for key in keys:
            coarse = torch.from_numpy(generator.random((1, channels if multichannel else 1, 6, 6, 5), np.float32))
            voxels = torch.nn.functional.interpolate(coarse, SIZE, mode="trilinear")[0].permute(1, 2, 3, 0).numpy()
            voxels[:4] = voxels[:, -5:] = voxels[:, :, :2] = 0
            paths[key] = str(folder / f"{key}{number}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(voxels if multichannel else voxels[..., 0], AFFINE), paths[key])
        images.append(paths)
    return images


def saved(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.dtype]]:
    """Voxels, affine and type of all files of a bundle, by name."""
    files = sorted((folder / "eval").rglob("*.nii.gz"))
    images = {str(path.relative_to(folder / "eval")): nibabel.load(path) for path in files}
    return {name: (np.asanyarray(i.dataobj), i.affine, i.get_data_dtype()) for name, i in images.items()}


def assert_same_files(ours: Path, reference: Path) -> None:
    """Of two bundles, bit by bit."""
    found, expected = saved(ours), saved(reference)
    assert list(found) == list(expected)
    assert len(found) == 2
    for name, (voxels, affine, dtype) in expected.items():
        assert np.array_equal(found[name][0], voxels)
        assert np.array_equal(found[name][1], affine)
        assert found[name][2] == dtype
        assert len(np.unique(voxels)) > 1
