"""Where HTTP/1.1 bodies end, by the rules of docs/HTTP.md. Nothing here does input or output."""

import re
from typing import Final, Protocol

from infinilm_router.proxy.fields import refused
from infinilm_router.proxy.heads import RequestHead, ResponseHead
from infinilm_router.utils.errors import Code, RouterError

MAX_CHUNK_LINE: Final = 256
MAX_TRAILERS: Final = 16 * 1024
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*")


class BodyReader(Protocol):
    """Finds where a body ends. `fault` says how the bytes break the rules, once they do."""

    done: bool
    fault: str | None

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes from the wire; returns (payload, what follows the body)."""


class SizedBody:
    """A body of a known number of bytes."""

    __slots__ = ("done", "fault", "left")

    def __init__(self, length: int) -> None:
        self.fault: str | None = None
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See BodyReader."""
        left = self.left
        size = len(data)
        if size <= left:
            self.left = left - size
            self.done = size == left
            return data, b""
        self.left = 0
        self.done = True
        return data[:left], data[left:]


class ChunkedBody:
    """The chunked coding (RFC 9112 7.1). Extensions and trailers are dropped."""

    __slots__ = ("_held", "_left", "_state", "_trailers", "done", "fault")

    SIZE, DATA, DATA_END, TRAILERS = range(4)

    def __init__(self) -> None:
        self.done = False
        self.fault: str | None = None
        self._state = self.SIZE
        self._left = 0  # bytes of the current chunk still to come
        self._held = b""  # an incomplete line
        self._trailers = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See BodyReader. Chunks that arrive together come back as one payload."""
        # Most reads of a stream are one whole chunk.
        if self._state == self.SIZE and not self._held and (size := _CHUNK.match(data)):
            start = size.end()
            end = start + int(size[1], 16)
            if end > start and end + 2 == len(data) and data.endswith(b"\r\n"):
                return data[start:end], b""
        if self._held:
            data, self._held = self._held + data, b""
        parts: list[bytes] = []
        at = 0
        while not self.done and not self.fault and at < len(data):
            if self._state == self.DATA:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if not self._left:
                    self._state = self.DATA_END
                continue
            end = self._line_end(data, at)
            if end < 0:
                self._held = data[at:]
                break
            self._line(data[at:end])
            at = end + 2
        payload = parts[0] if len(parts) == 1 else b"".join(parts)
        return payload, data[at:] if self.done else b""

    def _line_end(self, data: bytes, at: int) -> int:
        """Where the line at `at` ends, -1 when it is not complete."""
        if self._state == self.DATA_END:
            if data.startswith(b"\r\n", at):
                return at
            if data[at:] != b"\r":
                self.fault = "a chunk is longer than its size says"
            return -1
        limit = MAX_TRAILERS - self._trailers if self._state == self.TRAILERS else MAX_CHUNK_LINE
        end = data.find(b"\n", at, at + limit + 2)
        stop = end if end >= 0 else len(data)
        ends_with_cr = stop > at and data[stop - 1] == 13
        if stop - at > limit + ends_with_cr:
            self.fault = "a chunk size line or trailer is too long"
        elif end >= 0 and not ends_with_cr:
            self.fault = "a line of the chunked coding does not end with CRLF"
        return end - 1 if end >= 0 and not self.fault else -1

    def _line(self, line: bytes) -> None:
        if self._state == self.DATA_END:
            self._state = self.SIZE
        elif self._state == self.TRAILERS:
            self._trailers += len(line) + 2
            self.done = not line
            if line and not _TRAILER.fullmatch(line):
                self.fault = "malformed trailer field"
        else:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                self.fault = "malformed chunk size"
                return
            self._left = int(size[1], 16)
            self._state = self.DATA if self._left else self.TRAILERS


class UntilClose:
    """A body that ends with its connection (RFC 9112 6.3, rule 8)."""

    __slots__ = ("done", "fault")

    def __init__(self) -> None:
        self.fault: str | None = None
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See BodyReader."""
        return data, b""


def request_body(head: RequestHead, length: int | None, max_bytes: int) -> BodyReader:
    """The reader for a request's body of the announced `length`.

    Raises:
        RouterError: `body_too_large` by the announced length, or the method allows no body.
    """
    if (length or head.chunked) and head.bodyless:
        raise refused(f"{head.method.decode()} must not have a body")
    if head.chunked:
        return ChunkedBody()
    if length is not None and length > max_bytes:
        raise too_large(max_bytes)
    return SizedBody(length or 0)


def too_large(max_bytes: int) -> RouterError:
    """The body limit was passed."""
    return RouterError(
        Code.BODY_TOO_LARGE, f"the request body is larger than {max_bytes} bytes", close=True
    )


def response_body(head: ResponseHead, length: int | None, method: bytes) -> BodyReader:
    """The reader for a response's body of the announced `length` (RFC 9112 6.3)."""
    if method == b"HEAD" or head.status in (204, 304):
        return SizedBody(0)
    if head.chunked:
        return ChunkedBody()
    if length is not None:
        return SizedBody(length)
    return UntilClose()
