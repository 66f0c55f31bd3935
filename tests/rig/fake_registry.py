"""A scripted registry: the read side of the registry's HTTP API, with any content and any fault."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from rig.engine_script import Json
from rig.processes import free_port
from rig.server import ClientGoneError, Connection, Request, Server


class FakeRegistry:
    """Answers `GET /services`; every change of the list raises the revision and wakes watchers.

    With `watch = False` it is a registry of the earlier version: no revision, every poll answered.
    """

    def __init__(self) -> None:
        self.server = Server(self._handle)
        self.port = 0
        self.services: list[Json] = []
        self.revision = 1
        self.status = 200
        self.raw: bytes | None = None
        self.watch = True
        self.requests: list[str] = []
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen on a port that nobody else is given while this registry is down."""
        self.port = await self.server.listen(free_port())

    async def close(self) -> None:
        await self.server.close()

    async def down(self) -> None:
        """As after kill -9: nobody listens, open connections are gone."""
        await self.server.close()

    async def up(self) -> None:
        """Listen again on the same port."""
        await self.server.listen(self.port)

    async def publish(self, services: Sequence[Json]) -> None:
        """Replace the list."""
        self.services = list(services)
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def misbehave(self, status: int = 200, raw: bytes | None = None) -> None:
        """Answer with `status` (or with `raw` bytes and the end of the connection) from now on."""
        self.status, self.raw = status, raw
        self._changed.set()
        self._changed = asyncio.Event()

    async def _handle(self, connection: Connection, request: Request) -> bool:
        self.requests.append(request.target)
        query = parse_qs(request.target.partition("?")[2])
        watching = self.watch and query.get("since") == [str(self.revision)]
        if watching and self.status == 200:
            await self._wait(connection, min(float(query.get("wait", ["30"])[0]), 60.0))
        if self.raw is not None:
            await connection.send(self.raw)
            return False
        if request.path != "/services":
            await connection.answer(404, b'{"error":"not found"}')
        elif self.status != 200:
            await connection.answer(self.status, b'{"error":"scripted"}')
        elif watching and query.get("since") == [str(self.revision)]:
            await connection.send(b"HTTP/1.1 304 Not Modified\r\n\r\n")
        else:
            healthy_only = query.get("healthy") == ["true"]
            answer = self._list(healthy_only=healthy_only)
            await connection.answer(200, json.dumps(answer).encode())
        return True

    async def _wait(self, connection: Connection, seconds: float) -> None:
        changed = asyncio.create_task(self._changed.wait())
        gone = asyncio.create_task(connection.gone.wait())
        first = asyncio.FIRST_COMPLETED
        try:
            await asyncio.wait({changed, gone}, timeout=seconds, return_when=first)
        finally:
            changed.cancel()
            gone.cancel()
        if connection.gone.is_set():
            raise ClientGoneError("the watcher left")

    def _list(self, *, healthy_only: bool) -> dict[str, Any]:
        services = [s for s in self.services if s.get("is_healthy") or not healthy_only]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        answer = {"services": services, "total": len(services), "timestamp": stamp}
        return answer | {"revision": self.revision} if self.watch else answer


def registration(
    name: str,
    port: int,
    *,
    models: Sequence[str] | None = ("m",),
    kind: str | None = "openai-api",
    weight: float = 1,
    **metadata: Any,
) -> dict[str, Any]:
    """One service as the registry lists it; `models=None` leaves the models out."""
    described: dict[str, Any] = {} if kind is None else {"type": kind}
    if models is not None:
        described["models"] = list(models)
        described["models_list"] = [
            {"id": model, "object": "model", "created": 1, "owned_by": name} for model in models
        ]
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    return {
        "name": name,
        "host": "127.0.0.1",
        "port": port,
        "hostname": "127.0.0.1",
        "url": f"http://127.0.0.1:{port}",
        "status": "running",
        "timestamp": now,
        "last_heartbeat": now,
        "health_status": "healthy",
        "metadata": described | metadata,
        "weight": weight,
        "is_healthy": True,
    }
