"""The comparison of what came of a case: it sees every part, and leaves out what must differ."""

from dataclasses import replace

import pytest

from rig.raw_client import Response
from rig.wire import Head
from runner.exchange import Answer
from runner.transcript import Scribe, Transcript

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
