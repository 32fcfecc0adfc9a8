from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workers.torchrun.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Five processes, of which a test calls as many as it likes, and kills none."""
    started = Ranks(5)
    yield started
    started.close()
