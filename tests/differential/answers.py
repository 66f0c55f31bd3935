"""Answers of engines as hypothesis strategies: sound ones, odd ones, and ones that break off."""
# ruff: noqa: E501 - tables are easier to read in long lines

import json

from hypothesis import strategies as st

from differential.engine import End, Script
from differential.wire_parts import (
    Draw,
    chunked,
    cut,
    lines,
    mostly,
    pick,
    rarely,
    several,
    spoilt,
    upto,
)

STATUSES = [
    200,
    200,
    200,
    200,
    201,
    204,
    206,
    301,
    304,
    400,
    404,
    418,
    429,
    500,
    502,
    503,
    504,
    599,
]
ODD_STATUSES = [
    "099",
    "600",
    "100",
    "101",
    "199",
    "20",
    "2000",
    "abc",
    "",
    "+200",
    "200.",
    "0200",
    "999",
    "103",
]
REASONS = [
    " OK",
    " ",
    "",
    " Not  Quite",
    " caf\u00e9",
    " \tX",
    " O\x01K",
    " " + "x" * 300,
    "  ",
    " O\x7fK",
    "OK",
]
STARTS = [
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/1.2",
    "HTTP/2",
    "HTTP/2.0",
    "http/1.1",
    "HTTP/0.9",
    "ICY",
    "",
    "HTTP/1.1 ",
    " HTTP/1.1",
    "HTTP/11",
]
KINDS = [
    "text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream", "text/event-streaming",
    " text/event-stream", "text/event", "application/json", "", "x, text/event-stream",
]  # fmt: skip
NAMES = [
    "Set-Cookie", "Set-Cookie", "X-A", "x-a", "Connection", "connection", "Keep-Alive", "Proxy-Authenticate",
    "proxy-x", "Trailer", "TE", "Upgrade", "HTTP2-Settings", "Date", "Server", "X-Request-Id", "x-infinilm-service",
    "X-Infinilm-Policy", "x-infinilm-attempts", "x-infinilm-error", "X-Accel-Buffering", "x-accel-buffering",
    "Cache-Control", "cache-control", "Content-Encoding", "Location", "Via", "Retry-After", "Content-Type",
    "Content_Length", "transfer_encoding", "Host", "Expect", "Forwarded", "X-Forwarded-For", "Vary", "ETag",
    "Proxy", "!#$%&'*+-.^_`|~9", "WWW-Authenticate", "Alt-Svc", "X_B",
]  # fmt: skip
VALUES = [
    "", "a", "a=1; Path=/", "close", "keep-alive", "x-a", "X-A, close", "keep-alive, Set-Cookie", "no", "no-cache",
    "timeout=5", "text/event-stream", "application/json", "gzip", "h2c", "caf\u00e9", "\t pad \t", "a\tb", "7",
    "content-type", "cache-control", "x" * 2000, "http://b/", "1.1 engine", ",", "close, close", "a\x01", "a\x7f",
]  # fmt: skip
BAD_LENGTHS = ["+{}", "{} ", "{},{}", "-1", "", "0x{:x}", "1" * 19, "{}a", "{}.0", "{}{}"]
BAD_CODINGS = ["Chunked", "gzip, chunked", "chunked, chunked", "identity", "", "chunked ", "gzip"]


def _event(choice: object) -> str:
    return f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n"


EVENTS = [
    _event({"delta": {"content": "a"}, "finish_reason": None}),
    _event({"delta": {"content": "\u00e9" * 40}, "finish_reason": None}),
    'data: {"choices":[{"delta":{"content":"x"}}]}\r\n\r\n',
    ":\n\n", "event: a\ndata: b\n\n", "data: ", "data: half", "\n", "data: " + "y" * 5000 + "\n\n", "id: 1\n",
]  # fmt: skip
ENDS = [
    'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    "data: [DONE]\n\n",
    'data: {"choices":[{"finish_reason" : \n"length"}]}\n\n',
]
ODD_ENDS = [
    "", "data: [DONE]", 'data: {"finish_reason":null}\n\n', "data: [done]\n\n", "data: [DO", '"finish_reason":"',
    "data: [DONE]\n\n" + "data: z\n\n" * 600, '"finish_reason":1', 'data: {"finish_reason": "stop',
    "data: [DONE]" + "z" * 4090, "data: [DONE]" + "z" * 4091, "data: [DONE]" + "z" * 4089,
]  # fmt: skip


