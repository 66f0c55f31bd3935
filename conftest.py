"""Fixtures that every folder of tests may use."""

from collections.abc import Iterator

import pytest

from rig.processes import Programs, programs


@pytest.fixture
def run() -> Iterator[Programs]:
    """Starts programs of the project; whatever still runs after the test is killed."""
    with programs() as started:
        yield started
