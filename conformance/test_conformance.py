"""Every case, on every router that exists (or on those that the variable ROUTERS names)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rig.routers import router_names
from runner.cases import Case, load_cases, load_gaps
from runner.steps import run_case, run_cli_case
from runner.transcript import Transcript
from runner.world import Key, Worlds

CASES = load_cases()
GAPS = load_gaps(CASES)


def _parameters() -> list[object]:
    """Routers times cases; a known gap must fail, so that a closed one is struck off the list."""
    made: list[object] = []
    for router in router_names():
        for case in CASES:
            gap = GAPS.get(router, {}).get(case.id)
            marks = [pytest.mark.xfail(reason=gap, strict=True)] if gap else []
            made.append(pytest.param(router, case, id=f"{router}-{case.id}", marks=marks))
    return made


def _key(router: str, case: Case) -> Key:
    return Key(router, case.group, case.id if case.fresh else "")


def _key_of(item: pytest.Item) -> Key | None:
    """What a collected test needs; None for tests without programs."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    case = parameters.get("case")
    return _key(parameters["router"], case) if isinstance(case, Case) and not case.cli else None


def _upcoming(item: pytest.Item) -> Key | None:
    """What the tests behind this one need first that is not what this one has."""
    items = item.session.items
    later = (_key_of(other) for other in items[items.index(item) + 1 :])
    return next((key for key in later if key and key != _key_of(item)), None)


@pytest.fixture
def run_in_world(
    worlds: Worlds,
    transcripts: dict[str, dict[str, Transcript]],
    request: pytest.FixtureRequest,
) -> Callable[[str, Case], None]:
    """Runs a case in its world and keeps what came of it."""

    def run(router: str, case: Case) -> None:
        world = worlds.get(_key(router, case), _upcoming(request.node))
        transcripts.setdefault(router, {})[case.id] = run_case(world, case)

    return run


@pytest.mark.parametrize(("router", "case"), _parameters())
def test_case(
    router: str, case: Case, run_in_world: Callable[[str, Case], None], tmp_path: Path
) -> None:
    if case.cli:
        run_cli_case(router, case, tmp_path)
    else:
        run_in_world(router, case)
