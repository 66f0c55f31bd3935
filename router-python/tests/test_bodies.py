"""Bodies end where docs/HTTP.md says, however their bytes arrive."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinilm_router.proxy.bodies import (
    MAX_CHUNK_LINE,
    BodyReader,
    ChunkedBody,
    SizedBody,
    UntilClose,
    request_body,
    response_body,
)
from infinilm_router.proxy.heads import RequestHead, ResponseHead, parse_request_head
from infinilm_router.utils.errors import Code, RouterError


def read(reader: BodyReader, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """What the reader makes of the pieces: (payload, what is left over)."""
    payload = rest = b""
    for piece in pieces:
        if reader.done:
            rest += piece
        elif not reader.fault:
            part, rest = reader.feed(piece)
            payload += part
    return payload, rest


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(
    st.lists(st.binary(min_size=1, max_size=40)),
    st.lists(st.integers(0, 5000), max_size=20),
    st.sampled_from([b"", b";a=b", b" ; x"]),
    st.sampled_from([b"", b"X-T: 1\r\n"]),
)
def test_chunks_come_back_whole_wherever_they_are_cut(
    chunks: list[bytes], places: list[int], extension: bytes, trailer: bytes
) -> None:
    coded = b"".join(b"%X%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks)
    coded += b"0\r\n" + trailer + b"\r\n"
    reader = ChunkedBody()
    payload, rest = read(reader, cut(coded + b"NEXT", places))
    assert reader.done
    assert not reader.fault
    assert payload == b"".join(chunks)
    assert rest == b"NEXT"


@given(st.binary(max_size=60), st.lists(st.integers(0, 100), max_size=8))
def test_a_sized_body_ends_after_its_bytes(data: bytes, places: list[int]) -> None:
    reader = SizedBody(len(data))
    payload, rest = read(reader, cut(data + b"NEXT", places))
    assert (reader.done, payload, rest) == (True, data, b"NEXT")


@pytest.mark.parametrize(
    "coded",
    [
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b" 1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"1\nx\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n",
        b"1111111111111111\r\n",
        b"1;" + b"a" * 300 + b"\r\n",
        b"1" * 300,
        b"1;\x00\r\nx\r\n",
        b"0\r\nno field\r\n\r\n",
        b"0\r\n" + b"X: 1\r\n" * 5000 + b"\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_malformed_coding_is_a_fault_however_it_arrives(coded: bytes, step: int) -> None:
    reader = ChunkedBody()
    read(reader, [coded[at : at + step] for at in range(0, len(coded), step)])
    assert reader.fault
    assert not reader.done


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n", b"\rdata\r\n", b"aaaaa\n"])
@pytest.mark.parametrize("length", range(MAX_CHUNK_LINE - 6, MAX_CHUNK_LINE + 3))
def test_what_is_wrong_with_a_line_does_not_depend_on_how_it_is_cut(
    length: int, end: bytes
) -> None:
    line = b"1;".ljust(length, b"a") + end

    def verdict(at: int) -> str | None:
        reader = ChunkedBody()
        read(reader, [line[:at], line[at:]])
        return reader.fault

    found = {verdict(at) for at in range(1, len(line) + 1)}
    assert len(found) == 1
    assert (None in found) == (end in (b"\r\n", b"\r") and length <= MAX_CHUNK_LINE)


def test_what_came_before_a_fault_is_not_lost() -> None:
    reader = ChunkedBody()
    payload, _ = reader.feed(b"3\r\nabc\r\nzz\r\n")
    assert payload == b"abc"
    assert reader.fault


def test_a_body_without_length_ends_with_its_connection() -> None:
    reader = UntilClose()
    assert reader.feed(b"abc") == (b"abc", b"")
    assert not reader.done


def head(method: bytes, *, chunked: bool = False) -> RequestHead:
    coding = b"Transfer-Encoding: chunked\r\n" if chunked else b""
    return parse_request_head(b"%b / HTTP/1.1\r\nHost: h\r\n%b\r\n" % (method, coding))


def test_a_length_over_the_limit_is_refused_before_reading() -> None:
    with pytest.raises(RouterError) as caught:
        request_body(head(b"POST"), 11, 10)
    assert caught.value.code is Code.BODY_TOO_LARGE
    assert not request_body(head(b"POST"), 10, 10).done


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
def test_methods_without_body_get_none(method: bytes) -> None:
    assert request_body(head(method), 0, 10).done
    for length, chunked in ((1, False), (None, True)):
        with pytest.raises(RouterError):
            request_body(head(method, chunked=chunked), length, 10)


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_some_answers_have_no_body_whatever_they_announce(method: bytes, status: int) -> None:
    answer = ResponseHead()
    answer.status = status
    assert response_body(answer, 5, method).done
