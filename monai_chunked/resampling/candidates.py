"""Which classes may be the greatest between voxels, and which cannot, whatever the weights are."""

from __future__ import annotations

from types import ModuleType
from typing import Any

__all__ = ["candidates"]


def candidates(library: ModuleType, values: Any, slack: float) -> list[int]:
    """The classes that may be the greatest of a mean of voxels.

    Args:
        library: NumPy or PyTorch.
        values: ``(C, *read)``, finite.
        slack: by how much scores must differ at the corners so that the means do, whatever rounding does.
    """
    scores = values.reshape(len(values), -1)
    greatest = library.amax(scores, 0)
    tied = greatest == library.amin(scores, 0)  # all classes are the same: the first one counts
    present = library.any((scores == greatest) & ~tied, 1)
    present[0] |= bool(tied.any())
    several = int(present.sum()) > 1
    mean = scores[present].sum(0) / int(present.sum()) if several else greatest
    kept = present | (library.amax(scores - mean, 1) >= -slack)
    if not several:
        # it is not less than any other class at any corner. Sums of products keep that, and of equal ones the first
        # counts, so that only classes before it matter
        kept[next(number for number in range(len(kept)) if bool(present[number])) + 1 :] = False
    return [number for number in range(len(kept)) if bool(kept[number])]
