"""HTTP/1.1 heads of requests and responses, by the rules of docs/HTTP.md.

Heads go through llhttp (httptools); what it lets pass and the rules forbid is refused here.
Nothing here does input or output.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import httptools

from infinilm_router.proxy.fields import (
    Fields,
    Rules,
    drop,
    line_ends_are_clean,
    on_framing,
    parse_fields,
    refused,
)
from infinilm_router.router.engine import BUSY_DEFAULT
from infinilm_router.utils.errors import RouterError
from infinilm_router.utils.headers import FORWARDED, HOP_BY_HOP, SAFE_REQUEST_ID

MAX_REQUEST_HEAD: Final = 16 * 1024
MAX_REQUEST_FIELDS: Final = 100
MAX_TARGET: Final = 8 * 1024
MAX_RESPONSE_HEAD: Final = 64 * 1024
MAX_RESPONSE_FIELDS: Final = 200
# One text for both, or it would depend on how much of a head came at once.
MALFORMED: Final = "malformed status line, or lines that do not end with CRLF"

METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
BODYLESS_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
# The request line of nearly all requests; what does not match is looked at closely.
_PLAIN_REQUEST_LINE = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/[\x21\x22\x24-\x5b\x5d-\x7e]*) HTTP/1\.([01])\r\n"
)
_REQUEST_LINE = re.compile(
    rb"([A-Za-z0-9!#$%&'*+\-.^_`|~]+) ((?:[^ \r]|\r(?!\n))+) HTTP/(\d)\.(\d)\r\n"
)
_STATUS_LINE = re.compile(
    rb"HTTP/1\.([01]) ([2-5]\d\d|1\d\d)(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?\r\n"
)
_TARGET = re.compile(rb"/[\x21\x22\x24-\x5b\x5d-\x7e]*")
_ABSOLUTE = re.compile(rb"(?i:http)://([^/?#]+)(.*)", re.DOTALL)
_DOT_SEGMENT = re.compile(rb"(?:/|%2f)(?:\.|%2e){1,2}(?:/|%2f|$)|%00", re.IGNORECASE)
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
# Engines behind CGI-like servers read these as the fields that delimit a message.
_LOOKALIKES = frozenset((b"content_length", b"transfer_encoding"))


class Broken(Exception):  # noqa: N818 - it is what happened, not a fault of ours
    """The peer's bytes do not follow the rules; `str()` says how."""


