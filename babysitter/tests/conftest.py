"""A registry, a router, a fake engine and the babysitter itself, for black-box tests."""

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import toml

from infinilm_babysitter import proctree
from infinilm_babysitter.proctree import Process
from rig.processes import ROOT, Program, Programs, free_port, wait_until

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
FAST = {
    "probe_interval": 0.05,
    "models_interval": 0.1,
    "restart_delay": 0.05,
    "backoff_max": 0.2,
    "heartbeat_interval": 0.2,
    "drain_settle": 0.2,
    "stop_timeout": 2,
}


class Call(NamedTuple):
    time: float
    method: str
    path: str
    body: dict[str, Any]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *connection: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has left is no error
            super().handle_error(*connection)


class FakeServer:
    """A JSON server of the test process."""

    def __init__(self, port: int = 0) -> None:
        self.calls: list[Call] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size) or b"{}")
                path = self.path.partition("?")[0]
                fake.calls.append(Call(time.monotonic(), self.command, path, body))
                status, answer = fake.answer(self.command, path, body)
                text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, object]:
        raise NotImplementedError

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def seen(self, method: str, path: str) -> list[Call]:
        return [call for call in self.calls if (call.method, call.path) == (method, path)]


class FakeRegistry(FakeServer):
    """The contract's registry as far as a babysitter uses it."""

    def __init__(self, port: int = 0) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        super().__init__(port)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, object]:
        if method == "POST" and path == "/services":
            self.services[body["name"]] = body
            return 201, {"message": "ok", "service": body}
        name = path.split("/")[2]
        if name not in self.services:
            return 404, {"error": f"Service '{name}' not found"}
        if method == "DELETE":
            del self.services[name]
        else:
            self.services[name] |= body
        return 200, {"message": "ok"}

    def status(self, name: str) -> str | None:
        return self.services.get(name, {}).get("status")


class FakeRouter(FakeServer):
    """Says whether it still sends to the engine named in `sending`."""

    def __init__(self) -> None:
        self.sending: set[str] = set()
        super().__init__()

    def answer(self, *_: object) -> tuple[int, object]:
        services = [{"name": name, "healthy": True} for name in sorted(self.sending)]
        return 200, {"services": services, "total": len(services)}


class ForeignEngine(FakeServer):
    """Somebody else's server that looks like an engine."""

    def answer(self, *_: object) -> tuple[int, object]:
        return 200, {"object": "list", "data": [{"id": "foreign", "object": "model"}]}


class Babysat:
    """A running babysitter with the fake engine."""

    def __init__(self, program: Program, name: str, port: int, folder: Path) -> None:
        self.program = program
        self.name = name
        self.engine_name = f"{name}-server"
        self.port = port
        self.folder = folder

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return get(f"http://127.0.0.1:{self.port + 1}{path}")

    def ask_engine(self, path: str) -> tuple[int, dict[str, Any]]:
        return get(f"http://127.0.0.1:{self.port}{path}")

    def state(self) -> str:
        return str(self.get("/health")[1]["state"])

    def wait_for_state(self, state: str, timeout: float = 20.0) -> None:
        self.program.wait_listening()
        wait_until(lambda: self.state() == state, timeout, f"state {state}")

    def journal(self, event: str | None = None) -> list[dict[str, Any]]:
        file = self.folder / "journal"
        lines = file.read_text().splitlines() if file.exists() else []
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if event in (None, entry["event"])]

    def serve(self, *models: str, path: str = "/v1/models") -> None:
        serve_models(self.folder, *models, path=path)

    def switch(self, name: str, *, on: bool = True, text: str = "") -> None:
        if on:
            (self.folder / name).write_text(text)
        else:
            (self.folder / name).unlink()

    def tree(self) -> list[Process]:
        """Keeper, engine and workers."""
        return proctree.descendants(self.program.pid)

    def engine_pid(self) -> int:
        return int(self.get("/info")[1]["engine"]["pid"])


def get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def serve_models(folder: Path, *models: str, path: str = "/v1/models") -> None:
    fresh = folder / "models.new"
    fresh.write_text(json.dumps({path: models}))
    fresh.replace(folder / "models.json")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    yield server
    server.close()


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    server = FakeRouter()
    yield server
    server.close()


@pytest.fixture
def foreign() -> Iterator[Callable[[int], ForeignEngine]]:
    servers: list[ForeignEngine] = []

    def start(port: int) -> ForeignEngine:
        servers.append(ForeignEngine(port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def fake_engine() -> Path:
    return FAKE_ENGINE


class Settings(NamedTuple):
    """A configuration file over the fake engine."""

    file: Path
    name: str
    port: int
    folder: Path
    """Of the engine: its journal and its switches."""


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Settings]:
    """Write a configuration file over the fake engine; keywords are its keys.

    `engine` holds flags for the fake engine, `babysitter` times that differ from the fast ones,
    `switches` files that tell the engine how to begin.
    """

    def write(
        *,
        engine: tuple[str, ...] = (),
        babysitter: dict[str, object] | None = None,
        switches: dict[str, str] | None = None,
        **keys: object,
    ) -> Settings:
        folder = tmp_path / "engine"
        folder.mkdir(exist_ok=True)
        if not (folder / "models.json").exists():
            serve_models(folder, "m")
        for name, text in (switches or {}).items():
            (folder / name).write_text(text)
        port = int(str(keys.pop("port", None) or free_port()))
        name = str(keys.pop("name", "test"))
        config = {
            "name": name,
            "port": port,
            "host": "127.0.0.1",
            "log_dir": str(tmp_path / "logs"),
            "babysitter": FAST | (babysitter or {}),
            "backend": {
                "type": "command",
                "command": sys.executable,
                "args": [str(FAKE_ENGINE), "--port", "{port}", "--folder", str(folder), *engine],
            },
            **keys,
        }
        file = tmp_path / "babysitter.toml"
        file.write_text(toml.dumps(config))
        return Settings(file, name, port, folder)

    return write


@pytest.fixture
def babysit(run: Programs, configure: Callable[..., Settings]) -> Callable[..., Babysat]:
    """Start a babysitter over the fake engine.

    `env` is the babysitter's own environment, `cwd` its folder, `prefix` a command that it is run
    by, the rest as for `configure`.
    """

    def start(
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        prefix: tuple[str, ...] = (),
        **keys: object,
    ) -> Babysat:
        file, name, port, folder = configure(**keys)
        script = ROOT / "babysitter/enhanced_babysitter.py"
        argv = (*prefix, sys.executable, script, "--config-file", file)
        return Babysat(run.start(*argv, env=env, cwd=cwd), name, port, folder)

    return start


@pytest.fixture
def serving(babysit, registry: FakeRegistry, router: FakeRouter) -> Iterator[Babysat]:
    """A ready, registered babysitter that a router sends to, with long limits for draining."""
    router.sending.add("test-server")
    limits = {"drain_settle": 30, "drain_timeout": 30, "stop_timeout": 5}
    babysat = babysit(registry_url=registry.url, router_url=router.url, babysitter=limits)
    babysat.wait_for_state("ready")
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    yield babysat
    babysat.switch("release")
