"""The strict parser takes clear messages in any slicing and refuses unclear ones."""

import pytest

from rig.wire import (
    BodyReader,
    Head,
    WireError,
    chunk,
    request_framing,
    request_line,
    response_framing,
    status_line,
    take_head,
)


def head(text: str) -> Head:
    taken = take_head(text.encode("latin-1") + b"\r\n\r\n")
    assert taken
    return taken[0]


def test_a_head_is_taken_only_when_it_is_whole() -> None:
    data = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nbody"
    assert take_head(data[:27]) is None
    taken = take_head(data)
    assert taken == (Head("GET /x HTTP/1.1", (("Host", "a"),)), 28)


@pytest.mark.parametrize(
    "field",
    ["no colon", ": empty", "a b: c", "a : c", " folded", "a: b\nc: d", "a: b\rc", "a: \x00"],
)
def test_unclear_fields_are_refused(field: str) -> None:
    with pytest.raises(WireError):
        head("GET / HTTP/1.1\r\n" + field)


@pytest.mark.parametrize(
    "fields",
    [
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: +1",
        "Content-Length: 1, 1",
        "Content-Length:",
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_refused(fields: str) -> None:
    with pytest.raises(WireError):
        request_framing(head("POST / HTTP/1.1\r\n" + fields))


@pytest.mark.parametrize("line", ["GET /", "GET  / HTTP/1.1", "GET / HTTP/1.2", "G(T / HTTP/1.1"])
def test_bad_request_lines_are_refused(line: str) -> None:
    with pytest.raises(WireError):
        request_line(head(line))


@pytest.mark.parametrize("line", ["HTTP/1.1 99 x", "HTTP/1.1 200", "HTTP/2 200 OK", "ICY 200 OK"])
def test_bad_status_lines_are_refused(line: str) -> None:
    with pytest.raises(WireError):
        status_line(head(line))


def test_response_framing_follows_method_and_status() -> None:
    sized = head("HTTP/1.1 200 OK\r\nContent-Length: 7")
    assert response_framing(sized, "GET") == 7
    assert response_framing(sized, "HEAD") == 0
    assert response_framing(head("HTTP/1.1 304 x\r\nContent-Length: 7"), "GET") == 0
    assert response_framing(head("HTTP/1.1 200 OK"), "GET") == "close"
    chunked = head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")
    assert response_framing(chunked, "GET") == "chunked"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_chunked_body_is_the_same_in_every_slicing(step: int) -> None:
    data = chunk(b"hello") + chunk(b"\r\n0\r\n") + b"0\r\n\r\n" + b"next"
    reader, rest = BodyReader("chunked"), b""
    for index in range(0, len(data), step):
        piece = data[index : index + step]
        rest += reader.feed(piece)
    assert reader.whole
    assert reader.chunks == [b"hello", b"\r\n0\r\n"]
    assert rest == b"next"


@pytest.mark.parametrize(
    "data",
    [
        b"5;ext=1\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"0\r\nTrailer: x\r\n\r\n",
        b"-1\r\n",
        b"\r\n",
        b"1" * 40,
    ],
)
def test_unclear_chunks_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        BodyReader("chunked").feed(data)


def test_a_sized_body_gives_back_what_follows_it() -> None:
    reader = BodyReader(3)
    assert reader.feed(b"ab") == b""
    assert not reader.whole
    assert reader.feed(b"cNEXT") == b"NEXT"
    assert bytes(reader.data) == b"abc"


def test_only_a_body_that_the_end_delimits_is_whole_at_the_end() -> None:
    until_close, sized = BodyReader("close"), BodyReader(3)
    for reader in (until_close, sized):
        reader.feed(b"ab")
        reader.end()
    assert until_close.whole
    assert not sized.whole
