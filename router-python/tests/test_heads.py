"""Heads follow docs/HTTP.md sections 1 and 5, whatever the bytes."""

import pytest

from infinilm_router.proxy.fields import line_ends_are_clean
from infinilm_router.proxy.heads import Broken, RequestHead, parse_request_head, parse_response_head
from infinilm_router.proxy.memo import HeadMemo
from infinilm_router.utils.errors import RouterError


def request(line: bytes, *fields: bytes) -> RequestHead:
    return parse_request_head(b"\r\n".join((line, *fields)) + b"\r\n\r\n")


def refusal(line: bytes, *fields: bytes) -> int:
    with pytest.raises(RouterError) as caught:
        request(line, *fields)
    assert caught.value.close
    return caught.value.http_status


def test_a_plain_head_is_taken_apart() -> None:
    head = request(
        b"POST /v1/x?a=1&b=2 HTTP/1.1", b"Host: h:1", b"Accept: */*", b"Content-Length: 5"
    )
    assert (head.method, head.target) == (b"POST", b"/v1/x?a=1&b=2")
    assert (head.path, head.query, head.host) == (b"/v1/x", b"a=1&b=2", b"h:1")
    assert head.content_length == b"5"
    assert head.passed == b"Accept: */*\r\n"
    assert head.keep_alive()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/2.0", 505),
        (b"BREW / HTTP/1.1", 501),
        (b"get / HTTP/1.1", 501),
        (b"CONNECT h:1 HTTP/1.1", 501),
        (b"GET * HTTP/1.1", 400),
        (b"OPTIONS * HTTP/1.1", 400),
        (b"GET x HTTP/1.1", 400),
        (b"GET /a#b HTTP/1.1", 400),
        (b"GET /a\\b HTTP/1.1", 400),
        (b"GET /\xc3\xa4 HTTP/1.1", 400),
        (b"GET /../a HTTP/1.1", 400),
        (b"GET /a/.. HTTP/1.1", 400),
        (b"GET /a/./b HTTP/1.1", 400),
        (b"GET /a/%2e%2E/b HTTP/1.1", 400),
        (b"GET /a%2F..%2fb HTTP/1.1", 400),
        (b"GET /a%00b HTTP/1.1", 400),
        (b"GET /" + b"a" * 8192 + b" HTTP/1.1", 414),
        (b"GET http://other/ HTTP/1.1", 400),
        (b"GET https://h/ HTTP/1.1", 400),
    ],
)
def test_odd_request_lines_are_refused(line: bytes, status: int) -> None:
    assert refusal(line, b"Host: h") == status


@pytest.mark.parametrize(
    "path", [b"/a..b", b"/.well-known", b"/a/%2Fb", b"//a", b"/a;x", b"/a%20b"]
)
def test_harmless_paths_pass_as_they_are(path: bytes) -> None:
    assert request(b"GET %b HTTP/1.1" % path, b"Host: h").target == path


def test_an_absolute_target_becomes_its_origin_form() -> None:
    assert request(b"GET http://H:1/a?b HTTP/1.1", b"Host: h:1").target == b"/a?b"
    assert request(b"GET http://h HTTP/1.1", b"Host: h").target == b"/"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((), 400),
        ((b"Host: a", b"Host: a"), 400),
        ((b"Host: a/b",), 400),
        ((b"Host: a b",), 400),
        ((b"Host : a",), 400),
        ((b"Host: a", b"X: 1\r\n 2"), 400),
        ((b"Host: a", b"X: \x01"), 400),
        ((b"Host: a", b": x"), 400),
        ((b"Host: a", b"X"), 400),
        ((b"Host: a", b"Content-Length: 1", b"Content-Length: 1"), 400),
        ((b"Host: a", b"Content-Length: 1, 1"), 400),
        ((b"Host: a", b"Content-Length: +1"), 400),
        ((b"Host: a", b"Content-Length: 0x1"), 400),
        ((b"Host: a", b"Content-Length:"), 400),
        ((b"Host: a", b"Content-Length: 1", b"Transfer-Encoding: chunked"), 400),
        ((b"Host: a", b"Transfer-Encoding: gzip, chunked"), 400),
        ((b"Host: a", b"Transfer-Encoding: ,chunked"), 400),
        ((b"Host: a", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
        ((b"Host: a", b"Content_Length: 1"), 400),
        ((b"Host: a", b"Expect: magic"), 417),
        ((b"Host: a", b"Connection: upgrade", b"Upgrade: websocket"), 501),
        ((b"Host: a", *[b"X-%d: 1" % n for n in range(100)]), 431),
    ],
)
def test_bad_fields_are_refused(fields: tuple[bytes, ...], status: int) -> None:
    assert refusal(b"POST / HTTP/1.1", *fields) == status


