"""One line per request that was forwarded or failed, and says why (docs/METRICS.md).

They are written in batches: a write for each would cost too much.
"""

import asyncio
import contextlib
import json
import re
import sys
import time
from typing import TYPE_CHECKING, BinaryIO, Final, Literal

from infinilm_router.utils.metrics import Failure

if TYPE_CHECKING:
    from infinilm_router.proxy.ends import FailedAttempt
    from infinilm_router.proxy.forward import Exchange

FLUSH_AFTER: Final = 0.2  # seconds
FLUSH_AT: Final = 512  # lines
MAX_VALUE: Final = 256  # characters of a value that a client chose
MAX_REASON: Final = 512  # characters: it may quote such a value

_PLAIN = re.compile(rf"[!-~]{{1,{MAX_VALUE}}}")

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

    def exchange(
        self, exchange: "Exchange", failure: Failure | None, reason: str, peer: bytes, now: float
    ) -> None:
        """The end of a proxied request; `failure` None = it went well."""
        if self.level != "all" and (failure is None or self.level == "off"):
            return
        first = exchange.first_byte_at
        started = exchange.started
        head, request, relay = exchange.head, exchange.request, exchange.relay
        choice = exchange.choice
        self._write(
            b"request id=%b client=%b method=%b path=%b model=%b stream=%d status=%d engine=%b"
            b" attempts=%d first_byte_ms=%d ms=%d bytes=%d %b\n"
            % (
                exchange.request_id,
                peer,
                head.method,
                head.path[:MAX_VALUE],
                _quoted(request.model),
                request.stream,
                relay.status,
                choice.service.name_field if choice else b"-",
                exchange.attempts,
                1000 * (first - started) if first else -1,
                1000 * (now - started),
                relay.bytes_sent,
                _why(failure.phase, failure.code, reason) if failure else b"ok",
            )
        )

    def attempt(self, exchange: "Exchange", failed: "FailedAttempt", now: float) -> None:
        """An attempt that failed, where that is not yet the end of its request."""
        if self.level != "off":
            self._write(
                b"attempt id=%b engine=%b attempt=%d ms=%d %b\n"
                % (
                    exchange.request_id,
                    failed.service.name_field,
                    failed.number,
                    1000 * (now - exchange.started),
                    _why(failed.phase, failed.error.code.text, failed.error.message),
                )
            )

    def refused(
        self, request_id: bytes, peer: bytes, status: int, failure: Failure, reason: str
    ) -> None:
        """A request that was not forwarded: malformed, cut short, or a fault at an own endpoint."""
        if self.level != "off":
            self._write(
                b"refused id=%b client=%b status=%d %b\n"
                % (request_id, peer, status, _why(failure.phase, failure.code, reason))
            )

    def flush(self) -> None:
        """Write what is collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        with contextlib.suppress(OSError):  # what a full disk loses, the counters still have
            self._stream.write(b"".join(lines))
            self._stream.flush()

    def _write(self, line: bytes) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(second)).encode()
        lines = self._lines
        lines.append(self._stamp + line)
        if len(lines) >= FLUSH_AT:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self.flush)


def _why(phase: str, code: str, reason: str) -> bytes:
    return f"error={code} phase={phase} reason={json.dumps(reason[:MAX_REASON])}".encode()


def _quoted(value: str | None) -> bytes:
    """A value that a client chose, such that it can forge neither lines nor fields."""
    if value is None:
        return b"-"
    if _PLAIN.fullmatch(value):
        return value.encode()
    return json.dumps(value[:MAX_VALUE]).encode()
