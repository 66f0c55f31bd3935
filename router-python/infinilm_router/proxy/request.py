"""What a request asks for, found by one scan over the top level of its JSON body.

Nothing is unescaped and nothing is built: the scan walks the members of the outermost object,
notes where the few values stand that routing needs, and skips the rest. The last of duplicate
keys wins, as in JSON parsers. What is not JSON, or breaks off, is not the router's business: the
facts found until then hold, and the engine gives its verdict on the body.
"""

import json
import re
from typing import Final
from urllib.parse import unquote_plus

from infinilm_router.proxy.framing import SESSION_FIELDS, RequestHead
from infinilm_router.router.selection import Request
from infinilm_router.utils.errors import Code, RouterError

MAX_MEMBERS: Final = 4096  # members of the outermost object; more can only be an attack
SMALL_BODY: Final = 8 * 1024  # up to here one regular expression is faster than searching

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'[^"\[\]{}]++|' + _STRING


def _nested(depth: int) -> bytes:
    """A pattern for a container that nests up to `depth` levels, of either kind of bracket."""
    inner = _FLAT
    for _ in range(depth):
        inner = rb"%b|[\[{](?:%b)*+[\]}]" % (_FLAT, inner)
    return rb"[\[{](?:%b)*+[\]}]" % inner


