"""Sends clients of port + 1 away that hold a connection and ask for nothing."""

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

LOOK_EVERY = 5.0
"""A client has to ask for something between two looks, in seconds; kept connections may be idle
for longer, but not for ever."""
KEPT_FOR = 75.0


class Visitors:
    """Who is connected, and who has ever sent a request."""

    def __init__(self) -> None:
        self._silent: set[web.RequestHandler] = set()
        self._asked: set[web.RequestHandler] = set()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Notice who asks."""
        self._asked.add(request.protocol)
        return await handler(request)

    async def watch(self, server: web.Server) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self.send_away(server)

    def send_away(self, server: web.Server) -> None:
        """Close what was silent at the last call and is still."""
        connected = set(server.connections)
        self._asked &= connected
        silent = connected - self._asked
        for each in silent & self._silent:
            each.force_close()
        self._silent = silent
