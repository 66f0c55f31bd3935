"""The calls on port + 1 that change something or may show users' prompts: for admins only."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from infinilm_babysitter.access import TOKEN_VARIABLE, Refusal, refusal
from infinilm_babysitter.logpump import LogPump
from infinilm_babysitter.redact import Redactor
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor
from infinilm_babysitter.tail import KEPT_LINES

Handler = Callable[[web.Request], Awaitable[web.Response]]
DEFAULT_LINES = 100


@dataclass(slots=True)
class Controls:
    """Hands orders to the supervisor, and shows the engine's log."""

    supervisor: Supervisor
    pump: LogPump
    redactor: Redactor
    token: str = field(default_factory=lambda: os.environ.get(TOKEN_VARIABLE, ""), repr=False)

    def routes(self) -> list[web.RouteDef]:
        """All of them guarded."""
        return [
            web.post("/restart", self._guarded(self.restart)),
            web.post("/drain", self._guarded(self.drain)),
            web.post("/undrain", self._guarded(self.undrain)),
            web.get("/logs", self._guarded(self.logs)),
        ]

    def refuses(self, request: web.Request) -> Refusal | None:
        """Why the caller is no admin; None if it is."""
        return refusal(self.token, request.remote, request.headers)

    async def restart(self, _: web.Request) -> web.Response:
        """`POST /restart`: drain, stop, start again; a second one does not wait for answers."""
        self.supervisor.orders.order_restart()
        return self._ordered("restart")

    async def drain(self, _: web.Request) -> web.Response:
        """`POST /drain`: take no new requests until `POST /undrain` or `POST /restart`."""
        self.supervisor.orders.order_drain()
        return self._ordered("drain")

    async def undrain(self, _: web.Request) -> web.Response:
        """`POST /undrain`: take requests again."""
        self.supervisor.orders.order_undrain()
        return self._ordered("undrain")

    async def logs(self, request: web.Request) -> web.Response:
        """`GET /logs?lines=N`: the end of the engine's log, from memory, without secrets."""
        text = request.query.get("lines", str(DEFAULT_LINES))
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= KEPT_LINES):
            message = f"lines={text}: must be a whole number from 1 to {KEPT_LINES}"
            return web.json_response({"error": message}, status=400)
        lines = [self.redactor.clean(line) + "\n" for line in self.pump.recent_lines(int(text))]
        return web.Response(
            text="".join(lines), content_type="text/plain", headers={"Cache-Control": "no-store"}
        )

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.Response:
            if (refused := self.refuses(request)) is None:
                return await handler(request)
            headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
            return web.json_response(
                {"error": refused.reason}, status=refused.status, headers=headers
            )

        return guarded

    def _ordered(self, order: str) -> web.Response:
        """202: /health tells how far it is."""
        now: State = self.supervisor.engine_state.state
        return web.json_response({"message": f"{order} ordered", "state": now}, status=202)
