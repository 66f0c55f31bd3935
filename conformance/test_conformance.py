"""Every case, on every router that exists (or on those that the variable ROUTERS names)."""

from pathlib import Path

import pytest

from rig.routers import router_names
from runner.cases import Case, load_cases, load_gaps
from runner.lanes import Lanes
from runner.steps import run_cli_case
from runner.transcript import Transcript

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


@pytest.mark.parametrize(("router", "case"), _parameters())
def test_case(
    router: str,
    case: Case,
    lanes: Lanes,
    transcripts: dict[str, dict[str, Transcript]],
    tmp_path: Path,
) -> None:
    if case.cli:
        run_cli_case(router, case, tmp_path)
    else:
        transcripts.setdefault(router, {})[case.id] = lanes.result(router, case)
