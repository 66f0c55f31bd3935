"""The fields of a head: how they frame a message, and which of them are passed on."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import httptools

from infinilm_router.utils.errors import Code, RouterError
from infinilm_router.utils.headers import connection_tokens

_LENGTH = re.compile(rb"\d{1,18}")


def refused(message: str, status: int = 400, code: Code = Code.INVALID_REQUEST) -> RouterError:
    """The error for a request whose framing can't be trusted: answer, then close."""
    return RouterError(code, message, status=status, close=True)


def line_ends_are_clean(data: bytes) -> bool:
    """Whether every LF follows a CR and there is no NUL."""
    return data.count(b"\n") == data.count(b"\r\n") and b"\0" not in data


class Fields:
    """What llhttp reports of a head, sorted into what is passed on and what frames the message."""

    # Class-level defaults: a head sets only what it has, which halves the cost of making one.
    content_length: bytes | None = None
    chunked = False
    connection: Sequence[bytes] = ()
    fault: str | None = None
    http_1_0 = False
    passed = b""  # what is passed on, as it stands on the wire

    def __init__(self) -> None:
        self.lines: list[bytes] = []  # name, b": ", value, b"\r\n", name, ... of what is passed on

    def on_framing(self, name: bytes, value: bytes) -> None:
        """One of the hop-by-hop fields."""
        if name == b"connection":
            self.connection = [*self.connection, *connection_tokens(value)]
        elif name == b"content-length":
            if self.content_length is not None or not _LENGTH.fullmatch(value):
                self.fault = "Content-Length must stand once and be a plain number"
            self.content_length = value
        elif name == b"transfer-encoding":
            if self.chunked or value.lower() != b"chunked":
                self.fault = "Transfer-Encoding must stand once and be 'chunked'"
            self.chunked = True

    def end(self) -> None:
        """After the last field: checks across fields, removal of what Connection names."""
        if self.chunked and self.content_length is not None:
            self.fault = "Content-Length and Transfer-Encoding exclude each other"
        if not self.connection:
            return
        named = [token for token in self.connection if token not in (b"close", b"keep-alive")]
        if named:
            lines = self.lines
            fields = [lines[i : i + 4] for i in range(0, len(lines), 4)]
            self.lines = [part for f in fields if f[0].lower() not in named for part in f]


class Rules(dict[bytes, Callable[[Any, bytes, bytes], bool] | None]):
    """Rules by field name as it is spelt; spellings seen are remembered, up to a bound."""

    MAX_SPELLINGS = 2048

    def __missing__(self, name: bytes) -> Callable[[Any, bytes, bytes], bool] | None:
        low = name.lower()
        rule = self.get(low, drop if low.startswith(b"proxy-") else None)
        if len(self) < self.MAX_SPELLINGS:
            self[name] = rule
        return rule


def drop(*_: object) -> bool:
    """The rule for what is not passed on and means nothing."""
    return False


def on_framing(head: Fields, name: bytes, value: bytes) -> bool:
    """The rule for hop-by-hop fields."""
    head.on_framing(name.lower(), value)
    return False


def parse_fields(
    parser: "httptools.HttpRequestParser | httptools.HttpResponseParser",
    data: bytes,
    head: Fields,
    max_fields: int,
) -> None:
    """Let llhttp go over a head.

    Raises:
        RouterError: it is malformed, or has too many fields; always with `close`.
    """
    if data.count(b"\r\n") > max_fields + 2:  # the first line and the empty one
        raise refused(f"more than {max_fields} header fields", 431)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # whether an upgrade is wanted is decided from the fields
    except httptools.HttpParserCallbackError:
        raise  # a fault of ours, not of the head
    except httptools.HttpParserError as error:
        raise refused(f"malformed head: {error}") from None
    head.end()
    if head.fault:
        raise refused(head.fault)
