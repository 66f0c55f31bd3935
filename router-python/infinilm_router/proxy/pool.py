"""Connections to engines: kept open between requests, for one request at a time."""

import asyncio
import select
from typing import Protocol, cast

from infinilm_router.proxy.heads import parse_response_head
from infinilm_router.proxy.memo import HeadMemo
from infinilm_router.utils.time import Deadline, DeadlineQueue

Address = tuple[str, int]
MAX_IDLE_PER_ENGINE = 256


class UpstreamUser(Protocol):
    """Who uses a connection at the moment: gets its bytes and learns of its end."""

    def upstream_sent(self) -> None:
        """All that was written has left for the engine."""

    def upstream_data(self, data: bytes) -> None:
        """Bytes from the engine."""

    def upstream_lost(self, error: Exception | None) -> None:
        """The connection has ended; `error` is None after an orderly end."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine."""

    def __init__(self, pool: "UpstreamPool", address: Address) -> None:
        self.address = address
        self.user: UpstreamUser | None = None
        self.sending = False  # bytes wait for the engine to take them
        self.heads = HeadMemo(parse_response_head)
        self.transport: asyncio.Transport
        self._pool = pool
        self.idle_end = Deadline(self.close)  # how long it may rest in the pool
        self._readable: select.poll

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine has accepted."""
        self.transport = cast("asyncio.Transport", transport)
        self._readable = select.poll()
        self._readable.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        self.transport.set_write_buffer_limits(0)  # `pause_writing` when the socket is full

    def pause_writing(self) -> None:
        """The engine takes the request more slowly than it is written."""
        self.sending = True

    def resume_writing(self) -> None:
        """It has taken all of it."""
        self.sending = False
        if self.user is not None:
            self.user.upstream_sent()

    def data_received(self, data: bytes) -> None:
        """Bytes from the engine."""
        if self.user is None:
            self.close()  # nobody asked for it: an answer too many, or a goodbye
        else:
            self.user.upstream_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, from either side."""
        self._pool.forget(self)
        user, self.user = self.user, None
        if user is not None:
            user.upstream_lost(exc)

    def is_alive(self) -> bool:
        """Whether an idle connection can take a request: open, and nothing has arrived on it.

        Asks the kernel, since the engine's end may not have been read yet: a request sent into a
        closing connection could not be told from one that the engine took.
        """
        return not self.transport.is_closing() and not self._readable.poll(0)

    def close(self) -> None:
        """Close at once; what was not sent yet is dropped."""
        self.user = None
        self.transport.abort()


class UpstreamPool:
    """Idle connections by engine address, last used first. Used on the event loop only."""

    def __init__(self, queue: DeadlineQueue, idle_timeout: float, connect_timeout: float) -> None:
        self._queue = queue
        self.idle_timeout = idle_timeout
        self.connect_timeout = connect_timeout
        self._idle: dict[Address, list[UpstreamConnection]] = {}
        self._closed = False

    def checkout(self, address: Address) -> UpstreamConnection | None:
        """An idle connection that is alive, None without one."""
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            connection.idle_end.clear()
            if connection.is_alive():
                return connection
            connection.close()
        return None

    def put(self, connection: UpstreamConnection) -> None:
        """Give back a connection whose last answer ended exactly where it should."""
        idle = self._idle.get(connection.address)
        if idle is None:
            idle = self._idle[connection.address] = []
        full = self._closed or len(idle) >= MAX_IDLE_PER_ENGINE
        # An engine that answers early may never read the rest of a request.
        if full or connection.sending or connection.transport.is_closing():
            connection.close()
            return
        self._queue.set(connection.idle_end, self.idle_timeout)
        idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """It has ended by itself."""
        idle = self._idle.get(connection.address, [])
        if connection in idle:
            idle.remove(connection)
            connection.idle_end.clear()

    async def connect(self, address: Address) -> UpstreamConnection:
        """Open a new connection.

        Raises:
            OSError: refused, unreachable, name unknown.
            TimeoutError: no answer within the connect timeout.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self.connect_timeout):
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(self, address), *address
            )
        return connection

    def drop(self, address: Address) -> None:
        """Close the idle connections to an engine that is gone or down."""
        for connection in self._idle.pop(address, []):
            connection.idle_end.clear()
            connection.close()

    def close(self) -> None:
        """Close all idle connections; what is given back later is closed too."""
        self._closed = True
        for address in list(self._idle):
            self.drop(address)
