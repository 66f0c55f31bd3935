"""Every case, on every router that exists (or on those that the variable ROUTERS names).

R44: both routers are one product: the cases have come out the same, field by field. They are the
table of vectors; every answer that a client got and every request that an engine got is compared,
whatever a case expects of it. What may differ stands in known_differences.json: a pattern for lines
of the comparison, why, and whether it always does (then it must). Generated exchanges:
tests/differential.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from rig.routers import router_names
from runner.cases import Case, load_cases, load_gaps, read_json
from runner.lanes import Lanes
from runner.steps import run_cli_case
from runner.transcript import Transcript

CASES = load_cases()
GAPS = load_gaps(CASES)
KNOWN: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("known_differences.json"))


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


def test_r44_every_case_comes_out_the_same_in_both_routers(
    transcripts: dict[str, dict[str, Transcript]], collected: dict[str, list[Case]]
) -> None:
    cases = {router: {case.id for case in of_router} for router, of_router in collected.items()}
    if len(cases) < 2:
        pytest.skip(f"the cases ran on {list(cases) or 'no router'} only: nothing to compare")
    one, other = cases
    ones, others = transcripts.get(one, {}), transcripts.get(other, {})
    both = sorted(set.intersection(*cases.values()))
    failed = [name for name in both if name not in ones or name not in others]
    assert failed == [], "these cases failed, or come later, on one router"
    found = [f"{name}: {text}" for name in both for text in ones[name].differences(others[name])]
    unknown = [line for line in found if not any(re.fullmatch(known, line) for known in KNOWN)]
    answers = sum(len(ones[name].answers) for name in both)
    requests = sum(len(got) for name in both for got in ones[name].received.values())
    print(
        f"R44 {one} and {other}: {len(both)} cases with {answers} answers and {requests} forwarded"
        f" requests, {len(unknown)} differences beside {len(found) - len(unknown)} known ones"
    )
    assert unknown == [], "\n".join(unknown)
    if len(both) == len([case for case in CASES if not case.cli]):
        always = [known for known, how in KNOWN.items() if how["always"]]
        gone = [known for known in always if not any(re.fullmatch(known, line) for line in found)]
        assert gone == [], "no such difference any more: strike it off known_differences.json"
