"""Chunks of labels of more than 256 classes go from process to process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.outputs.test_many_classes import OUTPUTS, image, labels, monai, values
from tests.workers.torchrun.ranks import Raised, Ranks


def infer(group: Any, folder: Path, output: str, how: dict[str, Any]) -> np.ndarray:
    return values(labels(image(), OUTPUTS[output](folder), process_group=group, **how), (1, 1, 10, 9, 8))


@pytest.mark.parametrize("how", [{}, {"cpu_memory": "1GiB"}], ids=["handed on", "independent"])
@pytest.mark.parametrize("output", ["cpu", "nii.gz", "zarr"])
def test_labels_of_300_classes_are_those_of_one_process(
    ranks: Ranks, output: str, how: dict[str, Any], tmp_path: Path
) -> None:
    for answer in ranks.call(2, infer, tmp_path, output, how):
        assert not isinstance(answer, Raised), answer
        assert answer.dtype == np.uint16
        assert np.array_equal(answer, monai(image()))