def test_http_1_0_needs_no_host_and_knows_no_chunks() -> None:
    assert not request(b"GET / HTTP/1.0").keep_alive()
    assert request(b"GET / HTTP/1.0", b"Connection: Keep-Alive").keep_alive()
    assert refusal(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked") == 400


def test_fields_for_one_hop_are_not_passed_on() -> None:
    head = request(
        b"GET / HTTP/1.1",
        b"Host: a",
        b"Connection: close, X-Own",
        b"x-own: 1",
        b"TE: trailers",
        b"Proxy-Anything: 1",
        b"Upgrade: h2c",
        b"X-Forwarded-For: 9.9.9.9",
        b"X-Kept: 1",
    )
    assert head.passed == b"X-Kept: 1\r\n"
    assert not head.keep_alive()
    assert head.forwarded == ((b"x-forwarded-for", b"9.9.9.9"),)


def test_line_ends_are_judged() -> None:
    assert line_ends_are_clean(b"a\r\nb\r\n\r\n")
    assert not line_ends_are_clean(b"a\nb\r\n")
    assert not line_ends_are_clean(b"a\0\r\n")


def test_a_request_id_is_taken_only_when_it_is_safe() -> None:
    assert request(b"GET / HTTP/1.1", b"Host: a", b"X-Request-Id: a.b-1").request_id == b"a.b-1"
    assert request(b"GET / HTTP/1.1", b"Host: a", b"X-Request-Id: a b").request_id is None


def memo() -> HeadMemo[RequestHead]:
    return HeadMemo(parse_request_head)


def test_the_memo_knows_a_head_again_whatever_its_length_says() -> None:
    heads = memo()
    text = b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: %d\r\nX: 1\r\n\r\n"
    first, length = heads.read(text % 7)
    again, other = heads.read(text % 12345)
    assert (length, other) == (7, 12345)
    assert again is first


@pytest.mark.parametrize("value", [b"1 2", b"-1", b"+1", b"0x1", b"1,1", b"", b"1" * 19, b"\xb2"])
def test_the_memo_lets_no_bad_length_pass(value: bytes) -> None:
    heads = memo()
    text = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\nX: 1\r\n\r\n"
    heads.read(text % b"7")
    with pytest.raises(RouterError):
        heads.read(text % value)


def test_the_memo_is_not_fooled_by_a_second_length_field() -> None:
    heads = memo()
    heads.read(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n")
    with pytest.raises(RouterError):
        heads.read(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\n")


def test_the_memo_tells_heads_without_length_apart() -> None:
    heads = memo()
    first, length = heads.read(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
    assert length is None
    assert heads.read(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")[0] is first
    assert heads.read(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")[0].path == b"/b"


def test_an_engines_head_is_passed_on_without_its_framing() -> None:
    head = parse_response_head(
        b"HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nConnection: close\r\nSet-Cookie: b\r\n"
        b"Content-Type: text/event-stream; charset=utf-8\r\nX-Request-Id: theirs\r\n\r\n"
    )
    assert head.passed == (
        b"HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
        b"Content-Type: text/event-stream; charset=utf-8\r\n"
    )
    assert head.event_stream
    assert not head.keep_alive()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 600 High\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX y: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n",
        b"hello\r\n\r\n",
    ],
)
def test_an_engines_bad_head_is_broken(head: bytes) -> None:
    with pytest.raises(Broken):
        parse_response_head(head)
