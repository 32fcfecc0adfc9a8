"""What a run has recorded, and what it must come to; a helper."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.killed_run import OUTPUTS, OVERLAP, ROI, SIZE, Boom, Network, image, inferer

FORMATS = list(OUTPUTS)
FIRST_IS_DONE = 4
"""When the network sees this window, its first batch, of two, has begun the journal."""


def voxels(result: Any) -> torch.Tensor:
    """``(B, C, *spatial)`` of whatever an output returns."""
    if isinstance(result, list):
        return torch.stack([torch.as_tensor(each[:]) for each in result])
    return torch.as_tensor(result[:])


def expected() -> torch.Tensor:
    with torch.no_grad():
        return inferer("cpu")(image(), Network()).as_tensor()


def journal_in(folder: Path) -> Path:
    (path,) = folder.rglob("*.journal")
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line[9:]) for line in journal_in(folder).read_bytes().splitlines()]


def windows_that_touch_what_is_not_recorded(
    folder: Path, size: tuple[int, ...] = SIZE, roi: tuple[int, ...] = ROI, images: int = 2
) -> list[list[int]]:
    """From the journal alone, by comparing every window with every chunk."""
    (heads,) = [record["cuts"] for record in records(folder) if "cuts" in record]
    (cuts,) = {tuple(map(tuple, head)) for head in heads}  # all heads are of one size
    chunks = [record["chunk"] for record in records(folder) if "chunk" in record]
    written = Counter((image, *(c[k] for c, k in zip(cuts, position))) for image, _, position in chunks)
    done = {corner for corner, times in written.items() if times == len(heads)}
    spans = [list(itertools.pairwise(c)) for c in cuts]
    boxes = [(a, b, c) for a in spans[0] for b in spans[1] for c in spans[2]]
    step = [int(r * (1 - OVERLAP)) for r in roi]
    starts = [sorted({min(k, n - r) for k in range(0, n - r + s, s)}) for n, r, s in zip(size, roi, step)]
    windows = []
    for number in range(images):
        open_boxes = [box for box in boxes if (number, *(low for low, _ in box)) not in done]
        for corner in ((a, b, c) for a in starts[0] for b in starts[1] for c in starts[2]):
            if any(all(lo < s + r and s < hi for s, r, (lo, hi) in zip(corner, roi, box)) for box in open_boxes):
                windows.append([number, *corner])
    return windows


def stopped(folder: Path, output: str = "npy") -> Path:
    with pytest.raises(Boom), torch.no_grad():
        inferer(OUTPUTS[output](folder))(image(), Network(at=30))
    assert sum("chunk" in record for record in records(folder)) > 5
    return journal_in(folder)
