"""An engine that sends exactly the bytes it is given, and notes exactly the bytes it gets."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import Literal, cast

from rig.wire import BodyReader, Head, WireError, head_bytes, request_framing, take_head

End = Literal["keep", "fin", "rst", "stall"]
PAUSE = 0.002  # seconds between two pieces, so that they mostly arrive one by one
RST_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Script:
    """The pieces of one answer, and what then becomes of the connection."""

    pieces: tuple[bytes, ...]
    end: End = "keep"


@dataclass(frozen=True)
class Received:
    """A request as it came: the lines of its head, byte for byte, and its body."""

    lines: tuple[str, ...]
    body: bytes


def plain(body: bytes = b"{}") -> bytes:
    """A whole answer that nothing is wrong with."""
    fields = (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
    return head_bytes("HTTP/1.1 200 OK", fields) + body


PLAIN = Script((plain(),))


@dataclass
class Engine:
    """Listens on `port`; answers its requests with `scripts`, one after the other."""

    scripts: list[Script] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    settle: float = 0.02
    busy: set[asyncio.Task[None]] = field(default_factory=set)
    connections: set[asyncio.Transport] = field(default_factory=set)

    async def listen(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        self.port = port
        self.server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port)

    def begin(self, scripts: tuple[Script, ...], settle: float) -> None:
        """Forget the last exchange; answers that nobody waits for are given up."""
        for task in self.busy:
            task.cancel()
        self.scripts, self.received, self.settle = list(scripts), [], settle

    async def close(self) -> None:
        """End every connection and wait until they are gone."""
        self.begin((), 0)
        self.server.close()
        for transport in self.connections:
            transport.abort()
        while self.connections or self.busy:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held = b""
        self._head: Head | None = None
        self._lines: tuple[str, ...] = ()
        self._body = BodyReader(0)
        self._ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._engine.connections.add(self._transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._engine.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        rest = self._held + data
        try:
            while rest:
                rest = self._take(rest)
        except WireError as error:
            self._engine.received.append(Received((f"unreadable: {error}",), rest))
            self._transport.abort()

    def _take(self, data: bytes) -> bytes:
        """Take one head or more of a body; what is behind it."""
        self._held = b""
        if self._head is None:
            taken = take_head(data)
            if taken is None:
                self._held = data
                return b""
            self._head, size = taken
            self._lines = tuple(data[: size - 4].decode("latin-1").split("\r\n"))
            self._body = BodyReader(request_framing(self._head))
            data = data[size:]
        data = self._body.feed(data)
        if self._body.whole:
            self._answer()
        return data

    def _answer(self) -> None:
        self._head = None
        if self._lines[0].startswith("GET /health "):
            self._transport.write(plain())
            return
        self._engine.received.append(Received(self._lines, bytes(self._body.data)))
        script = self._engine.scripts.pop(0) if self._engine.scripts else PLAIN
        if self._ending:  # too late: this connection is about to end
            return
        self._ending = script.end in ("fin", "rst")
        task = asyncio.get_running_loop().create_task(self._play(script))
        self._engine.busy.add(task)
        task.add_done_callback(self._engine.busy.discard)

    async def _play(self, script: Script) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            for index, piece in enumerate(script.pieces):
                if index:
                    await asyncio.sleep(PAUSE)
                if self._transport.is_closing():  # the router has seen enough
                    break
                if script.end == "fin" and index == len(script.pieces) - 1:
                    self._send_with_end()
                self._transport.write(piece)
            if script.end == "rst":
                await asyncio.sleep(self._engine.settle)  # what was written is read before it
                sock = self._transport.get_extra_info("socket")
                if not self._transport.is_closing():
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
                self._transport.abort()
        if script.end == "fin":
            self._transport.close()

    def _send_with_end(self) -> None:
        """From here on bytes wait for the end, so that whoever reads the last one sees both."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
