"""Printed at the top of a run: what is needed to repeat it."""

from __future__ import annotations

import monai
import torch

from tests.test_exactness import RANDOM_SEED


def pytest_report_header() -> str:
    return f"monai {monai.__version__}, torch {torch.__version__}, EXACTNESS_SEED={RANDOM_SEED}"
