"""The one scan finds what a JSON parser would find, and builds nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinilm_router.proxy import request as module
from infinilm_router.proxy.heads import RequestHead, parse_request_head
from infinilm_router.proxy.request import MAX_MEMBERS, SMALL_BODY, WANTED, read_request, scan
from infinilm_router.router.selection import Request
from infinilm_router.utils.errors import RouterError


def asked(body: bytes, *, content_type: bytes = b"application/json", query: bytes = b"") -> Request:
    head = parse_request_head(
        b"POST /?%b HTTP/1.1\r\nHost: h\r\nContent-Type: %b\r\n\r\n" % (query, content_type)
    )
    return read_request(head, body, b"127.0.0.1")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=30,
)
KEYS = st.sampled_from(
    ["model", "stream", "messages", "prompt", "user", "x", 'a"b', "mod\\el", "ä"]
)


def encoded(members: list[tuple[str, Any]], *, ascii_only: bool, indent: bool) -> bytes:
    """A JSON object with these members in order, duplicates included."""
    blank = "\n  " if indent else ""

    def text_of(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only)

    text = ",".join(f"{blank}{text_of(k)}:{blank}{text_of(v)}" for k, v in members)
    return f"{{{text}{blank}}}".encode()


@given(st.lists(st.tuples(KEYS, JSON), max_size=8), st.booleans(), st.booleans(), st.booleans())
def test_the_scan_finds_the_values_that_a_parser_finds(
    members: list[tuple[str, Any]], ascii_only: bool, indent: bool, large: bool
) -> None:
    if large:
        members = [*members, ("padding", "p" * SMALL_BODY)]
    body = encoded(members, ascii_only=ascii_only, indent=indent)
    parsed = json.loads(body)
    spans = zip(WANTED, scan(body), strict=True)
    found = {key: json.loads(body[a:b]) for key, (a, b) in spans if a >= 0}
    assert found == {key: value for key, value in parsed.items() if key in WANTED}


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_both_ways_of_scanning_agree_on_any_bytes(noise: bytes) -> None:
    for body in (noise, b'{"model":"m",' + noise, b'{"x":[' + noise + b'],"model":"n"}'):
        spans = scan(body)
        found = module._scan_members(body)
        assert list(spans) == [found.get(key, module.ABSENT) for key in WANTED]


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"a"}', "a"),
        (b' \n{ "x" : {"model":"no"} , "model" : "a" }', "a"),
        (b'{"model":"a","model":"b"}', "b"),
        (b'{"mod\\u0065l":"a"}', "a"),
        (b'{"model":"a\\u002fb"}', "a/b"),
        ('{"model":"mödel"}'.encode(), "mödel"),
        (b'{"messages":[{"content":"\\"model\\":\\"no\\""}],"model":"a"}', "a"),
        (b'{"model":null}', None),
        (b'{"model":""}', None),
        (b'{"model":"a"', "a"),
        (b'{"model":"a","messages":[}', "a"),
        (b'{"model":"a"} trailing', "a"),
        (b'{"messages":[', None),
        (b'["model"]', None),
        (b"", None),
        (b"model=a", None),
        (b"\xef\xbb\xbf" + b'{"model":"a"}', None),
        (b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b',"model":"deep"}', "deep"),
        (b'{"x":"' + b"\\\\" * 20_000 + b'","model":"escapes"}', "escapes"),
    ],
)
def test_the_model_is_found(body: bytes, model: str | None) -> None:
    assert asked(body).model == model


@pytest.mark.parametrize("value", [b"1", b"true", b'["a"]', b'{"a":1}'])
def test_a_model_that_is_no_string_is_the_clients_mistake(value: bytes) -> None:
    with pytest.raises(RouterError) as caught:
        asked(b'{"model":' + value + b"}")
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "body", [b'{"model":"m', b'{"model":"', b'{"a":["x', b'{"a":{"b":"x', b'{"a":"x', b'{"a":["\\']
)
def test_a_string_that_does_not_end_names_no_model_and_ends_the_scan(body: bytes) -> None:
    assert asked(body).model is None


def test_half_of_a_surrogate_pair_becomes_a_replacement_character() -> None:
    assert asked(rb'{"model":"\ud83d"}').model == "\ufffd"
    assert asked(rb'{"model":"\ud83d\ude00"}').model == "\U0001f600"


def test_more_members_than_any_client_sends_are_refused() -> None:
    members = b",".join([b'"a":1'] * (MAX_MEMBERS + 1))
    with pytest.raises(RouterError):
        asked(b"{" + members + b"}")


def test_the_facts_of_a_chat_request() -> None:
    found = asked(b'{"messages":[{"role":"user"}],"stream":true,"user":"u","prompt_cache_key":"k"}')
    assert found.stream
    assert found.key == b"k"
    assert found.prompt == b'[{"role":"user"}]'
    assert found.prompt_bytes == 17


def test_only_true_means_stream() -> None:
    assert not asked(b'{"stream":"true"}').stream
    assert not asked(b'{"stream":false}').stream


def test_a_session_header_goes_before_the_body() -> None:
    head = RequestHead()
    head.session = {b"x-session-id": b"s", b"x-infinilm-session": b"first"}
    assert read_request(head, b'{"user":"u"}', b"").key == b"first"


def test_the_model_of_a_form_is_its_field() -> None:
    body = (
        b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
        b"Content-Type: audio/wav\r\n\r\nRIFF\x00\xff\r\n"
        b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--X--\r\n'
    )
    assert asked(body, content_type=b"multipart/form-data; boundary=X").model == "whisper-1"


@pytest.mark.parametrize("name", [b'name="model"', b"name=model", b'name="model"; x="y"'])
def test_the_ways_to_write_a_form_are_understood(name: bytes) -> None:
    body = b"--a b\r\nContent-Disposition: form-data; " + name + b"\r\n\r\nm1\r\n--a b--\r\n"
    assert asked(body, content_type=b'multipart/form-data; boundary="a b"').model == "m1"


def test_a_file_that_is_called_model_is_not_the_model() -> None:
    body = (
        b'--X\r\nContent-Disposition: form-data; name="f"; filename="model"\r\n\r\nno\r\n'
        b'--X\r\nContent-Disposition: form-data; name="f"\r\n\r\n name="model"\r\n\r\nno\r\n--X--'
    )
    assert asked(body, content_type=b"multipart/form-data; boundary=X").model is None


def test_the_query_names_the_model_when_the_body_does_not() -> None:
    assert asked(b"", query=b"a=1&model=local%2Fm+x").model == "local/m x"
    assert asked(b'{"model":"body"}', query=b"model=query").model == "body"
