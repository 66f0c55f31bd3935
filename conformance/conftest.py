"""Fixtures of the conformance suite."""

from collections.abc import Iterator

import pytest

from runner.cases import Case
from runner.lanes import Lanes
from runner.transcript import Transcript

Transcripts = dict[str, dict[str, Transcript]]


@pytest.fixture(scope="session")
def collected(request: pytest.FixtureRequest) -> dict[str, list[Case]]:
    """Router -> the cases with programs that this run has, in their order."""
    found: dict[str, list[Case]] = {}
    for item in request.session.items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        case = params.get("case")
        if isinstance(case, Case) and not case.cli:
            found.setdefault(params["router"], []).append(case)
    return found


@pytest.fixture(scope="module")
def lanes(collected: dict[str, list[Case]]) -> Iterator[Lanes]:
    """All of them, running."""
    made = Lanes(collected)
    yield made
    made.close()


@pytest.fixture(scope="session")
def transcripts() -> Transcripts:
    """Router -> case -> what came of it, for the comparison at the end."""
    return {}
