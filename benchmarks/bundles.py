"""
The bundles of `pipeline`: MONAI's, and the same with one word changed. Also what a case needs before it runs:

    python -m benchmarks.bundles '{"peer": "", "image_size": [256, 256, 200], "classes": 14, ...}' image.nii

writes the image and prints which part of it lies at borders of labels, as one line of JSON.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

import monai_chunked
from benchmarks.harness import ROOT, Job
from benchmarks.phantom import STEP, network_of, write_image
from tutorials.template import write_template

__all__ = ["bundle"]

LAYERS = 32
"""How many layers of labels are looked at together."""


def bundle(job: Job, image: Path, folder: Path, extension: str = ".nii.gz") -> ConfigParser:
    """The bundle of a case; MONAI's and ours differ in one word, and in `cpu_memory` where the job has it."""
    parser = ConfigParser()
    if job.network == "demo":
        parser.read_config(ROOT / "configs" / "inference.yaml")
        parser.update({"bundle_root": str(ROOT), "output_dir": str(folder), "data": [{"image": str(image)}]})
    else:
        parser.read_config(Path(__file__).with_name("pipeline.yaml"))
        windows = {
            "roi_size": [job.roi_size] * 3,
            "overlap": job.overlap,
            "sw_batch_size": job.options["sw_batch_size"],
        }
        parser.update({f"inferer#{key}": value for key, value in windows.items()})
        parser.update({"image": str(image), "output_dir": str(folder), "output_ext": extension})
        parser.update({"brightest": STEP * (job.classes - 1), "network": network_of(job)})
    ours = job.peer == "chunked"
    parser["evaluator"]["_target_"] = "monai_chunked.ChunkedEvaluator" if ours else "SupervisedEvaluator"
    parser["inferer"]["_target_"] = "SlidingWindowInferer"  # ChunkedEvaluator puts ours in its place
    if ours and "cpu_memory" in job.options:
        parser["inferer"]["_target_"] = "monai_chunked.ChunkedSlidingWindowInferer"
        parser["inferer"]["cpu_memory"] = job.options["cpu_memory"]
    return parser


def borders(job: Job, image: Path) -> float:
    """The part of cells of 2 x 2 x 2 voxels on the network's grid that hold more than one label."""
    parser = bundle(job, image, image.parent)
    windows = {key: parser["inferer"][key] for key in ("roi_size", "sw_batch_size", "overlap", "mode")}
    inferer = monai_chunked.ChunkedSlidingWindowInferer(**windows, postprocessing="argmax")
    network = parser.get_parsed_content("network").eval()
    if job.network == "demo":
        network.load_state_dict(torch.load(parser.get_parsed_content("ckpt_path"), weights_only=True))
    with torch.no_grad():
        labels = inferer(parser.get_parsed_content("dataset")[0]["image"].as_tensor()[None], network)
    found = cells = 0
    for start in range(0, labels.shape[-1] - 1, LAYERS):
        some = labels[..., start : start + LAYERS + 1].float()
        differ = torch.nn.functional.max_pool3d(some, 2, 1) != -torch.nn.functional.max_pool3d(-some, 2, 1)
        found, cells = found + int(differ.sum()), cells + differ.numel()
    return found / cells


def main() -> None:
    job, path = Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
    if job.network == "demo":
        with gzip.open(write_template(ROOT / "data")["image"]) as template, path.open("wb") as copy:
            shutil.copyfileobj(template, copy)
    else:
        write_image(Job(**{**vars(job), "image_size": tuple(job.image_size)}), path)
    print(json.dumps({"borders": borders(job, path)}))


if __name__ == "__main__":
    main()
