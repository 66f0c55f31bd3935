"""Stands before one etcd member and loses what a network, a pause or a fault of etcd can lose.

proxy = fakes.etcd_proxy(member.port)                # proxy.port stands for the member's
proxy.faults.hold = "/v3/kv/txn"                     # such requests arrive when released
proxy.faults.unanswered = "/v3/kv/txn"               # such requests arrive, answers do not
proxy.faults.lost_key = "/infinilm/default/services/e0"   # the watch does not tell of this key
"""

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from rig.server import Connection, Request, Server
from rig.wire import head_bytes

WATCH = "/v3/watch"


@dataclass
class Faults:
    """What goes wrong now; it may be set from any thread."""

    hold: str = ""
    unanswered: str = ""
    lost_key: str = ""


@dataclass
class EtcdProxy:
    """Passes calls and watches on to a member on loopback, but for its faults."""

    target_port: int
    faults: Faults = field(default_factory=Faults)
    port: int = 0
    held: int = 0  # requests that wait for `release`
    lost: int = 0  # events that were not told
    passed: dict[str, int] = field(default_factory=dict)  # by path

    async def start(self) -> None:
        self._server = Server(self._handle)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        self._released = asyncio.Event()
        self.port = await self._server.listen()

    async def close(self) -> None:
        await self._server.close()
        await self._session.close()

    async def release(self) -> None:
        """Pass on what was held, whoever still waits for it."""
        self.faults.hold = ""
        self._released.set()

    async def _handle(self, connection: Connection, request: Request) -> bool:
        if request.path == self.faults.hold:
            self.held += 1
            await self._released.wait()
        url = f"http://127.0.0.1:{self.target_port}{request.target}"
        async with self._session.post(url, data=request.body) as answer:
            self.passed[request.path] = self.passed.get(request.path, 0) + 1
            if request.path == WATCH:
                await self._pass_watch(connection, answer)
                return False
            body = await answer.read()
        if request.path == self.faults.unanswered:
            await connection.gone.wait()
            return False
        await connection.answer(answer.status, body)
        return True

    async def _pass_watch(self, connection: Connection, answer: aiohttp.ClientResponse) -> None:
        fields = (("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"))
        await connection.send(head_bytes("HTTP/1.1 200 OK", fields))
        gone = asyncio.create_task(connection.gone.wait())
        reading = asyncio.create_task(self._pass_lines(connection, answer))
        try:
            await asyncio.wait({gone, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            reading.cancel()
            await asyncio.gather(gone, reading, return_exceptions=True)

    async def _pass_lines(self, connection: Connection, answer: aiohttp.ClientResponse) -> None:
        async for line in answer.content:
            message = self._without_lost(json.loads(line))
            data = json.dumps(message).encode() + b"\n"
            await connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    def _without_lost(self, message: Any) -> Any:
        events = message.get("result", {}).get("events", ())
        key = base64.b64encode(self.faults.lost_key.encode()).decode()
        told = [event for event in events if event["kv"]["key"] != key]
        self.lost += len(events) - len(told)
        return {"result": {**message["result"], "events": told}} if events else message
