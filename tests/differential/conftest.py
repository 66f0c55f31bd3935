"""Fixtures of the comparison of the two routers."""

from collections.abc import Iterator

import pytest

from differential.pair import Pair, start_pair
from rig.processes import programs


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both routers, each with its engine; they run for all tests of a module."""
    with programs() as run:
        started = start_pair(run, tmp_path_factory.mktemp("pair"))
        yield started
        started.close()
