"""A TCP relay with faults: each direction by itself, changeable while connections are open.

    relay = fakes.relay(engine.port)                        # relay.port stands for the engine's
    fakes.call(relay.change(down=Line(delay=0.1)))          # answers are late, requests are not
    fakes.call(relay.change(up=Line(fault=Fault("reset", at=1000))))
    fakes.call(relay.change())                              # healed: both lines are clear

Where the target refuses, a client is connected and at once reset: what a relay cannot show (a
refused or unanswered SYN), network namespaces can (namespaces.py).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from rig.server import all_delivered, end_with_reset

How = Literal["cut", "half-close", "reset"]
PIECE = 1 << 16
QUEUED = 64  # pieces on their way in one direction: so much can be late at a time
PACES = 50  # pieces a second that a limited rate is made of


@dataclass(frozen=True)
class Fault:
    """Once `at` bytes have passed: the end of both connections, in order (cut) or not (reset).

    half-close: the end of this direction only, of which the sending side learns nothing.
    """

    how: How
    at: int = 0


@dataclass(frozen=True)
class Line:
    """What one direction does to bytes, and to the end of a connection, which travels like them."""

    delay: float = 0.0
    rate: float | None = None  # bytes a second
    silent: bool = False  # a black hole: nothing arrives until it is over; then everything does
    fault: Fault | None = None


CLEAR = Line()


@dataclass
class Pipe:
    """One direction of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    line: Line
    end_both: Callable[[How], None]
    passed: int = 0
    _half_closed: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _queue: asyncio.Queue[tuple[float, bytes]] = field(
        default_factory=lambda: asyncio.Queue(QUEUED)
    )

    def __post_init__(self) -> None:
        self.writer.transport.set_write_buffer_limits(high=0)  # what is written counts as passed

    def change(self, line: Line) -> None:
        """From now on `line`; bytes on their way keep the delay that they set out with."""
        self.line = line
        self._changed.set()
        self._changed.clear()
        self._break_where_told()

    async def take(self) -> None:
        """Read until the end, which is an empty piece."""
        data = b"-"
        while data:
            data = await self.reader.read(PIECE)
            await self._queue.put((asyncio.get_running_loop().time() + self.line.delay, data))

    async def give(self) -> None:
        """Pass on what was taken, each piece when it is due."""
        data = b"-"
        while data:
            due, data = await self._queue.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            await self._pass_on(data)
        await self._audible()
        self._half_close()

    async def _pass_on(self, data: bytes) -> None:
        while data and not self._half_closed:
            await self._audible()
            piece = data[: self._room()]
            data = data[len(piece) :]
            self.writer.write(piece)
            await self.writer.drain()
            if self.line.rate:
                await asyncio.sleep(len(piece) / self.line.rate)
            self.passed += len(piece)
            if self._fault_is_due():
                await all_delivered(self.writer)
            self._break_where_told()

    async def _audible(self) -> None:
        while self.line.silent:
            await self._changed.wait()

    def _room(self) -> int:
        """How many bytes may go in one piece."""
        room = max(1, int(self.line.rate / PACES)) if self.line.rate else PIECE
        left = self.line.fault.at - self.passed if self.line.fault else PIECE
        return min(room, left) if left > 0 else room

    def _fault_is_due(self) -> bool:
        return bool(self.line.fault and self.passed >= self.line.fault.at)

    def _break_where_told(self) -> None:
        if self.line.fault and self._fault_is_due():
            if self.line.fault.how == "half-close":
                self._half_close()
            else:
                self.end_both(self.line.fault.how)

    def _half_close(self) -> None:
        if not self._half_closed and not self.writer.is_closing():
            self._half_closed = True
            self.writer.write_eof()


class Pair:
    """A client's connection and ours to the target."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        target: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        lines: tuple[Line, Line],
    ) -> None:
        self._writers = (client[1], target[1])
        self.up = Pipe(client[0], target[1], lines[0], self.end)
        self.down = Pipe(target[0], client[1], lines[1], self.end)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Relay until both directions have ended, one side breaks, or `end` is called."""
        parts = [self.up.take, self.up.give, self.down.take, self.down.give]
        tasks = [asyncio.create_task(part()) for part in parts]
        everything = asyncio.gather(*tasks)
        ended = asyncio.create_task(self._ended.wait())
        either: list[asyncio.Future[Any]] = [everything, ended]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if everything.done() and everything.exception():
                self.end("reset")  # one side was reset: so is the other
        finally:
            for task in (*tasks, ended):
                task.cancel()
            await asyncio.gather(everything, *tasks, ended, return_exceptions=True)
            self.end("cut")

    def end(self, how: How) -> None:
        """End both connections; what is on its way is lost."""
        for writer in self._writers:
            if how == "reset" and not writer.is_closing():
                end_with_reset(writer)
            writer.close()
        self._ended.set()


class Relay:
    """Listens on `port` and passes everything on to the target."""

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self._target = (target_host, target_port)
        self._lines = (CLEAR, CLEAR)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.accepted = 0
        self.pairs: set[Pair] = set()

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen; with port 0 on one that is free."""
        self._server = await asyncio.start_server(self._accept, host, port, backlog=1024)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def change(self, up: Line = CLEAR, down: Line = CLEAR) -> None:
        """Set both directions of all connections, those that are open and those to come."""
        self._lines = (up, down)
        for pair in list(self.pairs):
            pair.up.change(up)
            pair.down.change(down)

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._server:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = await asyncio.open_connection(*self._target)
        except OSError:
            end_with_reset(writer)
            return
        pair = Pair((reader, writer), target, self._lines)
        self.pairs.add(pair)
        try:
            pair.up.change(self._lines[0])
            pair.down.change(self._lines[1])
            await pair.run()
        finally:
            self.pairs.discard(pair)
