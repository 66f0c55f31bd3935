"""Fixtures of the rig's own tests."""

from collections.abc import Iterator

import pytest

from rig.farm import Farm, farm


@pytest.fixture
def fakes() -> Iterator[Farm]:
    """Fake engines and registries, closed after the test."""
    with farm() as made:
        yield made
