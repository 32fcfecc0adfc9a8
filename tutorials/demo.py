"""Label the MNI152 template by the bundle, do the same with MONAI alone, and compare time, memory and every voxel.

    python -m tutorials.demo

The bundle resamples the template to 1.5 mm, and the scores of the network back to the grid of the file. Each of the two
runs in a process of its own, so that neither's memory counts for the other. The label volumes and a picture,
`labels.png`, go to `demo/`. The exit code is 1 if the files differ in a single voxel or in their affine.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage

from monai_chunked.plan.sizes import format_bytes
from tutorials.template import LABELS, write_template

ROOT = Path(__file__).resolve().parents[1]
COLORS = {1: "#3b9ddd", 2: "#f2a53a", 3: "#d94f70"}
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One run from file to file: its wall time, the peak memory over the start, and where its labels are."""

    seconds: float
    peak_bytes: int
    labels: Path


def in_own_process(function: Callable[..., T], *args: object) -> T:
    """Call `function(*args)` in a fresh Python process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def label_template(name: str, folder: Path, resolution: float) -> Run:
    """Run the bundle as it is or, if `name` is "monai", with the evaluator and the inferer of MONAI."""
    bundle = ConfigParser()
    bundle.read_config(ROOT / "configs" / "inference.yaml")
    bundle.update({"bundle_root": str(ROOT), "output_dir": str(folder), "resolution": resolution})
    save = "postprocessing#transforms#3"
    bundle.update({f"{save}#output_postfix": f"labels_{name}", f"{save}#print_log": False})
    if name == "monai":
        bundle.update({"evaluator#_target_": "SupervisedEvaluator", "inferer#_target_": "SlidingWindowInferer"})
    evaluator = bundle.get_parsed_content("evaluator")
    evaluator.logger.setLevel("WARNING")

    memory, start = peak_memory(), time.perf_counter()
    evaluator.run()
    seconds, peak_bytes = time.perf_counter() - start, peak_memory() - memory
    return Run(seconds, peak_bytes, folder / f"mni152_{resolution:g}mm_image_labels_{name}.nii.gz")


def draw(image: np.ndarray, labels: np.ndarray, differs: np.ndarray, path: Path) -> None:
    """Draw three sections of the T1 (rows): alone, with the labels, and with the voxels that differ from MONAI's."""
    brain = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(image))
    image, labels, differs = image[brain], labels[brain], differs[brain]
    colors = ListedColormap(list(COLORS.values()))
    figure = Figure(figsize=(9, 9), facecolor="black", layout="constrained")
    axes = figure.subplots(3, 3, height_ratios=[image.shape[1], image.shape[2], image.shape[2]])
    titles = ("T1", "labels, monai-chunked", f"differs from MONAI: {np.count_nonzero(differs)} voxels")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, color="white")
    for row, (dimension, at) in zip(axes, ((2, 0.5), (1, 0.5), (0, 0.4)), strict=True):
        section = int(at * image.shape[dimension])
        t1, label, difference = (np.take(volume, section, dimension).T for volume in (image, labels, differs))
        for axis, brightness in zip(row, (1, 1, 0.5), strict=True):
            axis.imshow(t1, cmap="gray", origin="lower", vmin=0, vmax=1 / brightness)
            axis.axis("off")
        row[1].imshow(np.ma.masked_equal(label, 0), cmap=colors, origin="lower", vmin=1, vmax=3, alpha=0.6)
        row[2].imshow(np.ma.masked_equal(difference, False), cmap=ListedColormap(["red"]), origin="lower")
    handles = [Patch(color=color, label=LABELS[label]) for label, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, labelcolor="white")
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run both, draw the picture, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "demo")
    parser.add_argument("--resolution", type=float, default=1, help="side of a voxel in mm (default: 1)")
    args = parser.parse_args()

    # nilearn's memory must not count either: a process starts with the peak of the one that started it
    paths = in_own_process(write_template, ROOT / "data", args.resolution)
    run, reference = (
        in_own_process(label_template, name, args.output_dir, args.resolution) for name in ("chunked", "monai")
    )
    image, chunked, monai = (LoadImage()(path) for path in (paths["image"], run.labels, reference.labels))
    differs = (chunked != monai).numpy()
    draw(image.numpy(), chunked.numpy(), differs, args.output_dir / "labels.png")

    shape = " x ".join(map(str, image.shape))
    scores = format_bytes(differs.size * len(LABELS) * torch.float32.itemsize)
    print(f"T1 template of {shape} voxels, {len(LABELS)} classes; scores on its grid: {scores}")
    print(f"{'':24}{'wall time':>12}{'memory over the start':>24}")
    for title, measured in (("monai-chunked", run), ("MONAI", reference)):
        print(f"{title:24}{measured.seconds:10.1f} s{format_bytes(measured.peak_bytes):>24}")
    print(f"voxels that differ: {np.count_nonzero(differs)}")
    print(f"labels and picture: {args.output_dir}")
    return int(differs.any() or not torch.equal(chunked.affine, monai.affine))


if __name__ == "__main__":
    sys.exit(main())