_KEY = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_STRING_AT = re.compile(_STRING, re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,}\]\[{"]++')
# A whole member of a small body: key, value, and the comma or brace behind it.
_SMALL_MEMBER = re.compile(
    rb"[ \t\r\n]*+(%b)[ \t\r\n]*+:[ \t\r\n]*+(%b|%b|[^ \t\r\n,}\]\[{\"]++)[ \t\r\n]*+([,}])"
    % (_STRING, _STRING, _nested(5)),
    re.DOTALL,
)
_NEXT = re.compile(rb"[ \t\r\n]*+([,}])")
_OPEN = re.compile(rb"[ \t\r\n]*+\{")
_BRACKET = re.compile(rb"[\[\]{}]")

# The members that routing looks at (routing.md calls the text of the prompt T).
_PROMPT_KEYS: Final = (b"messages", b"prompt", b"input")
_KEY_KEYS: Final = (b"prompt_cache_key", b"user")
_WANTED: Final = frozenset(
    (
        b"model",
        b"stream",
        *_KEY_KEYS,
        *_PROMPT_KEYS,
    )
)
_MULTIPART_MODEL = re.compile(
    rb'\r\ncontent-disposition:[^\r\n]*;[ ]*name="?model"?[^\r\n]*\r\n'
    rb"(?:[^\r\n]+\r\n)*+\r\n([^\r\n]{1,512})\r\n--",
    re.IGNORECASE,
)
_QUERY_MODEL = re.compile(rb"(?:^|&)model=([^&]*)")


def read_request(head: RequestHead, body: bytes, client: bytes) -> Request:
    """What `head` and `body` ask for; `client` is the address of who asks.

    Raises:
        RouterError: `invalid_request` when the model's name is no string or the body has more
            than MAX_MEMBERS top-level members.
    """
    request = Request(client)
    if body:
        if head.content_type[:19].lower() == b"multipart/form-data":
            _read_multipart(request, body)
        elif opening := _OPEN.match(body):
            _read_json(request, body, scan(body, opening.end()))
    if request.model is None and head.query and (match := _QUERY_MODEL.search(head.query)):
        request.model = unquote_plus(match[1].decode("ascii")) or None
    if head.session:
        for name in SESSION_FIELDS:
            if value := head.session.get(name):
                request.key = value
                break
    return request


def _read_json(request: Request, body: bytes, found: dict[bytes, tuple[int, int]]) -> None:
    if span := found.get(b"model"):
        request.model = _model_name(body[span[0] : span[1]])
    if span := found.get(b"stream"):
        request.stream = body[span[0] : span[1]] == b"true"
    for key in _PROMPT_KEYS:
        if span := found.get(key):
            request.prompt = body[span[0] : min(span[1], span[0] + 1024)]
            request.prompt_bytes = span[1] - span[0]
            break
    for key in _KEY_KEYS:
        span = found.get(key)
        if span and span[1] - span[0] > 2 and body[span[0]] == 34:
            request.key = body[span[0] + 1 : span[1] - 1]
            break


def _model_name(raw: bytes) -> str | None:
    if raw[:1] != b'"':
        if raw == b"null":
            return None
        raise RouterError(Code.INVALID_REQUEST, "model must be a string", param="model")
    if b"\\" not in raw:
        return raw[1:-1].decode("utf-8", "replace") or None
    try:
        name = json.loads(raw, strict=False)
    except ValueError:
        raise RouterError(
            Code.INVALID_REQUEST, "model is not a valid JSON string", param="model"
        ) from None
    return str(name) or None


def _read_multipart(request: Request, body: bytes) -> None:
    if match := _MULTIPART_MODEL.search(body):
        request.model = match[1].decode("utf-8", "replace")


def scan(body: bytes, at: int) -> dict[bytes, tuple[int, int]]:
    """The wanted members of the object whose first member stands at `at`: key -> (start, end).

    Raises:
        RouterError: `invalid_request` when there are more than MAX_MEMBERS members.
    """
    found: dict[bytes, tuple[int, int]] = {}
    small = len(body) <= SMALL_BODY
    for _ in range(MAX_MEMBERS):
        if small and (member := _SMALL_MEMBER.match(body, at)):
            raw, span, last, at = member[1], member.span(2), member[3], member.end()
        else:
            if (slow := _member(body, at)) is None:
                return found
            raw, span, last, at = slow
        key = raw[1:-1] if b"\\" not in raw else _unescaped(raw)
        if key in _WANTED:
            found[key] = span
        if last != b",":
            return found
    raise RouterError(
        Code.INVALID_REQUEST, f"the body has more than {MAX_MEMBERS} top-level members"
    )


def _member(body: bytes, at: int) -> tuple[bytes, tuple[int, int], bytes, int] | None:
    """The member at `at`: quoted key, span of the value, what follows it, where to go on."""
    key = _KEY.match(body, at)
    if key is None:
        return None
    start = key.end()
    end = _value_end(body, start)
    if end < 0:
        return None
    after = _NEXT.match(body, end)
    return (key[1], (start, end), after[1], after.end()) if after else (key[1], (start, end), b"", end)


def _unescaped(raw: bytes) -> bytes:
    try:
        return str(json.loads(raw, strict=False)).encode("utf-8", "replace")
    except ValueError:
        return raw


def _value_end(body: bytes, at: int) -> int:
    """Where the value at `at` ends; -1 when it does not."""
    first = body[at : at + 1]
    if first == b'"':
        return _string_end(body, at)
    if first in (b"{", b"["):
        return _container_end(body, at)
    scalar = _SCALAR.match(body, at)
    return scalar.end() if scalar else -1


def _string_end(body: bytes, at: int) -> int:
    """Behind the closing quote of the string that opens at `at`; -1 without one.

    Most strings hold no escaped quote, and then one search finds the end. With escaped quotes
    the expression is faster than one search for each of them.
    """
    quote = body.find(b'"', at + 1)
    if quote < 0 or body[quote - 1] != 92:
        return quote + 1 if quote >= 0 else -1
    match = _STRING_AT.match(body, at)
    return match.end() if match else -1


def _container_end(body: bytes, at: int) -> int:
    """Behind the bracket that closes the one at `at`, by counting brackets outside strings."""
    depth = 1
    at += 1
    while True:
        quote = body.find(b'"', at)
        segment = body[at:quote] if quote >= 0 else body[at:]
        closing = segment.count(b"}") + segment.count(b"]")
        if closing >= depth:
            for bracket in _BRACKET.finditer(segment):
                depth += 1 if bracket[0] in b"{[" else -1
                if depth == 0:
                    return at + bracket.end()
        else:
            depth += segment.count(b"{") + segment.count(b"[") - closing
        if quote < 0:
            return -1
        at = _string_end(body, quote)
        if at < 0:
            return -1
