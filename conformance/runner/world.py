"""The programs that one group of cases shares: a router, its fake engines, its registry."""

import copy
import json
import re
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.fake_engine import FakeEngine
from rig.fake_registry import FakeRegistry, registration
from rig.farm import Farm
from rig.processes import Programs
from rig.routers import ONE_POOL, Router
from runner.cases import Json
from runner.exchange import Answer
from runner.transcript import Scribe, Transcript

PLACEHOLDER = re.compile(r"\$\{([a-z0-9_]+)\.port\}")
REPEAT = re.compile(r"\$\{([^}*]+)\*([0-9]+)\}")


Finished = tuple[Answer, list[str]]
"""An answer, and how it differs from the expected one."""


class World:
    """Everything that runs for a setup (see schema.json)."""

    def __init__(self, router: str, setup: Json) -> None:
        self.setup = setup
        self.router_name = router
        self.run = Programs()
        self.farm = Farm()
        self.pending: list[Future[Finished]] = []
        self.answers: list[Answer] = []  # of the running case
        self.folder = tempfile.TemporaryDirectory(prefix="conformance-")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self.engines = {
            name: self._engine(name, spec) for name, spec in self.setup.get("engines", {}).items()
        }
        self._initial = {
            name: copy.deepcopy(vars(engine.settings)) for name, engine in self.engines.items()
        }
        self.registry: FakeRegistry | None = None
        if self.setup.get("source") == "registry":
            self.registry = self.farm.registry()
            self.publish(self.setup.get("published", list(self.engines)))
        flags = {**ONE_POOL[self.router_name], **self._flags()}
        self.router = Router(
            self.run, self.router_name, flags, env=self.fill(self.setup.get("env", {}))
        )
        self.router.wait_healthy(self.healthy)

    @property
    def healthy(self) -> str:
        """What /health is to count before a case begins."""
        count = len(self.engines)
        return str(self.setup.get("healthy", f"{count}/{count}"))

    def _engine(self, name: str, spec: Json) -> FakeEngine:
        settings = {"models": spec.get("models", ["m"]), **spec.get("settings", {})}
        return self.farm.engine(name, **settings)

    def _flags(self) -> dict[str, Any]:
        flags: dict[str, Any] = {"state-dir": self.folder.name}
        if self.registry:
            flags["registry-url"] = self.registry.url
        if self.setup.get("source", "static") == "static":
            flags["static-services"] = self._write("static.json", self._static_file())
        if "config" in self.setup:
            flags["config"] = self._write("router.json", self.setup["config"])
        flags |= self.fill(self.setup.get("flags", {}))
        return flags

    def _write(self, name: str, value: Any) -> Path:
        path = Path(self.folder.name) / name
        path.write_text(json.dumps(self.fill(value)))
        return path

    def _static_file(self) -> Any:
        """The static services, in the shape that the setup asks for."""
        entries = [self._static(name) for name in self.engines]
        shape = self.setup.get("static_shape", "list")
        if shape == "list":
            return entries
        services = {"services": entries}
        return services if shape == "services" else {"static_services": services}

    def _static(self, name: str) -> dict[str, Any]:
        spec = self.setup["engines"][name]
        base = {"name": name, "host": "127.0.0.1", "port": self.engines[name].port}
        if spec.get("models_known", True):
            base["metadata"] = {"models": spec.get("models", ["m"])}
        merged: dict[str, Any] = base | spec.get("entry", {})
        return {key: value for key, value in merged.items() if value is not None}

    def publish(self, engines: list[str] | dict[str, Json]) -> None:
        """Make these the content of the registry; a dict changes fields of their entries."""
        assert self.registry
        changes: dict[str, Json] = engines if isinstance(engines, dict) else {}
        entries = [self._registration(name) | dict(changes.get(name, {})) for name in engines]
        self.farm.call(self.registry.publish(entries))

    def _registration(self, name: str) -> dict[str, Any]:
        spec = self.setup["engines"][name]
        models = spec.get("models", ["m"]) if spec.get("models_known", True) else None
        entry = dict(spec.get("entry", {}))
        kind = spec.get("kind", "openai-api")
        metadata = entry.pop("metadata", {})
        service = registration(name, self.engines[name].port, models=models, kind=kind)
        service["metadata"] |= metadata
        return service | entry

    def fill(self, value: Any) -> Any:
        """Replace `${engine.port}`, `${router.port}`, `${registry.port}` and `${text*times}`.

        A string that is nothing but one port becomes a number.
        """
        if isinstance(value, str):
            if match := PLACEHOLDER.fullmatch(value):
                return int(self._fact(match))
            text = PLACEHOLDER.sub(self._fact, value)
            return REPEAT.sub(lambda match: match[1] * int(match[2]), text)
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if isinstance(value, dict):
            return {self.fill(key): self.fill(item) for key, item in value.items()}
        return value

    def _fact(self, match: re.Match[str]) -> str:
        name = match[1]
        if name == "router":
            return self.router.url.rpartition(":")[2]
        owner = self.registry if name == "registry" else self.engines[name]
        assert owner
        return str(owner.port)

    def transcript(self, *, received: bool) -> Transcript:
        """What has come of the case so far."""
        names = {int(self.router.url.rpartition(":")[2]): "router"}
        for name, engine in self.engines.items():
            names |= {engine.port: name, engine.port + 1: f"{name}'s babysitter"}
        if self.registry:
            names[self.registry.port] = "registry"
        scribe = Scribe(names)
        got = {
            name: {scribe.request(record.request.raw) for record in self.farm.records(engine)}
            for name, engine in self.engines.items()
            if received
        }
        return Transcript([scribe.answer(answer) for answer in self.answers], got)

    def reset(self) -> None:
        """Bring engines and registry back to where the group's cases begin."""
        for name, engine in self.engines.items():
            self.farm.apply(engine, **copy.deepcopy(self._initial[name]), reset=True)
        if self.registry:
            self.registry.watch = True
            self.farm.call(self.registry.misbehave())
            self.publish(self.setup.get("published", list(self.engines)))
        self.router.wait_healthy(self.healthy)

    def close(self) -> None:
        self.run.close()
        self.farm.close()
        self.folder.cleanup()


