"""What a request asks for, found by one scan over the top level of its JSON body.

Nothing is unescaped and nothing is built: the scan walks the members of the outermost object,
notes where the few values stand that routing needs, and skips the rest. The last of duplicate
keys wins, as in JSON parsers. What is not JSON, or breaks off, is not the router's business: the
facts found until then hold, and the engine gives its verdict on the body.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final
from urllib.parse import unquote_plus

from infinilm_router.proxy.heads import SESSION_FIELDS, RequestHead
from infinilm_router.router.selection import Request
from infinilm_router.utils.errors import Code, RouterError

MAX_MEMBERS: Final = 4096  # members of the outermost object; more can only be an attack
PROMPT_HEAD: Final = 1024  # bytes of the prompt that a request without a session key is known by
MAX_FORM_TRIES: Final = 16  # places in a form that look like the field
MAX_FORM_MODEL: Final = 1024  # bytes of its value
FIRST_PIECE: Final = 512  # bytes of a string looked at first, four times as many each time after
LAST_PIECE: Final = 64 * 1024
SMALL_BODY: Final = 2 * 1024  # bytes; up to here one regular expression is faster than searching

# The members that routing looks at (routing.md calls the text of the prompt T).
WANTED: Final = ("model", "stream", "prompt_cache_key", "user", "messages", "prompt", "input")
Span = tuple[int, int]  # start and end in the body
ABSENT: Final[Span] = (-1, -1)

# Before Python 3.11.5 a possessive repetition whose last try fails half-way goes on from there
# (gh-106052); a last alternative that fails at once, (?!), takes it back to where that try began.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SHORT = rb'[^"\[\]{}]++|"[^"\\]{0,64}+(?:\\.[^"\\]{0,64}+){0,8}+"'


def _nested(depth: int, flat: bytes) -> bytes:
    """A pattern for a container that nests up to `depth` levels, of either kind of bracket."""
    inner = flat
    for _ in range(depth):
        inner = rb"%b|[\[{](?:%b|(?!))*+[\]}]" % (flat, inner)
    return rb"[\[{](?:%b|(?!))*+[\]}]" % inner


_KEY = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,}\]\[{"]++')


def _small_body(string: bytes) -> "re.Pattern[bytes]":
    """A pattern for a whole small body whose keys hold no escapes, and whose strings are `string`.

    A group keeps its last match, so that the last of duplicate keys wins here too.
    """
    flat = rb'[^"\[\]{}]++|' + string
    value = rb'%b|%b|[^ \t\r\n,}\]\[{"]++' % (string, _nested(5, flat))
    wanted = b"|".join(
        rb'"%b"[ \t\r\n]*+:[ \t\r\n]*+(%b)' % (key.encode(), value) for key in WANTED
    )
    return re.compile(
        rb"[ \t\r\n]*+\{(?:[ \t\r\n]*+(?:%b"
        rb'|"[^"\\]*+"[ \t\r\n]*+:[ \t\r\n]*+(?:%b))[ \t\r\n]*+(?:,|(?=\}))|(?!))*+\}'
        % (wanted, value),
        re.DOTALL,
    )


_SMALL_BODY = _small_body(_STRING)
_SMALL_PLAIN_BODY = _small_body(rb'"[^"]*+"')  # without backslashes
# For bodies of any size: values that are over soon, openers that follow each other (with keys), and
# runs of text that open only or close only.
_SHORT_VALUES = re.compile(rb"(?:%b|%b|(?!))*+" % (_SHORT, _nested(4, _SHORT)), re.DOTALL)
_OPENERS = re.compile(
    rb'(?:[\[{][ \t\r\n]*+(?:"[^"\\\[\]{}]{0,64}+"[ \t\r\n]*+:[ \t\r\n]*+|(?!))?+|(?!))++'
)
_RUNS = re.compile(rb"[^\]}]++|[^\[{]++")
_CLOSING = re.compile(rb"[\]}]")
_COMMA = re.compile(rb"[ \t\r\n]*+,")
_OPEN = re.compile(rb"[ \t\r\n]*+\{")

_BOUNDARY = re.compile(rb'boundary=(?:"([^"]{1,70})"|([^";\s]{1,70}))', re.IGNORECASE)
_MODEL_FIELD = re.compile(rb'name=(?:"model"|model(?=[;\r ]))')
_QUERY_MODEL = re.compile(rb"(?:^|&)model=([^&]*)")


def read_request(head: RequestHead, body: bytes, client: bytes) -> Request:
    """What `head` and `body` ask for; `client` is the address of who asks.

    Raises:
        RouterError: `invalid_request` when the model's name is no string or the body has more
            than MAX_MEMBERS top-level members.
    """
    request = Request(client)
    if body:
        if head.is_form:
            _read_multipart(request, head.content_type, body)
        else:
            _read_json(request, body)
    if head.query and request.model is None and (match := _QUERY_MODEL.search(head.query)):
        request.model = unquote_plus(match[1].decode("ascii")) or None
    if head.session:
        for name in SESSION_FIELDS:
            if value := head.session.get(name):
                request.key = value
                break
    return request


def _read_json(request: Request, body: bytes) -> None:
    model, stream, cache_key, user, messages, prompt, text = scan(body)
    start, end = model
    if start >= 0:
        request.model = _model_name(body[start:end])
    start, end = stream
    if start >= 0:
        request.stream = body[start:end] == b"true"
    start, end = messages
    if start < 0:
        start, end = prompt if prompt[0] >= 0 else text
    size = request.prompt_bytes = end - start
    if size:
        request.prompt = body[start : end if size <= PROMPT_HEAD else start + PROMPT_HEAD]
    if cache_key != user:  # equal they are where neither stands in the body
        request.key = _text(body, cache_key) or _text(body, user)


def _text(body: bytes, span: Span) -> bytes | None:
    """The inside of a string as it stands in the body; None: it is empty, or no string."""
    start, end = span
    return body[start + 1 : end - 1] if end - start > 2 and body[start] == 34 else None


def _model_name(raw: bytes) -> str | None:
    if raw[0] != 34:  # a quote
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
    # Half of a surrogate pair is no text: it could be written to no log.
    return str(name).encode("utf-16", "surrogatepass").decode("utf-16", "replace") or None


def _read_multipart(request: Request, content_type: bytes, body: bytes) -> None:
    """The form field `model` (RFC 7578); files, which may be large, are only searched."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return
    delimiter = b"--" + (boundary[1] or boundary[2])
    for field in islice(_MODEL_FIELD.finditer(body), MAX_FORM_TRIES):
        at = field.start()
        part = body.rfind(delimiter, 0, at)
        start = body.find(b"\r\n\r\n", at) + 4
        end = body.find(b"\r\n" + delimiter, start, start + MAX_FORM_MODEL)
        in_fields = part >= 0 and b"\r\n\r\n" not in body[part:at]
        if in_fields and body[at - 1] in b" ;" and start >= 4 and end >= 0:
            request.model = body[start:end].decode("utf-8", "replace") or None
            return


