"""HTTP calls to the engine, wherever on its port it listens. No redirects, no proxies."""

import asyncio
from pathlib import Path

import aiohttp

from infinilm_babysitter import proctree, sockets

MOST_BYTES = 8 << 20
"""Neither a models list nor a page of metrics is longer."""

Answer = tuple[int | None, bytes]
"""Status, None if there was no answer in time, and body."""


class Door:
    """The engine's port, seen from outside; an OSError means that it could not be looked at."""

    def __init__(
        self, session: aiohttp.ClientSession, port: int, api_key_file: Path | None = None
    ) -> None:
        self._session = session
        self._api_key_file = api_key_file
        self.port = port

    async def is_open(self) -> bool:
        """Whether anybody listens."""
        return bool(await asyncio.to_thread(sockets.listeners, self.port))

    async def clients(self) -> int:
        """How many connections there are."""
        return await asyncio.to_thread(sockets.count_connections, self.port)

    async def get(self, path: str) -> Answer:
        """GET with the engine's key."""
        return await self._call("GET", path, None)

    async def post(self, path: str, body: bytes) -> Answer:
        """POST a body of JSON with the engine's key."""
        return await self._call("POST", path, body)

    async def _call(self, method: str, path: str, body: bytes | None) -> Answer:
        listening = await asyncio.to_thread(sockets.listeners, self.port)
        if not listening:
            return None, b""
        url = f"http://{sockets.reachable(listening[0].address)}:{self.port}{path}"
        try:
            async with self._session.request(
                method, url, data=body, headers=self._headers(body), allow_redirects=False
            ) as answer:
                # Read in any case: an engine need not log a client that hung up.
                return answer.status, await _read_some(answer.content)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # ValueError: a bad key
            if isinstance(error, OSError) and error.errno in proctree.OUT_OF_DESCRIPTORS:
                raise  # it was never asked
            return None, b""

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {"Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._api_key_file:  # read each time: keys are rotated by replacing the file
            key = self._api_key_file.read_text(encoding="utf-8").strip()
            headers["Authorization"] = f"Bearer {key}"
        return headers


async def _read_some(content: aiohttp.StreamReader) -> bytes:
    """The body, cut where it is longer than anything that we ask for."""
    body = b""
    async for piece in content.iter_chunked(1 << 16):
        body += piece
        if len(body) > MOST_BYTES:
            break
    return body
