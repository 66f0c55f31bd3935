"""The babysitter's own HTTP server, on the port above the engine's."""

import datetime as dt
import time
from dataclasses import dataclass, field

from aiohttp import web

from infinilm_babysitter.config import Config
from infinilm_babysitter.logpump import LogPump
from infinilm_babysitter.redact import redact_argv
from infinilm_babysitter.registration import Registrar
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor

STATUS = {State.READY: "healthy", State.DRAINING: "draining"}
"""/health's `status`; `unhealthy` in every other state."""


@dataclass(slots=True)
class Api:
    """Answers from what the others know; changes nothing."""

    config: Config
    supervisor: Supervisor
    registrar: Registrar
    pump: LogPump
    started: float = field(default_factory=time.monotonic)
    last_asked: float = float("-inf")
    """When somebody last asked for /health, on the monotonic clock."""

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application()
        application.router.add_get("/health", self.health)
        application.router.add_get("/models", self.models)
        application.router.add_get("/v1/models", self.models)
        application.router.add_get("/info", self.info)
        return application

    async def health(self, _: web.Request) -> web.Response:
        """200 while the engine is ready, else 503; always with the same fields."""
        self.last_asked = time.monotonic()
        ready = self.supervisor.engine_state.state is State.READY
        return web.json_response(self._health(), status=200 if ready else 503)

    async def models(self, _: web.Request) -> web.Response:
        """The engine's models as it listed them last."""
        if self.supervisor.engine_state.state not in {State.READY, State.DRAINING}:
            message = f"Service not ready yet: engine is {self.supervisor.engine_state.state}"
            return web.json_response({"error": message}, status=503)
        models = [dict(model) for model in self.supervisor.models]
        return web.json_response({"object": "list", "data": models})

    async def info(self, _: web.Request) -> web.Response:
        """Everything that is known, for people."""
        return web.json_response(self._info())

    def _health(self) -> dict[str, object]:
        now = self.supervisor.engine_state
        run = self.supervisor.run_now
        return {
            "status": STATUS.get(now.state, "unhealthy"),
            "service": self.config.name,
            "babysitter": "enhanced",
            "infinilm_server_running": run is not None and run.pid is not None,
            "infinilm_server_port": self.config.port,
            "timestamp": dt.datetime.now(dt.UTC).isoformat(),
            "state": now.state,
            "state_seconds": round(now.seconds, 3),
            "detail": now.detail,
            "restarts": self.supervisor.restarts,
            "last_log_line": self._last_line(now.state),
        }

    def _last_line(self, state: State) -> str | None:
        """Progress of loading. A serving engine's log may hold its users' prompts: not shown."""
        lines = self.pump.last_lines() if state is State.STARTING else ()
        return lines[-1] if lines else None

    def _info(self) -> dict[str, object]:
        config, launch, run = self.config, self.supervisor.launch, self.supervisor.run_now
        own_port = config.port + 1
        return {
            "name": config.name,
            "host": config.host,
            "port": own_port,
            "url": f"http://{config.host}:{own_port}",
            "infinilm_server_port": config.port,
            "service_type": config.service_type,
            "uptime": round(time.monotonic() - self.started, 3),
            "metadata": config.metadata,
            "restart_count": self.supervisor.restarts,
            "engine": {
                **self._health(),
                "pid": run.pid if run else None,
                "argv": redact_argv(launch.argv, launch.env) if launch else None,
                "models": [model["id"] for model in self.supervisor.models],
            },
            "last_exit": self._last_exit(),
            "registry_problem": self.registrar.problem,
            "log_file": str(self.pump.path),
            "log_lost_bytes": self.pump.lost_bytes,
        }

    def _last_exit(self) -> dict[str, object] | None:
        if (ended := self.supervisor.last_exit) is None:
            return None
        return {
            "reason": ended.describe(),
            "code": ended.code if ended.code is None or ended.code >= 0 else None,
            "signal": -ended.code if ended.code is not None and ended.code < 0 else None,
            "log": list(ended.lines),
        }
