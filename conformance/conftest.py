"""Fixtures of the conformance suite."""

from collections.abc import Iterator

import pytest

from runner.transcript import Transcript
from runner.world import Worlds

Transcripts = dict[str, dict[str, Transcript]]


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """The programs of the running group of cases."""
    made = Worlds()
    yield made
    made.close()


@pytest.fixture(scope="session")
def transcripts() -> Transcripts:
    """Router -> case -> what came of it, for the comparison at the end."""
    return {}
