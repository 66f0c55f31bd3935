"""Sends what a script says, piece by piece, and breaks off as it says."""

import base64
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rig.engine_script import Delay, Piece, Script
from rig.server import ClientGoneError, Connection, Request, all_delivered
from rig.wire import Headers, chunk, head_bytes


@dataclass
class Record:
    """One request that reached the engine and what became of it (times: `time.monotonic()`)."""

    request: Request
    generation: bool = False
    outcome: str = "running"
    ended: float | None = None

    def end(self) -> None:
        self.outcome = "answered" if self.outcome == "running" else self.outcome
        self.ended = time.monotonic()

    def as_json(self) -> dict[str, object]:
        request = self.request
        return {
            "method": request.method,
            "target": request.target,
            "headers": [list(pair) for pair in request.head.headers],
            "raw": base64.b64encode(request.raw).decode(),
            "body": base64.b64encode(request.body).decode(),
            "connection": request.connection,
            "generation": self.generation,
            "arrived": request.arrived,
            "outcome": self.outcome,
            "ended": self.ended,
        }


@dataclass
class Answer:
    """Sends one scripted answer."""

    connection: Connection
    script: Script
    record: Record
    wait: Callable[[Connection, Delay], Awaitable[None]]

    async def send(self, *, head_only: bool) -> bool:
        """Head, pieces, end; True when the connection stays open."""
        script, pending = self.script, b"" if self.script.raw else self._head()
        if head_only:
            await self.connection.send(pending)
            return not script.close
        for index, piece in enumerate(script.pieces):
            if script.die and script.die.at == index:
                await self.connection.send(pending)
                return await self.break_off(piece.data)
            if piece.delay and pending:
                await self.connection.send(pending)
                pending = b""
            await self._piece(pending, piece)
            pending = b""
        await self.connection.send(pending + self._end())
        return not script.close and script.framing != "close"

    async def _piece(self, before: bytes, piece: Piece) -> None:
        if piece.delay:
            await self.wait(self.connection, piece.delay)
        framed = self.script.framing == "chunked" and not self.script.raw
        await self.connection.send(before + (chunk(piece.data) if framed else piece.data))

    def _head(self) -> bytes:
        script = self.script
        extra: Headers = ()
        if script.framing == "chunked":
            extra = (("Transfer-Encoding", "chunked"),)
        elif script.framing == "length":
            extra = (("Content-Length", str(sum(len(piece.data) for piece in script.pieces))),)
        if script.close or script.framing == "close":
            extra = (*extra, ("Connection", "close"))
        return head_bytes(f"HTTP/1.1 {script.status} Status", (*script.headers, *extra))

    def _end(self) -> bytes:
        if self.script.framing != "chunked" or self.script.raw:
            return b""
        return b"0\r\n" + head_bytes("-", self.script.trailers).removeprefix(b"-\r\n")

    async def break_off(self, unsent: bytes) -> bool:
        """What the script's `die` says, instead of the piece `unsent`."""
        assert self.script.die
        how = self.script.die.how
        self.record.outcome = how
        if how == "stall":
            await self.connection.gone.wait()
            raise ClientGoneError("left while we were stalled")
        if how == "partial":
            await self.connection.send(chunk(unsent[: len(unsent) // 2]))
        if how in ("clean", "partial"):
            await self.connection.send(b"0\r\n\r\n")
        if how in ("kill", "rst"):
            # What was written arrives first: the fault is meant to come after `at` whole pieces.
            await all_delivered(self.connection.writer)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "rst":
            self.connection.reset()
        return how in ("clean", "partial")
