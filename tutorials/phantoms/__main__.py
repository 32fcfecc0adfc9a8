"""Draw `tutorials/phantoms.png`, the page of pictures of the phantoms.

python -m tutorials.phantoms
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from tutorials.phantoms import abdomen, brain
from tutorials.phantoms.pictures import Picture

PHANTOMS: tuple[Callable[[str], list[list[Picture]]], ...] = (brain.pictures, abdomen.pictures)
"""What is on the page, from top to bottom: each writes its files into a folder and returns rows of pictures."""


def draw(path: Path) -> None:
    """Draw all phantoms.

    Args:
        path: of the picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for pictures in PHANTOMS for row in pictures(folder)]
    columns = max(map(len, rows))
    figure = Figure(figsize=(2.6 * columns, 2.7 * len(rows)), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axis in axes:
            axis.axis("off")
        for axis, picture in zip(axes, row):
            picture.draw(axis)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Draw the page, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=Path(__file__).parents[1] / "phantoms.png", help="of the picture")
    path = parser.parse_args().path
    draw(path)
    print(path)


if __name__ == "__main__":
    main()
