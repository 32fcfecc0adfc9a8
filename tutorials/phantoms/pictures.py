"""Sections through a phantom, with its labels laid over it in colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap

__all__ = ["Picture", "colors_of"]


@dataclass(frozen=True)
class Picture:
    """
    A section through a volume.

    Attributes:
        title: what is to be seen.
        section: intensities, the first index to the right of the picture, the second upwards.
        window: the intensities that are black and white.
        labels: laid over the section, of its shape; ``None``: nothing is.
        classes: number of labels, the background's included.
        aspect: height of a voxel by its width.
    """

    title: str
    section: np.ndarray
    window: tuple[float, float]
    labels: np.ndarray | None = None
    classes: int = 2
    aspect: float = 1

    def draw(self, axis: Any) -> None:
        """Draw it into the axes of a figure."""
        low, high = self.window
        axis.imshow(self.section.T, cmap="gray", origin="lower", vmin=low, vmax=high, aspect=self.aspect)
        if self.labels is not None:
            self._draw_labels(axis, self.labels)
        axis.set_title(self.title, fontsize=9)
        axis.axis("off")

    def _draw_labels(self, axis: Any, labels: np.ndarray) -> None:
        axis.imshow(
            np.ma.masked_equal(labels, 0).T,
            cmap=ListedColormap(colors_of(self.classes)),
            origin="lower",
            vmin=1,
            vmax=max(self.classes - 1, 2),
            alpha=0.6,
            aspect=self.aspect,
            interpolation="nearest",
        )


def colors_of(classes: int) -> list[tuple[float, ...]]:
    """A colour for each label but the background's; of up to 20 labels no two are the same.

    Args:
        classes: number of labels, the background's included.

    >>> len(colors_of(14)), len(set(colors_of(14)))
    (13, 13)
    """
    return [colormaps["tab20"](number % 20) for number in range(max(classes - 1, 2))]
