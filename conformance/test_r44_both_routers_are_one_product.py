"""R44: both routers are one product: the cases have come out the same, field by field.

The cases are the table of vectors; every answer that a client got and every request that an engine
got is compared, whatever a case expects of it. What may differ stands in known_differences.json:
a pattern for lines of the comparison, why, and whether it always does (then it must).
Generated exchanges: tests/differential.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig.raw_client import Response
from rig.wire import Head
from runner.cases import Case, load_cases, read_json
from runner.exchange import Answer
from runner.transcript import Scribe, Transcript

KNOWN: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("known_differences.json"))


def test_every_case_comes_out_the_same_in_both_routers(
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
    if len(both) == len([case for case in load_cases() if not case.cli]):
        always = [known for known, how in KNOWN.items() if how["always"]]
        gone = [known for known in always if not any(re.fullmatch(known, line) for line in found)]
        assert gone == [], "no such difference any more: strike it off known_differences.json"


def rows(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\bR(\d+)", text)}


def test_the_cases_cover_the_rows_that_a_router_answers_for() -> None:
    covered = rows(" ".join(case.clause for case in load_cases()))
    assert {1, 5, 6, 9, 10, 11, 13, 14, 15, 16, 21, 22, 35, 36, 38, 39} <= covered


SCRIBE = Scribe({4711: "a+0"})
RESPONSE = Response(
    Head("HTTP/1.1 200 OK", (("Content-Length", "39"), ("X-Request-Id", "0123456789abcdef"))),
    b'{"port": 4711, "response_time": 0.1234}',
    (),
    True,
    False,
    "open",
)


def told(response: Response) -> Transcript:
    return Transcript([SCRIBE.answer(Answer(response, "", 0.1))])


@pytest.mark.parametrize(
    "change",
    [
        {"body": b'{"port": 4712, "response_time": 0.1234}'},
        {"body": b'{"port": 4711, "response_time": null}'},
        {"body": b"other"},
        {"whole": False},
        {"chunked": True},
        {"head": Head("HTTP/1.1 201 OK", RESPONSE.headers)},
        {"head": Head(RESPONSE.head.start, RESPONSE.headers[:1])},
        {"head": Head(RESPONSE.head.start, (RESPONSE.headers[0], ("X-Request-Id", "mine")))},
    ],
)
def test_the_comparison_sees_every_part_of_an_answer(change: dict[str, object]) -> None:
    assert told(RESPONSE).differences(told(replace(RESPONSE, **change)))  # type: ignore[arg-type]


def test_the_comparison_leaves_out_what_must_differ() -> None:
    fields = (RESPONSE.headers[0], ("X-Request-Id", "fedcba9876543210"))
    body = b'{"port": 4711, "response_time": 99.000}'
    other = replace(RESPONSE, head=Head(RESPONSE.head.start, fields), body=body)
    assert told(RESPONSE).differences(told(other)) == []
    via = "Via: 1.1 infinilm-{}\r\nHost: 127.0.0.1:4711\r\nX-Request-Id: {}\r\n"
    one, two = (via.format(one, one * 2).encode() for one in ("0123abcd", "89efabcd"))
    assert SCRIBE.request(one) == SCRIBE.request(two)
    assert SCRIBE.request(one) != SCRIBE.request(two.replace(b"4711", b"4712"))


def test_the_comparison_sees_what_an_engine_got() -> None:
    one, other = Transcript([], {"a": {"x", "y"}}), Transcript([], {"a": {"x"}})
    assert one.differences(other) == ["received by a: {'y'} / set()"]
    assert Transcript([{}]).differences(Transcript([])) == ["1 answers / 0"]
