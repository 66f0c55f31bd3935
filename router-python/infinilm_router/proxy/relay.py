"""The answer's way to the client: head rewritten, body streamed, its end told truthfully."""

import re
from typing import Final, Protocol

from infinilm_router.proxy.heads import RequestHead, ResponseHead
from infinilm_router.utils.errors import RouterError

TAIL: Final = 4096  # bytes at the end of a stream that tell whether it is complete
JOIN_UP_TO: Final = 16 * 1024  # bytes that are cheaper to copy than to write apart
PING: Final = b":\n\n"  # a server-sent comment: ignored by every client

_CLOSE, _SIZED, _CHUNKED, _EMPTY = range(4)
_FINISHED = re.compile(rb'\[DONE\]|"finish_reason"[ \t\r\n]*:[ \t\r\n]*"')
_FINISHING_PATHS = (b"/chat/completions", b"/completions")


class Downstream(Protocol):
    """The client's side of the connection, as the relay needs it."""

    def write(self, *parts: bytes) -> None:
        """Send these bytes."""

    def end_after_writes(self) -> None:
        """Close once everything is sent."""

    def reset(self) -> None:
        """Close at once, visibly unfinished."""


class Relay:
    """One answer on its way to one client.

    `own` are the router's own fields as they stand on the wire; `keep_alive` says whether the
    client's connection shall live on after the answer.
    """

    _mode = _EMPTY
    bytes_sent = 0
    event_stream = False
    started = False
    status = 0

    def __init__(self, client: Downstream, head: RequestHead, *, keep_alive: bool) -> None:
        self._client = client
        self._head = head
        self._keep_alive = keep_alive
        self._tail = bytearray()

    def start(self, response: ResponseHead, length: int | None, own: bytes, first: bytes) -> None:
        """Send the head, with the first bytes of the body; `length` is the announced one."""
        framing = self._framing(response, length)
        if response.event_stream:
            self.event_stream = True
            if not response.has_buffering:
                own += b"X-Accel-Buffering: no\r\n"
            if not response.has_caching:
                own += b"Cache-Control: no-cache\r\n"
        head = b"%b%b%b%b" % (response.passed, framing, own, self._connection())
        self._begin(response.status, head, first)

    def send_whole(self, response: ResponseHead, own: bytes, body: bytes) -> None:
        """Send an answer that is complete; its length was announced."""
        self.started = True
        self.status = response.status
        self.bytes_sent = len(body)
        self._mode = _SIZED
        head = b"%bContent-Length: %d\r\n%b%b" % (
            response.passed,
            len(body),
            own,
            self._connection(),
        )
        self._client.write(head, body)

    def start_early(self, own: bytes) -> None:
        """Commit to an event stream before the engine's head came, so that waiting is visible."""
        self.event_stream = True
        framing = b"" if self._head.http_1_0 else b"Transfer-Encoding: chunked\r\n"
        self._mode = _CLOSE if self._head.http_1_0 else _CHUNKED
        head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
        )
        self._begin(200, head + framing + own + self._connection(), PING)

    def _begin(self, status: int, head: bytes, first: bytes) -> None:
        self.started = True
        self.status = status
        if first and self._mode != _EMPTY:
            self._note(first)
            self._client.write(head, *self._framed(first))
        else:
            self._client.write(head)

    def _framing(self, response: ResponseHead, length: int | None) -> bytes:
        if self._head.method == b"HEAD" or response.status in (204, 304):
            if length is None or self._head.method != b"HEAD":
                return b""
            return b"Content-Length: %d\r\n" % length
        if length is not None:
            self._mode = _SIZED
            return b"Content-Length: %d\r\n" % length
        if self._head.http_1_0:
            self._mode = _CLOSE
            return b""
        self._mode = _CHUNKED
        return b"Transfer-Encoding: chunked\r\n"

    def _connection(self) -> bytes:
        if self._mode == _CLOSE or not self._keep_alive:
            self._keep_alive = False
            return b"Connection: close\r\n\r\n"
        return b"Connection: keep-alive\r\n\r\n" if self._head.http_1_0 else b"\r\n"

    def feed(self, payload: bytes) -> None:
        """Send more of the body: one write."""
        if payload:
            self._note(payload)
            self._client.write(*self._framed(payload))

    def _framed(self, payload: bytes) -> tuple[bytes, ...]:
        if self._mode != _CHUNKED:
            return (payload,)
        if len(payload) <= JOIN_UP_TO:
            return (b"%x\r\n%b\r\n" % (len(payload), payload),)
        return (b"%x\r\n" % len(payload), payload, b"\r\n")

    def _note(self, payload: bytes) -> None:
        self.bytes_sent += len(payload)
        if self.event_stream:
            tail = self._tail
            tail += payload if len(payload) <= TAIL else payload[-TAIL:]
            if len(tail) > 4 * TAIL:
                del tail[:-TAIL]

    def between_events(self) -> bool:
        """Whether a comment may be sent now without cutting an event in two."""
        tail = self._tail
        return not tail or tail.endswith((b"\n\n", b"\r\n\r\n"))

    def ping(self) -> None:
        """Send a comment: something is still coming."""
        self.feed(PING)

    def looks_complete(self) -> bool:
        """Whether the stream showed its end: `[DONE]` or a finish_reason in its last 4 KiB.

        Only chat and completions streams promise one of them.
        """
        if not self.event_stream or self.status != 200 or self._mode == _EMPTY:
            return True
        if not self._head.path.endswith(_FINISHING_PATHS):
            return True
        return _FINISHED.search(bytes(self._tail[-TAIL:])) is not None

    def finish(self) -> bool:
        """The body is complete. Returns whether the client's connection lives on."""
        if self._mode == _CHUNKED:
            self._client.write(b"0\r\n\r\n")
        if not self._keep_alive:
            self._client.end_after_writes()
        return self._keep_alive

    def break_off(self, error: RouterError, request_id: str) -> None:
        """The answer can't be completed: make the client see it."""
        if not self.event_stream:
            if self._mode == _CLOSE:
                self._client.reset()  # the end of the connection would pass for the end of the body
            else:
                self._client.end_after_writes()
            return
        event = error.event(request_id)
        if not self.between_events():
            event = b"\n\n" + event
        if self._mode in (_SIZED, _EMPTY):  # there is no room for an event
            self._client.end_after_writes()
            return
        self._client.write(*self._framed(event))
        self._client.end_after_writes()


def has_content(payload: bytes) -> bool:
    """Whether there is more in it than comments: those an engine may send while it still reads."""
    lines = payload.split(b"\n")
    return any(line not in (b"", b"\r") and not line.startswith(b":") for line in lines)
