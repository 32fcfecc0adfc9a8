from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workers.ranks import Ranks


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Three processes."""
    started = Ranks(3)
    yield started
    started.close()
