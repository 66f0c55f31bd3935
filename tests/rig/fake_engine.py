"""A scripted OpenAI engine: in a test's own process (farm.py) or as a program of its own.

    PYTHONPATH=tests python -m rig.fake_engine --port P --models m1,m2 [--name N] [--host H]
        [--no-sidecar]

A request says how it wants to be answered in the header `x-fake-script` or the body field
`x_fake_script` (JSON, see engine_script.py); otherwise the next of the settings' `scripts` and then
`script` decide. On port + 1 the engine answers `/health`, as its babysitter would.
`GET /__control` (both ports) shows counters; `POST /__control` merges settings; `{"reset": true}`
forgets what was counted.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass, field, fields
from typing import Any

from rig.engine_script import Json, Piece, Script, json_body, parse_script
from rig.server import ClientGoneError, Connection, Request, Server, all_delivered
from rig.wire import Headers, chunk, head_bytes

PROBES = ("/health", "/v1/models", "/models")


@dataclass
class Settings:
    """What can be changed.

    `health` is the status of port + 1 (the `healths` come first, one for each probe), `own_health`
    that of the own port.
    """

    host: str = "127.0.0.1"
    models: list[Any] = field(default_factory=lambda: ["m"])
    models_path: str = "/v1/models"
    health: int = 200
    healths: list[int] = field(default_factory=list)
    health_delay: float = 0.0
    own_health: int = 200
    script: Json = field(default_factory=dict)
    scripts: list[Json] = field(default_factory=list)
    listening: bool = True
    sidecar: bool = True
    idle_close: float | None = None


@dataclass
class Record:
    """One request that reached the engine and what became of it (times: `time.monotonic()`)."""

    request: Request
    generation: bool = False
    outcome: str = "running"
    ended: float | None = None

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


class FakeEngine:
    """Engine and babysitter port of one fake; counters are plain attributes."""

    def __init__(self, name: str = "fake", settings: Settings | None = None) -> None:
        self.name = name
        self.settings = settings or Settings()
        self.server = Server(self._handle)
        self.sidecar = Server(self._handle_sidecar)
        self.port = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.records: list[Record] = []
        self.probes: list[tuple[float, str]] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.server.errors.clear()

    async def start(self, port: int) -> None:
        """Listen on `port` (and port + 1 for the babysitter's part), as the settings say."""
        self.port = port
        await self.apply({})

    async def apply(self, change: Json) -> None:
        """Merge settings and open or close listeners accordingly."""
        known = {item.name for item in fields(Settings)}
        for key, value in change.items():
            if key == "reset":
                self.reset()
            elif key not in known:
                raise ValueError(f"unknown setting {key!r}; known: {sorted(known)} and reset")
            else:
                setattr(self.settings, key, value)
        self.server.idle_close = self.settings.idle_close
        await self._switch(self.server, self.port, on=self.settings.listening)
        await self._switch(self.sidecar, self.port + 1, on=self.settings.sidecar)

    async def _switch(self, server: Server, port: int, *, on: bool) -> None:
        if on and not server.listening:
            await server.listen(port, self.settings.host)
        elif not on:
            await server.close()

    async def close(self) -> None:
        await self.server.close()
        await self.sidecar.close()

    def state(self) -> dict[str, object]:
        """Counters as the control path shows them."""
        return {
            "name": self.name,
            "hits": len(self.records),
            "generations": sum(record.generation for record in self.records),
            "cancelled": [r.ended for r in self.records if r.outcome == "cancelled"],
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "connections": len(self.server.connections),
            "accepted": self.server.accepted,
            "probes": self.probes,
            "wire_errors": self.server.errors,
            "records": [record.as_json() for record in self.records],
        }

    async def _handle_sidecar(self, connection: Connection, request: Request) -> bool:
        if request.path == "/__control":
            return await self._control(connection, request)
        self.probes.append((request.arrived, f"sidecar {request.path}"))
        status = self._next_health() if request.path == "/health" else 404
        await connection.sleep(self.settings.health_delay)
        await connection.answer(status, b'{"status":"healthy"}')
        return True

    def _next_health(self) -> int:
        healths = self.settings.healths
        return healths.pop(0) if healths else self.settings.health

    async def _control(self, connection: Connection, request: Request) -> bool:
        status, answer = 200, None
        if request.method == "POST":
            try:
                await self.apply(json.loads(request.body))
            except ValueError as error:
                status, answer = 400, {"error": str(error)}
        await connection.answer(status, json.dumps(answer or self.state()).encode())
        return True

    async def _handle(self, connection: Connection, request: Request) -> bool:
        if request.path == "/__control":
            return await self._control(connection, request)
        if request.method == "GET" and request.path in PROBES:
            return await self._probe(connection, request)
        record = Record(request)
        self.records.append(record)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            keep = await self._answer(connection, record)
            record.outcome = "answered" if record.outcome == "running" else record.outcome
        except ClientGoneError:
            record.outcome = "cancelled"
            raise
        finally:
            record.ended = time.monotonic()
            self.in_flight -= 1
        return keep

    async def _probe(self, connection: Connection, request: Request) -> bool:
        self.probes.append((request.arrived, request.path))
        if request.path == "/health":
            await connection.answer(self.settings.own_health, b'{"status":"ok"}')
        elif request.path != self.settings.models_path:
            await connection.answer(404, b'{"error":"no such path"}')
        else:
            models = [
                item if isinstance(item, dict) else _model(item) for item in self.settings.models
            ]
            await connection.answer(200, json.dumps({"object": "list", "data": models}).encode())
        return True

    def _script(self, request: Request) -> Script:
        body = json_body(request.body)
        if text := request.head.get("x-fake-script"):
            document = json.loads(text)
        elif "x_fake_script" in body:
            document = body["x_fake_script"]
        elif self.settings.scripts:
            document = self.settings.scripts.pop(0)
        else:
            document = self.settings.script
        return parse_script(document, body, request.path)

    async def _answer(self, connection: Connection, record: Record) -> bool:
        script = self._script(record.request)
        record.generation = record.request.method == "POST"
        await connection.sleep(script.delay)
        answer = Answer(connection, script, record)
        if script.die and script.die.at is None:
            return await answer.fault(b"")
        return await answer.send(head_only=record.request.method == "HEAD")


@dataclass
class Answer:
    """Sends one scripted answer."""

    connection: Connection
    script: Script
    record: Record

    async def send(self, *, head_only: bool) -> bool:
        """Head, pieces, end; True when the connection stays open."""
        script, pending = self.script, b"" if self.script.raw else self._head()
        if head_only:
            await self.connection.send(pending)
            return not script.close
        for index, piece in enumerate(script.pieces):
            if script.die and script.die.at == index:
                await self.connection.send(pending)
                return await self.fault(piece.data)
            if piece.delay and pending:
                await self.connection.send(pending)
                pending = b""
            await self._piece(pending, piece)
            pending = b""
        await self.connection.send(pending + self._end())
        return not script.close and script.framing != "close"

    async def _piece(self, before: bytes, piece: Piece) -> None:
        if piece.delay:
            await self.connection.sleep(piece.delay)
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

    async def fault(self, unsent: bytes) -> bool:
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


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 1, "owned_by": "fake"}


async def serve(engine: FakeEngine, port: int) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await engine.start(port)
    print(f"listening on http://{engine.settings.host}:{port}", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await stop.wait()
    await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--name", default="fake")
    parser.add_argument("--models", default="m")
    parser.add_argument("--no-sidecar", action="store_true")
    options = parser.parse_args()
    settings = Settings(
        host=options.host, models=options.models.split(","), sidecar=not options.no_sidecar
    )
    asyncio.run(serve(FakeEngine(options.name, settings), options.port))


if __name__ == "__main__":
    main()
