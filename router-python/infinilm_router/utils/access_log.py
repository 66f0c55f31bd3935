"""One line per proxied request, written in batches: a write for each would cost too much."""

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, BinaryIO, Final, Literal

from infinilm_router.utils.errors import RouterError

if TYPE_CHECKING:
    from infinilm_router.proxy.forward import Exchange

FLUSH_AFTER: Final = 0.2  # seconds
FLUSH_AT: Final = 512  # lines
MAX_VALUE: Final = 256  # characters of a value that a client chose

Level = Literal["all", "errors", "off"]


class AccessLog:
    """Collects lines of `key=value` pairs; -1 stands for a time that does not exist."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, level: Level, stream: BinaryIO | None = None
    ) -> None:
        self._loop = loop
        self.level = level
        self._stream = stream or sys.stdout.buffer
        self._lines: list[bytes] = []
        self._second = 0
        self._stamp = b""
        self._timer: asyncio.TimerHandle | None = None

    def exchange(self, exchange: "Exchange", code: str | None, peer: bytes, now: float) -> None:
        """The end of a proxied request; `code` names the error, None = it went well."""
        if self.level == "off" or (code is None and self.level == "errors"):
            return
        first = exchange.first_byte_at
        started = exchange.started
        request = exchange.request
        choice = exchange.choice
        relay = exchange.relay
        self._write(
            b"request id=%b client=%b method=%b path=%b model=%b stream=%d status=%d engine=%b"
            b" attempts=%d first_byte_ms=%d ms=%d bytes=%d %b\n"
            % (
                exchange.request_id,
                peer,
                exchange.head.method,
                exchange.head.path[:MAX_VALUE],
                _quoted(request.model),
                request.stream,
                relay.status,
                choice.service.name_field if choice else b"-",
                exchange.attempts,
                1000 * (first - started) if first else -1,
                1000 * (now - started),
                relay.bytes_sent,
                f"error={code} phase={exchange.phase}".encode() if code else b"ok",
            )
        )

    def refused(self, error: RouterError, peer: bytes) -> None:
        """A request that was refused before it was whole."""
        if self.level != "off":
            self._write(
                b"refused client=%b status=%d error=%b phase=request reason=%b\n"
                % (
                    peer,
                    error.http_status,
                    error.code.text.encode(),
                    json.dumps(error.message).encode(),
                )
            )

    def flush(self) -> None:
        """Write what is collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        self._stream.write(b"".join(lines))
        self._stream.flush()

    def _write(self, line: bytes) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(second)).encode()
        self._lines.append(self._stamp + line)
        if len(self._lines) >= FLUSH_AT:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self.flush)


def _quoted(value: str | None) -> bytes:
    """A value that a client chose, such that it can forge neither lines nor fields."""
    if value is None:
        return b"-"
    if len(value) <= MAX_VALUE and value.isascii() and value.isprintable() and " " not in value:
        return value.encode()
    return json.dumps(value[:MAX_VALUE]).encode()
