"""A raw socket client: sends exact bytes, reads answers strictly, knows how a connection ended."""

import socket
import struct
import time
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import urlsplit

from rig.wire import BodyReader, Head, Headers, response_framing, status_line, take_head

Ending = Literal["open", "closed", "reset"]


@dataclass(frozen=True)
class Response:
    """One answer. `whole` is False when the connection ended (or fell silent) inside it."""

    head: Head
    body: bytes
    chunks: tuple[bytes, ...]
    whole: bool
    chunked: bool
    ending: Ending

    @property
    def status(self) -> int:
        return status_line(self.head)[1]

    @property
    def headers(self) -> Headers:
        return self.head.headers

    def get(self, name: str) -> str | None:
        return self.head.get(name)


class RawClient:
    """One connection. Use as a context manager; every wait ends after `timeout` seconds.

    A slow reader has a small `receive_buffer` (bytes) and a `pause` (seconds) before every read.
    """

    def __init__(self, url: str, timeout: float = 15.0, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        self.pause = 0.0
        self.timeout = timeout
        self.ending: Ending = "open"
        self._sock = socket.socket()
        if receive_buffer:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect((parts.hostname, parts.port or 80))
        except OSError:
            self._sock.close()
            raise
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, data: bytes, *, bytewise: bool = False) -> None:
        """Send; the other side may have closed already, that is for `read` to tell."""
        pieces = [data[i : i + 1] for i in range(len(data))] if bytewise else [data]
        try:
            for piece in pieces:
                self._sock.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            return

    def half_close(self) -> None:
        """No more bytes from us; answers can still come."""
        self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave with a TCP reset."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def read(self, method: str = "GET") -> Response:
        """The next final answer; 1xx ones are skipped.

        ConnectionError when the connection ends before one begins, TimeoutError when it is silent.
        """
        while True:
            response = self.read_any(method)
            if response.status >= 200:
                return response

    def read_any(self, method: str = "GET") -> Response:
        """The next answer, 1xx ones included."""
        while (taken := take_head(bytes(self._buffer))) is None:
            if not self._fill():
                said = f"{self.ending} after {bytes(self._buffer[:200])!r}"
                raise ConnectionError(f"no answer: connection {said}")
        head, size = taken
        del self._buffer[:size]
        framing = response_framing(head, method)
        body = BodyReader(framing)
        self._take(body)
        while not body.whole and self._fill():
            self._take(body)
        if self.ending == "closed":
            body.end()
        data = bytes(body.data)
        return Response(
            head, data, tuple(body.chunks), body.whole, framing == "chunked", self.ending
        )

    def read_some(self) -> bytes:
        """Whatever has arrived (waits for at least a byte); empty at the end of the connection."""
        if not self._buffer:
            self._fill()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def read_end(self, timeout: float | None = None) -> Ending:
        """Wait for the end: "open" when it does not come; bytes before it are dropped."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while self.ending == "open" and (left := deadline - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                self._fill()
            except TimeoutError:
                break
        self._sock.settimeout(self.timeout)
        return self.ending

    def _take(self, body: BodyReader) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        self._buffer += body.feed(data)

    def _fill(self) -> bool:
        """Receive once; False when the connection has ended."""
        time.sleep(self.pause)
        try:
            data = self._sock.recv(1 << 18)
        except ConnectionError:
            self.ending = "reset"
            return False
        if not data:
            self.ending = "closed"
        self._buffer += data
        return bool(data)


def request_bytes(
    method: str, target: str, headers: Headers = (), body: bytes = b"", version: str = "HTTP/1.1"
) -> bytes:
    """A plain request; Host and Content-Length are added unless given."""
    names = {name.lower() for name, _ in headers}
    fields = list(headers)
    if "host" not in names:
        fields.insert(0, ("Host", "router.test"))
    sized = {"content-length", "transfer-encoding"} & names
    if not sized and (body or method in ("POST", "PUT", "PATCH")):
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def ask(url: str, method: str, target: str, headers: Headers = (), body: bytes = b"") -> Response:
    """One request on a connection of its own."""
    with RawClient(url) as client:
        client.send(request_bytes(method, target, headers, body))
        return client.read(method)
