"""Printed at the top of a run: what is needed to repeat it. And how tests of small tensors run."""

from __future__ import annotations

from collections.abc import Iterator

import monai
import pytest
import torch
from hypothesis import HealthCheck, settings

# how long an example takes says how busy the machine is, and nothing of the promise
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

pytest.register_assert_rewrite("tests.side_by_side", "tests.outputs")


def pytest_report_header() -> str:
    from tests.run.test_exactness import RANDOM_SEED

    return f"monai {monai.__version__}, torch {torch.__version__}, EXACTNESS_SEED={RANDOM_SEED}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower with more, and much slower beside other work; a forked process has no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """As inference runs; the tests that want gradients enable them."""
    with torch.no_grad():
        yield


@pytest.fixture
def grad(request: pytest.FixtureRequest) -> Iterator[None]:
    """Inference runs without gradients unless a test asks for them."""
    with torch.set_grad_enabled(getattr(request, "param", False)):
        yield