class RequestHead(Fields):
    """A request's head that follows the rules. Built by `parse_request_head`."""

    method = b""
    bodyless = False  # the method allows no body
    target = b""
    path = b""
    query = b""
    host: bytes | None = None
    content_type = b""
    is_form = False
    expect_continue = False
    expects_more = False  # than 100-continue
    upgrade: bytes | None = None
    request_id: bytes | None = None
    via: Sequence[bytes] = ()
    forwarded: Sequence[tuple[bytes, bytes]] = ()
    session: Mapping[bytes, bytes] = MappingProxyType({})
    # Made once for a head that comes again and again on a connection (see HeadMemo).
    hop: bytes | None = None  # the gateway's own fields
    forwardable = False  # it was found that it may go to an engine

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp for each field."""
        rule = _REQUEST_RULES[name]
        if rule is None or rule(self, name, value):
            self.lines += (name, b": ", value, b"\r\n")

    def keep_alive(self) -> bool:
        """Whether the client wants to use the connection again (RFC 9112 9.3)."""
        if self.connection or self.http_1_0:
            asked = not self.http_1_0 or b"keep-alive" in self.connection
            return asked and b"close" not in self.connection
        return True


# Rules by field name: called with (head, name, value); True = pass the field on.


def _on_host(head: RequestHead, _: bytes, value: bytes) -> bool:
    if head.host is not None or not _HOST.fullmatch(value):
        head.fault = "Host must stand once and be a host with an optional port"
    head.host = value
    return False


def _on_expect(head: RequestHead, _: bytes, value: bytes) -> bool:
    if value.lower() == b"100-continue":
        head.expect_continue = True
    else:
        head.expects_more = True
    return False


def _on_upgrade(head: RequestHead, _: bytes, value: bytes) -> bool:
    head.upgrade = value.lower()
    return False


def _on_lookalike(head: RequestHead, name: bytes, _: bytes) -> bool:
    head.fault = f"the field name {name.decode()} looks like one that delimits the body"
    return False


def _on_forwarded(head: RequestHead, name: bytes, value: bytes) -> bool:
    head.forwarded = (*head.forwarded, (name.lower(), value))
    return False


def _on_request_id(head: RequestHead, _: bytes, value: bytes) -> bool:
    if SAFE_REQUEST_ID.fullmatch(value):
        head.request_id = value
    return False


def _on_via(head: RequestHead, _: bytes, value: bytes) -> bool:
    head.via = (*head.via, value)
    return True


def _on_content_type(head: RequestHead, _: bytes, value: bytes) -> bool:
    head.content_type = value
    head.is_form = value[:19].lower() == b"multipart/form-data"
    return True


def _on_session(head: RequestHead, name: bytes, value: bytes) -> bool:
    head.session = {name.lower(): value, **head.session}
    return True


SESSION_FIELDS: Final = (
    b"x-infinilm-session",
    b"x-session-id",
    b"x-claude-code-session-id",
    b"x-session-affinity",
    b"session-id",
)
_REQUEST_RULES = Rules(
    {
        **dict.fromkeys(HOP_BY_HOP, on_framing),
        **dict.fromkeys(FORWARDED, _on_forwarded),
        **dict.fromkeys(_LOOKALIKES, _on_lookalike),
        **dict.fromkeys(SESSION_FIELDS, _on_session),
        b"host": _on_host,
        b"expect": _on_expect,
        b"upgrade": _on_upgrade,
        b"x-request-id": _on_request_id,
        b"via": _on_via,
        b"content-type": _on_content_type,
    }
)


class ResponseHead(Fields):
    """An engine's response head that follows the rules. Built by `parse_response_head`."""

    status = 0
    event_stream = False
    encoded = False  # its body is compressed: no events can be told in it
    has_buffering = False  # X-Accel-Buffering stands in it
    has_caching = False  # Cache-Control stands in it
    retry_after: float | None = None  # seconds; a date counts as "soon", since clocks differ

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp for each field."""
        rule = _RESPONSE_RULES[name]
        if rule is None or rule(self, name, value):
            self.lines += (name, b": ", value, b"\r\n")

    def keep_alive(self) -> bool:
        """Whether the engine lets the connection be used again."""
        if self.http_1_0:
            return b"keep-alive" in self.connection
        return b"close" not in self.connection


def _on_answer_type(head: ResponseHead, _: bytes, value: bytes) -> bool:
    head.event_stream = value[:17].lower() == b"text/event-stream"
    return True


def _on_encoding(head: ResponseHead, _: bytes, value: bytes) -> bool:
    head.encoded = value.strip().lower() not in (b"", b"identity")
    return True


def _on_buffering(head: ResponseHead, _: bytes, __: bytes) -> bool:
    head.has_buffering = True
    return True


def _on_caching(head: ResponseHead, _: bytes, __: bytes) -> bool:
    head.has_caching = True
    return True


def _on_retry_after(head: ResponseHead, _: bytes, value: bytes) -> bool:
    value = value.strip()
    head.retry_after = float(value) if value.isdigit() else BUSY_DEFAULT
    return True


# The router writes these itself; an engine's own would stand beside them.
_OURS: Final = (
    b"x-request-id",
    b"x-infinilm-service",
    b"x-infinilm-attempts",
    b"x-infinilm-policy",
)
_RESPONSE_RULES = Rules(
    {
        **dict.fromkeys(HOP_BY_HOP, on_framing),
        **dict.fromkeys(_OURS, drop),
        b"content-type": _on_answer_type,
        b"content-encoding": _on_encoding,
        b"x-accel-buffering": _on_buffering,
        b"cache-control": _on_caching,
        b"retry-after": _on_retry_after,
    }
)


def parse_request_head(data: bytes) -> RequestHead:
    """Parse a whole head, empty line included.

    Raises:
        RouterError: it breaks a rule of docs/HTTP.md section 1 or 2; always with `close`.
    """
    if not line_ends_are_clean(data):
        raise refused("lines must end with CRLF, and NUL bytes are not allowed")
    line = _PLAIN_REQUEST_LINE.match(data)
    method, target, minor = line.groups() if line else _odd_request_line(data)
    head = RequestHead()
    head.method = method
    if method in BODYLESS_METHODS:
        head.bodyless = True
    if minor == b"0":
        head.http_1_0 = True
    if line is None:  # what is wrong with an odd target is told after the faults of the fields
        data = b"%b / HTTP/1.%b%b" % (method, minor, data[data.find(b"\r\n") :])
    parse_fields(httptools.HttpRequestParser(head), data, head, MAX_REQUEST_FIELDS)
    _check_request(head)
    if line is None:
        target = _origin_form(head, target)
    if len(target) > MAX_TARGET:
        raise refused(f"the target is longer than {MAX_TARGET} bytes", 414)
    path, _, head.query = target.partition(b"?")
    if (b"/." in path or b"%" in path) and _DOT_SEGMENT.search(path):
        raise refused("the path must not hold dot segments or %00")
    head.target, head.path = target, path
    head.passed = b"".join(head.lines)
    return head


def _odd_request_line(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and minor version of a line that is not plain.

    Raises:
        RouterError: it is malformed, or asks for what is not served.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise refused("the request line must be METHOD TARGET HTTP/1.1")
    method, target, major, minor = line.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise refused("only HTTP/1.1 and HTTP/1.0 are served", 505)
    if method not in METHODS:
        raise refused("this method is not served", 501)
    return method, target, minor


def _check_request(head: RequestHead) -> None:
    if head.http_1_0:
        if head.chunked:
            raise refused("Transfer-Encoding does not exist in HTTP/1.0")
    elif head.host is None:
        raise refused("Host is missing")
    if head.expects_more:
        raise refused("the only expectation that can be met is 100-continue", 417)
    upgrade = head.upgrade is not None and b"upgrade" in head.connection
    if upgrade and head.upgrade != b"h2c":
        raise refused("protocol upgrades are not served", 501)


def _origin_form(head: RequestHead, target: bytes) -> bytes:
    """The path and query of an absolute target (RFC 9112 3.2.2)."""
    if absolute := _ABSOLUTE.fullmatch(target):
        authority, target = absolute.groups()
        if authority.lower() != (head.host or b"").lower():
            raise refused("the target's host differs from the Host field")
        if not target.startswith(b"/"):
            target = b"/" + target
    if not _TARGET.fullmatch(target):
        raise refused("the target must be a path of visible ASCII characters without '#' or '\\'")
    return target


def parse_response_head(data: bytes) -> ResponseHead:
    """Parse an engine's whole head, empty line included.

    Raises:
        Broken: it breaks a rule of docs/HTTP.md section 5.
    """
    line = _STATUS_LINE.match(data)
    if line is None or not line_ends_are_clean(data):
        raise Broken(MALFORMED)
    minor, status, reason = line.groups(b"")
    head = ResponseHead()
    if minor == b"0":
        head.http_1_0 = True
    head.status = int(status)
    if head.status == 101:
        raise Broken("the engine switched protocols, which nobody asked for")
    try:
        parse_fields(httptools.HttpResponseParser(head), data, head, MAX_RESPONSE_FIELDS)
    except RouterError as error:
        raise Broken(error.message) from None
    if head.encoded:
        head.event_stream = False
    head.passed = b"HTTP/1.1 %d %b\r\n%b" % (head.status, reason, b"".join(head.lines))
    return head
