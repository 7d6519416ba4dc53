"""Two ranks for the tests of several processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes.ranks import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes on loopback, started when the first test asks for them."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()