def stream_body(draw: Draw) -> bytes:
    events = several(draw, EVENTS, 4)
    return ("".join(events) + mostly(draw, ENDS[0], ENDS + ODD_ENDS, 3)).encode()


def plain_body(draw: Draw) -> bytes:
    if rarely(draw, 25):
        return b"z" * pick(draw, [9_000, 17_000, 70_000, 300_000])
    return pick(
        draw, [b"", b"{}", b'{"object":"chat.completion"}', b"\0\xff\r\n\r\n", b"x" * 30, b"0"]
    )


def framed(draw: Draw, body: bytes) -> tuple[list[tuple[str, str]], bytes, bool]:  # noqa: PLR0911 - one for each kind
    """The delimiting fields, the body on the wire, and whether only the end delimits it."""
    kind = pick(
        draw, ["sized"] * 6 + ["chunked"] * 6 + ["close"] * 2 + ["odd", "both", "twice", "coding"]
    )
    length = ("Content-Length", str(len(body)))
    if kind == "sized":
        return [length], body, False
    if kind == "chunked":
        return (
            [("Transfer-Encoding", mostly(draw, "chunked", ["CHUNKED"]))],
            chunked(draw, body),
            False,
        )
    if kind == "close":
        return [], body, True
    if kind == "odd":
        text = pick(draw, BAD_LENGTHS).format(len(body), len(body))
        return [("Content-Length", text)], body, False
    if kind == "twice":
        return [length, (length[0], pick(draw, [length[1], "0"]))], body, False
    if kind == "coding":
        return [("Transfer-Encoding", pick(draw, BAD_CODINGS))], chunked(draw, body), False
    pair = [length, ("Transfer-Encoding", "chunked")]
    return pair[::-1] if rarely(draw, 2) else pair, chunked(draw, body), False


def interim(draw: Draw) -> bytes:
    """What comes before the answer: nothing, or answers with 1xx."""
    status = pick(
        draw, ["100 Continue", "102 Processing", "103 Early Hints", "199 X", "101 Switching", "100"]
    )
    fields = several(draw, [("Link", "x"), ("Content-Length", "0"), ("X", "y")], 1)
    return lines(draw, f"HTTP/1.1 {status}", fields)


@st.composite
def script(draw: Draw) -> Script:
    """One answer."""
    streaming = rarely(draw, 2)
    body = stream_body(draw) if streaming else plain_body(draw)
    kind = mostly(draw, "text/event-stream" if streaming else "application/json", KINDS, 6)
    delimiters, sent, by_end = framed(draw, body)
    fields = [
        ("Content-Type", kind),
        *((pick(draw, NAMES), pick(draw, VALUES)) for _ in range(pick(draw, [0, 0, 1, 1, 2, 4]))),
    ]
    if rarely(draw, 80):
        fields += [("X-Many", "1")] * pick(draw, [150, 197, 198, 199, 200, 250])
    if rarely(draw, 80):
        fields += [("X-Long", "x" * pick(draw, [30_000, 65_000, 65_480, 65_536, 90_000]))]
    where = upto(draw, len(fields))
    fields[where:where] = delimiters
    version = mostly(draw, "HTTP/1.1", STARTS, 12)
    status = mostly(draw, str(mostly(draw, 200, STATUSES, 3)), ODD_STATUSES, 25)
    reason = mostly(draw, " OK", REASONS, 6)
    head = lines(draw, f"{version} {status}{reason}", fields)
    if rarely(draw, 20):
        head = spoilt(draw, head)
    before = b"".join(interim(draw) for _ in range(upto(draw, 2))) if rarely(draw, 15) else b""
    return ended(draw, before + head + sent, by_end)


def ended(draw: Draw, wire: bytes, by_end: bool) -> Script:
    """The answer as a script: whole and kept open, or broken off at any byte in any way."""
    end: End = "fin" if by_end else "keep"
    if rarely(draw, 5):
        breaks: list[End] = ["fin", "fin", "fin", "rst", "rst"]
        end = "stall" if rarely(draw, 40) else pick(draw, breaks)
        if rarely(draw, 2):
            wire = wire[: upto(draw, len(wire))]
    elif rarely(draw, 20):
        wire += pick(draw, [b"x", b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\0"])
    return Script(cut(draw, wire), end)
