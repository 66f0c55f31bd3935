"""A small HTTP server on asyncio streams: keeps raw bytes, can break an answer in any way."""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rig.wire import (
    BodyReader,
    Head,
    WireError,
    head_bytes,
    request_framing,
    request_line,
    take_head,
)

RST_ON_CLOSE = struct.pack("ii", 1, 0)


def end_with_reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a TCP reset; what was not delivered is lost."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
    writer.transport.abort()


async def all_delivered(writer: asyncio.StreamWriter, limit: float = 5.0) -> None:
    """Return when the other side's kernel has everything that was written (or after `limit`)."""
    sock, deadline = writer.get_extra_info("socket"), time.monotonic() + limit
    while time.monotonic() < deadline and not writer.is_closing():
        unacknowledged = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
        if not unacknowledged and not writer.transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.001)


class ClientGoneError(ConnectionError):
    """The other side closed its connection while we were still answering."""


@dataclass
class Request:
    """One request as it came in; `raw` is every byte of it, head and body."""

    head: Head
    raw: bytes
    body: bytes
    chunks: list[bytes]
    connection: int
    arrived: float = field(default_factory=time.monotonic)

    @cached_property
    def method(self) -> str:
        return request_line(self.head)[0]

    @cached_property
    def target(self) -> str:
        return request_line(self.head)[1]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Connection:
    """One accepted connection: bytes in through a pump, bytes out as they are given."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.number = number
        self.busy = False
        self.writer = writer
        self.gone = asyncio.Event()
        self._reader = reader
        self._buffer = bytearray()
        self._grown = asyncio.Event()
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(1 << 18):
                self._buffer += data
                self._grown.set()
        self.gone.set()
        self._grown.set()

    async def _more(self, limit: float | None = None) -> bytes:
        """New bytes; empty at the end of the connection or after `limit` silent seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while not self._buffer and not self.gone.is_set():
                    self._grown.clear()
                    await self._grown.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def next_request(self, idle: float | None) -> Request | None:
        """The next request, or None when the connection ended (or idled) between two requests."""
        raw = bytearray()
        while (taken := take_head(bytes(raw))) is None:
            data = await self._more(idle if not raw else None)
            if not data:
                if raw:
                    raise WireError(f"connection ended inside a head: {bytes(raw[:200])!r}")
                return None
            raw += data
        self.busy = True
        head, size = taken
        if (head.get("expect") or "").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._body(head, raw, size)
        return Request(head, bytes(raw), bytes(body.data), body.chunks, self.number)

    async def _body(self, head: Head, raw: bytearray, size: int) -> BodyReader:
        """Read the body; `raw` grows to the whole request, bytes behind it stay buffered."""
        request_line(head)
        body = BodyReader(request_framing(head))
        rest = body.feed(bytes(raw[size:]))
        while not body.whole:
            data = await self._more()
            if not data:
                raise ClientGoneError("connection ended inside a request body")
            raw += data
            rest = body.feed(data)
        if rest:
            del raw[-len(rest) :]
            self._buffer[:0] = rest
        return body

    async def sleep(self, seconds: float) -> None:
        """Wait; ClientGoneError as soon as the other side leaves."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        if self.gone.is_set():
            raise ClientGoneError("the client left")

    async def until(self, event: Coroutine[Any, Any, object]) -> None:
        """Wait for an event; ClientGoneError as soon as the other side leaves."""
        waits = [asyncio.ensure_future(event), asyncio.ensure_future(self.gone.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.gone.is_set():
            raise ClientGoneError("the client left")

    async def send(self, data: bytes) -> None:
        """Write and wait for room; ClientGoneError when nobody is there any more."""
        if self.gone.is_set():
            raise ClientGoneError("the client left")
        self.writer.write(data)
        try:
            await self.writer.drain()
        except ConnectionError as error:
            raise ClientGoneError(str(error)) from error

    async def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        """A plain sized answer."""
        fields = (("Content-Type", kind), ("Content-Length", str(len(body))))
        await self.send(head_bytes(f"HTTP/1.1 {status} Status", fields) + body)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        end_with_reset(self.writer)

    async def close(self) -> None:
        """End the connection in order (FIN after everything written)."""
        self.writer.close()
        self._pump.cancel()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await self._pump


Handler = Callable[[Connection, Request], Awaitable[bool]]
"""Answers one request; True keeps the connection open for the next."""


class Server:
    """Listens on one port; every request goes to `handle`, every unreadable one to `errors`."""

    def __init__(self, handle: Handler) -> None:
        self.errors: list[str] = []
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.idle_close: float | None = None
        self._handle = handle
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None

    @property
    def listening(self) -> bool:
        return self._server is not None

    @property
    def open(self) -> int:
        """Connections that are not closed to the end."""
        return len(self._tasks)

    async def listen(self, port: int = 0, host: str = "127.0.0.1") -> int:
        """Start to accept; the port that was taken."""
        self._server = await asyncio.start_server(
            self._accept, host, port, limit=1 << 20, backlog=1024
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop_listening(self) -> None:
        """New connections are refused from now on; open ones stay."""
        if self._server:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        """Stop listening and end every connection."""
        await self.stop_listening()
        writers = dict(self._tasks)
        for task in writers:
            task.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        for writer in writers.values():
            writer.transport.abort()  # what nobody reads would keep it open for ever

    def close_idle(self) -> None:
        """Close the connections on which no request is being answered."""
        for connection in self.connections:
            if not connection.busy:
                connection.writer.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # start_server's own task is not ours to await; one we hold can be ended in close().
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task).close()  # a task that was ended before it began has not done so

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = Connection(reader, writer, self.accepted)
        self.connections.add(connection)
        try:
            while request := await connection.next_request(self.idle_close):
                if not await self._handle(connection, request):
                    break
                connection.busy = False
        except WireError as error:
            self.errors.append(str(error))
            with contextlib.suppress(ClientGoneError):
                await connection.answer(400, str(error).encode(), "text/plain")
        except ClientGoneError:
            pass
        finally:
            self.connections.discard(connection)
            await connection.close()
