"""HTTP/1.1 framing for tests, strict on purpose: what RFC 9112 does not allow is a WireError.

Both sides of the rig use it: the fake engine to read what a router sends, the clients to read
what it answers.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}\Z")
DIGITS = re.compile(r"[0-9]{1,19}\Z")
HEAD_LIMIT = 1 << 20

Framing = int | Literal["chunked", "close"]
Headers = tuple[tuple[str, str], ...]


class WireError(ValueError):
    """The other side sent bytes that are not one clear HTTP/1.1 message."""


@dataclass(frozen=True)
class Head:
    """A start line and its fields, names as they were sent."""

    start: str
    headers: Headers

    def get(self, name: str) -> str | None:
        """The first value of a field, or None."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Every value of a field, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


def take_head(data: bytes) -> tuple[Head, int] | None:
    """The head at the start of `data` and its length in bytes; None while it is not whole yet."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > HEAD_LIMIT:
            raise WireError(f"no end of the head in {len(data)} bytes")
        return None
    start, *fields = data[:end].decode("latin-1").split("\r\n")
    if not VALUE.match(start):
        raise WireError(f"control byte in start line {start!r}")
    return Head(start, tuple(_field(line) for line in fields)), end + 4


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not TOKEN.match(name):
        raise WireError(f"bad field line {line!r}")
    if not VALUE.match(value):
        raise WireError(f"control byte in field {line!r}")
    return name, value.strip(" \t")


def request_line(head: Head) -> tuple[str, str, str]:
    """Method, target and version of a request."""
    parts = head.start.split(" ")
    if len(parts) != 3 or not TOKEN.match(parts[0]) or not parts[1]:
        raise WireError(f"bad request line {head.start!r}")
    if parts[2] not in ("HTTP/1.0", "HTTP/1.1"):
        raise WireError(f"bad version in {head.start!r}")
    return parts[0], parts[1], parts[2]


def status_line(head: Head) -> tuple[str, int, str]:
    """Version, status and reason of a response."""
    match = re.match(r"(HTTP/1\.[01]) ([1-5][0-9]{2}) (.*)\Z", head.start)
    if not match:
        raise WireError(f"bad status line {head.start!r}")
    return match[1], int(match[2]), match[3]


def _declared(head: Head) -> Framing | None:
    """What Content-Length and Transfer-Encoding say; WireError if they can be read in two ways."""
    lengths, codings = head.all("content-length"), head.all("transfer-encoding")
    if lengths and codings:
        raise WireError("both Content-Length and Transfer-Encoding")
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"]:
            raise WireError(f"Transfer-Encoding {codings}")
        return "chunked"
    if not lengths:
        return None
    if len(lengths) > 1 or not DIGITS.match(lengths[0]):
        raise WireError(f"Content-Length {lengths}")
    return int(lengths[0])


def request_framing(head: Head) -> Framing:
    """How the body of a request is delimited (without any declaration: no body)."""
    declared = _declared(head)
    return 0 if declared is None else declared


def response_framing(head: Head, method: str) -> Framing:
    """How the body of a response to `method` is delimited."""
    declared = _declared(head)
    _, status, _ = status_line(head)
    if method == "HEAD" or status in (204, 304) or status < 200:
        return 0
    return "close" if declared is None else declared


@dataclass
class BodyReader:
    """Takes one body out of a byte stream and knows when it is whole."""

    framing: Framing
    data: bytearray = field(default_factory=bytearray)
    chunks: list[bytes] = field(default_factory=list)
    whole: bool = False
    _pending: bytearray = field(default_factory=bytearray)
    _last_chunk_seen: bool = False

    def __post_init__(self) -> None:
        self.whole = self.framing == 0

    def feed(self, data: bytes) -> bytes:
        """Take in `data`; what lies behind the end of the body is given back."""
        self._pending += data
        while not self.whole and self._step():
            pass
        if not self.whole:
            return b""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest

    def end(self) -> None:
        """The connection has ended in order: a body delimited by that is now whole."""
        self.whole = self.whole or self.framing == "close"

    def _step(self) -> bool:
        """Consume what can be consumed; False when more bytes are needed."""
        if self.framing == "chunked":
            return self._trailer() if self._last_chunk_seen else self._chunk()
        room = len(self._pending)
        if isinstance(self.framing, int):
            room = min(room, self.framing - len(self.data))
        self.data += self._pending[:room]
        del self._pending[:room]
        self.whole = len(self.data) == self.framing
        return False

    def _chunk(self) -> bool:
        line_end = self._pending.find(b"\r\n")
        if line_end < 0:
            if len(self._pending) > 32:
                raise WireError(f"bad chunk size line {bytes(self._pending[:40])!r}")
            return False
        line = bytes(self._pending[:line_end])
        if not SIZE.match(line):
            raise WireError(f"bad chunk size line {line!r}")
        size, start = int(line, 16), line_end + 2
        if size == 0:
            self._last_chunk_seen = True
            del self._pending[:start]
            return True
        if len(self._pending) < start + size + 2:
            return False
        if self._pending[start + size : start + size + 2] != b"\r\n":
            raise WireError("chunk data does not end with CR LF")
        self.chunks.append(bytes(self._pending[start : start + size]))
        self.data += self.chunks[-1]
        del self._pending[: start + size + 2]
        return True

    def _trailer(self) -> bool:
        if self._pending.startswith(b"\r\n"):
            del self._pending[:2]
            self.whole = True
            return False
        taken = take_head(b"-\r\n" + bytes(self._pending))
        if taken:
            raise WireError(f"trailer fields {taken[0].headers} (trailers are to be dropped)")
        return False


def chunk(data: bytes) -> bytes:
    """`data` as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def head_bytes(start: str, headers: Headers) -> bytes:
    """A head, encoded as it is: nothing is checked, so bad heads can be written too."""
    lines = [start, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")
