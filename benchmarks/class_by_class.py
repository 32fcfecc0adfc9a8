"""
MONAI's labels where its inverse does not fit in memory: the transforms of the bundle, one class at a time.

    python -m benchmarks.class_by_class '{"peer": "monai", "image_size": [512, 512, 397], ...}' \
        --image image.nii --folder results

The inverse treats each class by itself, and the label is the first of the greatest, so the file is the same. Needs
memory for the scores on the network's grid and some ten times the labels.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
from monai.data import MetaTensor, decollate_batch

from benchmarks.bundles import bundle
from benchmarks.harness import Job
from benchmarks.peers import exit_when_out_of_memory

__all__: list[str] = []

AT_ONCE = 2**20
"""Voxels that go through softmax together: whole vectors of the processor, so that each is done as in the volume."""


def label(job: Job, image: Path, folder: Path, extension: str) -> None:
    parser = bundle(job, image, folder, extension)
    _, invert, _, save = parser.get_parsed_content("postprocessing").transforms
    (batch,) = parser.get_parsed_content("dataloader")
    with torch.no_grad():
        network = parser.get_parsed_content("network").eval()
        scores = parser.get_parsed_content("inferer")(batch["image"], network).as_tensor()[0]
    (item,) = decollate_batch(batch)
    voxels = scores.flatten(1)
    for start in range(0, voxels.shape[1], AT_ONCE):
        voxels[:, start : start + AT_ONCE] = voxels[:, start : start + AT_ONCE].softmax(0)
    greatest = labels = None
    for number in range(job.classes):
        one = invert({"image": item["image"], "pred": MetaTensor(scores[number : number + 1])})["pred"]
        if greatest is None or labels is None:
            greatest, labels = one, torch.zeros_like(one)
            continue
        labels[one > greatest] = number
        torch.maximum(greatest, one, out=greatest)
    save({"pred": labels})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=json.loads, help="arguments of benchmarks.harness.Job, as JSON")
    parser.add_argument("--image", type=Path, required=True, help="what is read")
    parser.add_argument("--folder", type=Path, required=True, help="where the labels are saved")
    parser.add_argument("--ext", default=".nii.gz", help="of the file of labels (default: .nii.gz)")
    arguments = parser.parse_args()
    job = Job(**{**arguments.job, "image_size": tuple(arguments.job["image_size"])})
    with exit_when_out_of_memory():
        label(job, arguments.image, arguments.folder, arguments.ext)
    print(json.dumps({}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
