"""One line per proxied request, written in batches: a write for each would cost too much."""

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Final, Literal, TextIO

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
        self, loop: asyncio.AbstractEventLoop, level: Level, stream: TextIO = sys.stdout
    ) -> None:
        self._loop = loop
        self.level = level
        self._stream = stream
        self._lines: list[str] = []
        self._second = 0
        self._stamp = ""
        self._timer: asyncio.TimerHandle | None = None

    def exchange(self, exchange: "Exchange", code: str | None, peer: bytes, now: float) -> None:
        """The end of a proxied request; `code` names the error, None = it went well."""
        if self.level == "off" or (code is None and self.level == "errors"):
            return
        first = exchange.first_byte_at
        started = exchange.started
        request = exchange.request
        choice = exchange.choice
        self._write(
            f"request id={exchange.request_id.decode()} client={peer.decode()}"
            f" method={exchange.head.method.decode()} path={exchange.head.path.decode()}"
            f" model={_quoted(request.model)} stream={request.stream:d}"
            f" status={exchange.relay.status} engine={choice.service.name if choice else '-'}"
            f" attempts={exchange.attempts}"
            f" first_byte_ms={1000 * (first - started) if first else -1:.0f}"
            f" ms={1000 * (now - started):.0f} bytes={exchange.relay.bytes_sent}"
            f" {f'error={code} phase={exchange.phase}' if code else 'ok'}\n"
        )

    def refused(self, error: RouterError, peer: bytes) -> None:
        """A request that was refused before it was whole."""
        if self.level != "off":
            self._write(
                f"refused client={peer.decode()} status={error.http_status}"
                f" error={error.code.text} phase=request reason={json.dumps(error.message)}\n"
            )

    def flush(self) -> None:
        """Write what is collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        self._stream.write("".join(lines))
        self._stream.flush()

    def _write(self, line: str) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(second))
        self._lines.append(self._stamp + line)
        if len(self._lines) >= FLUSH_AT:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self.flush)


def _quoted(value: str | None) -> str:
    """A value that a client chose, such that it can forge neither lines nor fields."""
    if value is None:
        return "-"
    if len(value) <= MAX_VALUE and value.isascii() and value.isprintable() and " " not in value:
        return value
    return json.dumps(value[:MAX_VALUE])