def scan(body: bytes) -> Sequence[Span]:
    """Where the values of the WANTED members of a JSON object stand, in that order.

    Raises:
        RouterError: `invalid_request` when there are more than MAX_MEMBERS members.
    """
    if len(body) <= SMALL_BODY:
        pattern = _SMALL_BODY if b"\\" in body else _SMALL_PLAIN_BODY
        if small := pattern.match(body):
            return small.regs[1:]
    found = _scan_members(body)
    return [found.get(key, ABSENT) for key in WANTED]


def _scan_members(body: bytes) -> Mapping[str, Span]:
    found: dict[str, Span] = {}
    opening = _OPEN.match(body)
    if opening is None:
        return found
    at = opening.end()
    for _ in range(MAX_MEMBERS):
        member = _member(body, at)
        if member is None:
            return found
        raw, span, at = member
        key = raw[1:-1].decode("utf-8", "replace") if b"\\" not in raw else _unescaped(raw)
        if key in WANTED:
            found[key] = span
        if at < 0:
            return found
    raise RouterError(
        Code.INVALID_REQUEST, f"the body has more than {MAX_MEMBERS} top-level members"
    )


def _member(body: bytes, at: int) -> tuple[bytes, Span, int] | None:
    """The member at `at`: its quoted key, the span of its value, where the next one starts (-1)."""
    key = _KEY.match(body, at)
    if key is None:
        return None
    start = key.end()
    end = _value_end(body, start)
    if end < 0:
        return None
    comma = _COMMA.match(body, end)
    return key[1], (start, end), comma.end() if comma else -1


def _unescaped(raw: bytes) -> str:
    try:
        return str(json.loads(raw, strict=False))
    except ValueError:
        return ""


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

    Most strings hold no escaped quote, and then one search finds the end. Else escapes are
    blotted out, piece by piece, until a quote is left: that costs a tenth of walking over them.
    """
    quote = body.find(b'"', at + 1)
    if quote < 0:
        return -1
    if body[quote - 1] != 92:
        return quote + 1
    start, size = at + 1, FIRST_PIECE
    while start < len(body):
        piece = body[start : start + size]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # it ends inside an escape
            piece = body[start : start + size + 1]
        plain = piece.replace(b"\\\\", b"__") if b"\\\\" in piece else piece
        end = plain.replace(b'\\"', b"__").find(b'"')
        if end >= 0:
            return start + end + 1
        start += len(piece)
        size = min(4 * size, LAST_PIECE)
    return -1


def _container_end(body: bytes, at: int) -> int:
    """Behind the bracket that closes the one at `at`, by counting brackets outside strings.

    Short values are skipped in one go, runs of brackets are counted, and the end of a long string
    is searched: no shape of a body makes this slow.
    """
    depth = 1
    at += 1
    while True:
        if values := _SHORT_VALUES.match(body, at):
            at = values.end()
        if openers := _OPENERS.match(body, at):
            depth += body.count(b"{", at, openers.end()) + body.count(b"[", at, openers.end())
            at = openers.end()
        quote = body.find(b'"', at)
        segment = body[at:quote] if quote >= 0 else body[at:]
        depth, end = _close(segment, depth)
        if depth == 0:
            return at + end
        if quote < 0:
            return -1
        at = _string_end(body, quote)
        if at < 0:
            return -1


def _close(text: bytes, depth: int) -> tuple[int, int]:
    """The depth behind text without strings; when it reaches 0, (0, behind the last bracket)."""
    for run in _RUNS.finditer(text):
        closing = run[0].count(b"}") + run[0].count(b"]")
        if closing >= depth:
            last = next(islice(_CLOSING.finditer(run[0]), depth - 1, None))
            return 0, run.start() + last.end()
        depth += run[0].count(b"{") + run[0].count(b"[") - closing
    return depth, -1