@dataclass(frozen=True)
class Key:
    """Which world a case needs: cases of one group share theirs, unless a case wants its own."""

    router: str
    group: str
    own: str = ""


class Worlds:
    """Keeps the world of the running group; starts the next one in a thread meanwhile."""

    def __init__(self) -> None:
        self._starter = ThreadPoolExecutor(1)
        self._key: Key | None = None
        self._world: World | None = None
        self._ahead: tuple[Key, Future[World]] | None = None

    def get(self, key: Key, upcoming: Key | None) -> World:
        """The world for `key`, as its cases begin; `upcoming` will be asked for after it."""
        if self._key == key and self._world:
            self._world.reset()
            return self._world
        self._close_current()
        if not self._ahead or self._ahead[0] != key:
            self._start(key)
        assert self._ahead
        self._key, self._world = key, self._ahead[1].result()
        self._ahead = None
        if upcoming and upcoming != key:
            self._start(upcoming)
        return self._world

    def _start(self, key: Key) -> None:
        self._drop_ahead()
        self._ahead = (key, self._starter.submit(World, key.router, json.loads(key.group)))

    def _drop_ahead(self) -> None:
        """End a world that was started for nothing (the tests after this one were not run)."""
        if self._ahead and not self._ahead[1].exception():
            self._ahead[1].result().close()
        self._ahead = None

    def _close_current(self) -> None:
        if self._world:
            self._world.close()
        self._world = self._key = None

    def close(self) -> None:
        self._close_current()
        self._drop_ahead()
        self._starter.shutdown()
