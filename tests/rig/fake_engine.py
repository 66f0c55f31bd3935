"""A scripted OpenAI engine: in a test's own process (farm.py) or as a program of its own.

    PYTHONPATH=tests python -m rig.fake_engine --port P --models m1,m2 [--name N] [--host H]
        [--no-sidecar] [--settings JSON] [--worker]

A request says how it wants to be answered in the header `x-fake-script` or the body field
`x_fake_script` (JSON, see engine_script.py); otherwise the next of the settings' `scripts` and then
`script` decide. On port + 1 the engine answers `/health`, as its babysitter would.
`GET /__control` (both ports) shows counters; `POST /__control` merges settings; `{"reset": true}`
forgets what was counted, `{"release": N}` lets N held answers go on, now or when they come to it.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field, fields
from typing import Any

from rig.engine_answer import Answer, Record
from rig.engine_faults import flood, fork_worker
from rig.engine_script import Delay, Json, Script, json_body, parse_script
from rig.server import ClientGoneError, Connection, Request, Server

PROBES = ("/health", "/v1/models", "/models")
LOADING = b'{"error":{"message":"Loading model","code":503}}'


@dataclass
class Settings:
    """What can be changed.

    `health` is the status of port + 1 (the `healths` come first, one for each probe), `health_word`
    what it calls itself there. `own_health` is the status of the own port, which answers 503 to
    everything for `ready_after` seconds. `flood` starts one of log lines (engine_faults.py).
    Without `records_kept`, every request is kept.
    """

    host: str = "127.0.0.1"
    models: list[Any] = field(default_factory=lambda: ["m"])
    models_path: str = "/v1/models"
    models_delay: float = 0.0
    health: int = 200
    healths: list[int] = field(default_factory=list)
    health_word: str = "healthy"
    health_delay: float = 0.0
    own_health: int = 200
    script: Json = field(default_factory=dict)
    scripts: list[Json] = field(default_factory=list)
    listening: bool = True
    sidecar: bool = True
    idle_close: float | None = None
    ready_after: float = 0.0
    flood: Json = field(default_factory=dict)
    records_kept: int | None = None
    seed: int = 0


class FakeEngine:
    """Engine and babysitter port of one fake; counters are plain attributes."""

    def __init__(self, name: str = "fake", settings: Settings | None = None) -> None:
        self.name = name
        self.settings = settings or Settings()
        self.server = Server(self._handle)
        self.sidecar = Server(self._handle_sidecar)
        self.port = 0
        self.in_flight = 0
        self.ready_at = 0.0
        self.floods: list[dict[str, float]] = []
        self.workers: list[int] = []
        self._random = random.Random(self.settings.seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.records: deque[Record] = deque(maxlen=self.settings.records_kept)
        self.probes: list[tuple[float, str]] = []
        self.cancelled: list[float | None] = []
        self.hits = self.generations = self.raw_bytes = 0
        self.max_in_flight = self.in_flight
        self.server.errors.clear()
        self._released = asyncio.Semaphore(0)

    async def start(self, port: int) -> None:
        """Listen on `port` (and port + 1 for the babysitter's part), as the settings say."""
        self.port = port
        at_start = ("ready_after", "flood", "seed")
        await self.apply({name: getattr(self.settings, name) for name in at_start})

    async def apply(self, change: Json) -> None:
        """Merge settings and open or close listeners accordingly."""
        for key, value in change.items():
            self._apply_one(key, value)
        if "ready_after" in change:
            self.ready_at = time.monotonic() + self.settings.ready_after
        if "seed" in change:
            self._random.seed(self.settings.seed)
        if change.get("flood"):
            self._begin(self._flood(change["flood"]))
        self.server.idle_close = self.settings.idle_close
        await self._switch(self.server, self.port, on=self.settings.listening)
        await self._switch(self.sidecar, self.port + 1, on=self.settings.sidecar)

    def _apply_one(self, key: str, value: Any) -> None:
        known = {item.name for item in fields(Settings)}
        if key == "reset":
            self.reset()
        elif key == "release":
            for _ in range(value):
                self._released.release()
        elif key not in known:
            raise ValueError(f"unknown setting {key!r}; known: {sorted(known)}, release, reset")
        else:
            setattr(self.settings, key, value)

    async def _switch(self, server: Server, port: int, *, on: bool) -> None:
        if on and not server.listening:
            await server.listen(port, self.settings.host)
        elif not on:
            await server.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flood(self, plan: Json) -> None:
        self.floods.append(await asyncio.to_thread(flood, plan))

    async def close(self) -> None:
        await self.server.close()
        await self.sidecar.close()

    def state(self) -> dict[str, object]:
        """Counters as the control path shows them."""
        return {
            "name": self.name,
            "hits": self.hits,
            "generations": self.generations,
            "raw_bytes": self.raw_bytes,
            "cancelled": self.cancelled,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "connections": len(self.server.connections),
            "accepted": self.server.accepted,
            "probes": self.probes,
            "floods": self.floods,
            "workers": self.workers,
            "wire_errors": self.server.errors,
            "records": [record.as_json() for record in self.records],
        }

    async def _handle_sidecar(self, connection: Connection, request: Request) -> bool:
        if request.path == "/__control":
            return await self._control(connection, request)
        self.probes.append((request.arrived, f"sidecar {request.path}"))
        status = self._next_health() if request.path == "/health" else 404
        await connection.sleep(self.settings.health_delay)
        await connection.answer(status, json.dumps({"status": self.settings.health_word}).encode())
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
        if time.monotonic() < self.ready_at:
            await connection.answer(503, LOADING)
            return True
        record = Record(request, generation=request.method == "POST")
        self._count(record)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await self._answer(connection, record)
        except ClientGoneError:
            record.outcome = "cancelled"
            raise
        finally:
            record.end()
            self.in_flight -= 1
            if record.outcome == "cancelled":
                self.cancelled.append(record.ended)

    def _count(self, record: Record) -> None:
        self.records.append(record)
        self.hits += 1
        self.generations += record.generation
        self.raw_bytes += len(record.request.raw)

    async def _probe(self, connection: Connection, request: Request) -> bool:
        self.probes.append((request.arrived, request.path))
        if time.monotonic() < self.ready_at:
            await connection.answer(503, LOADING)
        elif request.path == "/health":
            await connection.answer(self.settings.own_health, b'{"status":"ok"}')
        elif request.path != self.settings.models_path:
            await connection.answer(404, b'{"error":"no such path"}')
        else:
            await connection.sleep(self.settings.models_delay)
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
        if self._random.random() >= float(document.get("share", 1.0)):
            document = {}
        return parse_script(document, body, request.path)

    async def _answer(self, connection: Connection, record: Record) -> bool:
        script = self._script(record.request)
        await self._wait(connection, script.delay)
        answer = Answer(connection, script, record, self._wait)
        if script.die and script.die.at is None:
            return await answer.break_off(b"")
        return await answer.send(head_only=record.request.method == "HEAD")

    async def _wait(self, connection: Connection, delay: Delay) -> None:
        if delay == "held":
            await connection.until(self._released.acquire())
        else:
            await connection.sleep(delay)


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
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, see Settings")
    parser.add_argument("--worker", action="store_true", help="fork one that will not end")
    options = parser.parse_args()
    given = {"host": options.host, "models": options.models.split(",")}
    settings = Settings(**{**given, "sidecar": not options.no_sidecar, **options.settings})
    engine = FakeEngine(options.name, settings)
    if options.worker:
        engine.workers.append(fork_worker())
    asyncio.run(serve(engine, options.port))


if __name__ == "__main__":
    main()
