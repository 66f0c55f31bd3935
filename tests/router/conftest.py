"""Fixtures of the router's reliability tests: every test runs for every router that exists."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm, farm
from rig.processes import Programs
from rig.routers import StartRouter, router_names


@pytest.fixture(params=router_names())
def start(request: pytest.FixtureRequest, run: Programs, tmp_path: Path) -> StartRouter:
    """Starts routers of the kind that the test runs for."""
    return StartRouter(run, request.param, tmp_path)


@pytest.fixture
def fakes() -> Iterator[Farm]:
    """Fake engines and registries, closed after the test."""
    with farm() as made:
        yield made


@pytest.fixture
def engine(fakes: Farm) -> FakeEngine:
    """One fake engine with the model "m"."""
    return fakes.engine("e0", models=["m"])
