"""The babysitter's own HTTP server, on the port above the engine's."""

import datetime as dt
import time
from dataclasses import dataclass, field

from aiohttp import web

from infinilm_babysitter.config import Config
from infinilm_babysitter.controls import Controls
from infinilm_babysitter.liveness import Verdict
from infinilm_babysitter.logpump import LogPump
from infinilm_babysitter.redact import redact_argv
from infinilm_babysitter.registration import Registrar
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor

HEALTHY = "healthy"


@dataclass(slots=True)
class Api:
    """Answers from what the others know; changes nothing itself."""

    config: Config
    supervisor: Supervisor
    registrar: Registrar
    pump: LogPump
    controls: Controls
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
        application.add_routes(self.controls.routes())
        return application

    async def health(self, _: web.Request) -> web.Response:
        """200 while the engine is ready and gets on, else 503; always with the same fields."""
        self.last_asked = time.monotonic()
        return web.json_response(self._health(), status=200 if self._status() == HEALTHY else 503)

    async def models(self, _: web.Request) -> web.Response:
        """The engine's models as it listed them last."""
        if self.supervisor.engine_state.state not in {State.READY, State.DRAINING}:
            message = f"Service not ready yet: engine is {self.supervisor.engine_state.state}"
            return web.json_response({"error": message}, status=503)
        models = [dict(model) for model in self.supervisor.models]
        return web.json_response({"object": "list", "data": models})

    async def info(self, request: web.Request) -> web.Response:
        """Everything that is known, for people; log lines only for those who may read the log."""
        return web.json_response(self._info(with_log=self.controls.refuses(request) is None))

    def _status(self) -> str:
        """In a word."""
        state, liveness = self.supervisor.engine_state.state, self.supervisor.liveness
        if state is State.DRAINING:
            return "draining"
        if state is State.READY and liveness is Verdict.STALLED:
            return "stalled"
        serves = state is State.READY and liveness is not Verdict.DEAD
        return HEALTHY if serves else "unhealthy"

    def _health(self) -> dict[str, object]:
        now = self.supervisor.engine_state
        run = self.supervisor.run_now
        return {
            "status": self._status(),
            "service": self.config.name,
            "babysitter": "enhanced",
            "infinilm_server_running": run is not None and run.pid is not None,
            "infinilm_server_port": self.config.port,
            "timestamp": dt.datetime.now(dt.UTC).isoformat(),
            "state": now.state,
            "state_seconds": round(now.seconds, 3),
            "detail": now.detail,
            "liveness": self.supervisor.liveness,
            "drained": self.supervisor.drained,
            "restarts": self.supervisor.restarts,
            "last_log_line": self._last_line(now.state),
        }

    def _last_line(self, state: State) -> str | None:
        """Progress of loading. A serving engine's log may hold its users' prompts: not shown."""
        lines = self.pump.last_lines() if state is State.STARTING else ()
        return self.controls.redactor.clean(lines[-1]) if lines else None

    def _info(self, *, with_log: bool) -> dict[str, object]:
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
                "metrics": self.supervisor.metrics,
                "argv": redact_argv(launch.argv, launch.env) if launch else None,
                "models": [model["id"] for model in self.supervisor.models],
            },
            "last_exit": self._last_exit(with_log=with_log),
            "registry_problem": self.registrar.problem,
            "log_file": str(self.pump.path),
            "log_lost_bytes": self.pump.lost_bytes,
        }

    def _last_exit(self, *, with_log: bool) -> dict[str, object] | None:
        if (ended := self.supervisor.last_exit) is None:
            return None
        return {
            "reason": ended.describe(),
            "code": ended.code if ended.code is None or ended.code >= 0 else None,
            "signal": -ended.code if ended.code is not None and ended.code < 0 else None,
            "log": [self.controls.redactor.clean(line) for line in ended.lines]
            if with_log
            else None,
        }
