"""Fixtures of the conformance suite."""

from collections.abc import Iterator

import pytest

from runner.world import Worlds


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """The programs of the running group of cases."""
    made = Worlds()
    yield made
    made.close()
