"""
How often is a compressed input read? Bytes that the process reads from the disk's files, over the size of the file.

    python -m benchmarks.reading
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import zarr
from zarr.codecs import ZstdCodec

from benchmarks.harness import GIB, Check
from benchmarks.report import checks_table
from monai_chunked import ChunkedSlidingWindowInferer, ImageArray, open_image
from monai_chunked.plan.window_grid import window_grid

SIZE, ROI, OVERLAP = (256, 256, 256), (96, 96, 96), 0.5
MOST = 1.3
KINDS = ("cubes", "shards", "slices", "nifti")
ALONG_Z: dict[str, Any] = {"buffer_steps": 1, "buffer_dim": 2}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Zarr, chunks of 64 x 64 x 64": ("cubes", {}),
    "Zarr, shards of 128 x 128 x 128": ("shards", {}),
    "Zarr, chunks of one slice": ("slices", {}),
    "Zarr, chunks of one slice, along z": ("slices", ALONG_Z),
    ".nii.gz": ("nifti", {}),
    ".nii.gz, along z": ("nifti", ALONG_Z),
}


def volume() -> np.ndarray:
    """Something like a CT: smooth, with noise. int16, which zstd brings to about two thirds."""
    generator = np.random.default_rng(0)
    waves = [np.sin(np.linspace(0, 9, n)) for n in SIZE]
    smooth = 500 * waves[0][:, None, None] * waves[1][:, None] * waves[2]
    return (smooth + generator.normal(0, 20, SIZE)).astype(np.int16)


def write(kind: str, data: np.ndarray, folder: Path) -> Path:
    """The file or folder that was written; Zarr arrays are stored (z, y, x), as is usual."""
    if kind == "nifti":
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), folder / "image.nii.gz")
        return folder / "image.nii.gz"
    chunks = {"cubes": (64, 64, 64), "shards": (64, 64, 64), "slices": (1, *SIZE[:2])}[kind]
    zarr.create_array(
        folder / f"{kind}.zarr",
        data=data.transpose(),
        chunks=chunks,
        shards=(128, 128, 128) if kind == "shards" else None,
        compressors=ZstdCodec(level=3),
        dimension_names=["z", "y", "x"],
    )
    return folder / f"{kind}.zarr"


def bytes_read() -> int:
    """By this process so far, through whatever library, also where the operating system had them in memory."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise RuntimeError("this system does not count what a process reads")


def measured(job: Callable[[], Any]) -> tuple[int, float]:
    """Bytes read, and seconds."""
    read, start = bytes_read(), time.perf_counter()
    job()
    return bytes_read() - read, time.perf_counter() - start


def each_window(image: ImageArray, scan: dict[str, Any]) -> None:
    """Read every window by itself, for comparison."""
    for batch in window_grid(SIZE, ROI, (OVERLAP,) * 3, **scan).batches(1, 1):
        image[(slice(None), slice(None), *batch[0].box)]


def main() -> None:
    print(f"int16, {' x '.join(map(str, SIZE))} voxels, {prod(SIZE) * 2 / GIB:.3f} GiB; ", end="")
    print(f"windows of {ROI[0]}³, overlap {OVERLAP}\n")
    print("| input | file MiB | rows kept MiB | read / file | seconds | each window by itself: read / file | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    checks = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, torch.no_grad():
        data = volume()
        paths = {kind: write(kind, data, Path(folder)) for kind in KINDS}
        open_image(paths["cubes"])[:]  # what libraries read when they are first used
        for name, (kind, scan) in ROWS.items():
            path = paths[kind]
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files)
            inferer = ChunkedSlidingWindowInferer(ROI, overlap=OVERLAP, **scan)
            kept = inferer.plan(open_image(path), 1).input_bytes
            read, seconds = measured(lambda: inferer(open_image(path), torch.relu))  # noqa: B023  called at once
            alone, seconds_alone = measured(lambda: each_window(open_image(path), scan))  # noqa: B023  called at once
            print(
                f"| {name} | {size / 2**20:.1f} | {kept / 2**20:.1f} | {read / size:.2f} | {seconds:.1f} "
                f"| {alone / size:.1f} | {seconds_alone:.1f} |",
                flush=True,
            )
            checks.append(Check(f"{name}: read / file", read / size, MOST))
    print("\n" + checks_table(checks))


if __name__ == "__main__":
    main()
