"""The comparison itself: it sees every kind of difference, and no other."""

from dataclasses import replace

import pytest

from differential.engine import Received, Script
from differential.exchange import Answer, Exchange, Outcome, differences
from differential.pair import Pair

ANSWER = Answer("HTTP/1.1 200 OK", (("X-A", "1"), ("X-A", "1")), b"body", "sized", True)
RECEIVED = Received(("POST /v1/x HTTP/1.1", "X-A: 1", "X-B: 2"), b"asked")
OUTCOME = Outcome((ANSWER,), b"", "closed", (RECEIVED,))
REFUSED = replace(ANSWER, headers=(("x-infinilm-error", "invalid_request"),))


def _answer(**changes: object) -> Outcome:
    return replace(OUTCOME, answers=(replace(ANSWER, **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        replace(OUTCOME, end="reset"),
        replace(OUTCOME, rest=b"x"),
        replace(OUTCOME, answers=()),
        replace(OUTCOME, answers=(ANSWER, ANSWER)),
        replace(OUTCOME, received=()),
        replace(OUTCOME, received=(replace(RECEIVED, body=b""),)),
        replace(OUTCOME, received=(replace(RECEIVED, lines=(*RECEIVED.lines[::-1],)),)),
        _answer(start="HTTP/1.1 201 OK"),
        _answer(headers=(("X-A", "1"),)),
        _answer(body=b"other"),
        _answer(framing="chunked"),
        _answer(whole=False),
    ],
)
def test_every_part_of_an_outcome_counts(other: Outcome) -> None:
    assert not differences(OUTCOME, OUTCOME)
    assert len(differences(OUTCOME, other)) == 1


def test_of_a_malformed_head_the_words_may_differ_and_nothing_else() -> None:
    first, second, third = (
        replace(OUTCOME, answers=(replace(REFUSED, start=start, body=body),))
        for start, body in (
            ("HTTP/1.1 400 Bad Request", b'{"message":"malformed head: a","code":"x"}'),
            ("HTTP/1.1 400 Bad Request", b'{"message":"b","code":"x"}'),
            ("HTTP/1.1 431 Too Large", b'{"message":"b","code":"y"}'),
        )
    )
    assert not differences(first, second)
    assert len(differences(first, third)) == 2


def test_what_the_engines_do_differently_is_seen(pair: Pair) -> None:
    """The two sides get different answers on purpose."""
    ask = (b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",)
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    ends = {"whole": Script((whole,)), "cut": Script((whole[:-1],), "fin")}
    outcomes = {
        name: pair.outcomes(Exchange(ask, ("GET",), (script,)), 0.05)
        for name, script in ends.items()
    }
    for name, (first, second) in outcomes.items():
        assert not differences(first, second)
        assert first.answers[0].whole is (name == "whole")
    assert differences(outcomes["whole"][0], outcomes["cut"][1])
