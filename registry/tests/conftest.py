"""What the registry's tests share: started registries, registrations, a clock that tests move."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from infinilm_registry.service import Service
from rig.etcd_cluster import Cluster, etcd_cluster
from rig.etcd_views import Play, Scenario, World
from rig.farm import Farm, farm
from rig.processes import ROOT, Program, Programs, programs

SCRIPT = "registry/service_registry.py"


@dataclass
class Registry:
    """A running registry and one session to it."""

    program: Program
    url: str
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.trust_env = False

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=30, **options)

    def get(self, path: str, **options: Any) -> Any:
        return self.call("GET", path, **options).json()

    def names(self, query: str = "") -> set[str]:
        return {service["name"] for service in self.get("/services" + query)["services"]}

    def register(self, body: dict[str, Any]) -> requests.Response:
        return self.call("POST", "/services", json=body)


def launch(
    run: Programs,
    *flags: str | Path,
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Registry:
    """Start a registry on a free port of loopback; without a `--store` it keeps nothing."""
    store = () if "--store" in flags else ("--store", "memory")
    address = () if "--host" in flags else ("--host", "127.0.0.1")
    program = run.start(
        *(*prefix, sys.executable, ROOT / SCRIPT),
        *(*address, "--port", "0", *store, *flags),
        env={"INFINILM_REGISTRY_TOKEN": "", **(env or {})},
    )
    return Registry(program, program.wait_listening())


@pytest.fixture
def start(run: Programs) -> Iterator[Callable[..., Registry]]:
    """`start(*flags, env=..., prefix=...)` gives a running Registry; `prefix` is what starts it."""
    started: list[Registry] = []

    def begin(*flags: str | Path, **options: Any) -> Registry:
        started.append(launch(run, *flags, **options))
        return started[-1]

    yield begin
    for registry in started:
        registry.session.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Registry]:
    """One registry for all tests of a module that need no settings of their own."""
    with programs() as run:
        unlimited = ("--write-rate", "100000", "--write-burst", "100000")
        registry = launch(run, *unlimited, "--health-interval", "3600")
        yield registry
        registry.session.close()
        assert registry.program.stop() == 0


@pytest.fixture
def body() -> Callable[..., dict[str, Any]]:
    """`body("name", **changes)` is a faultless registration; nothing listens there."""

    def make(name: str = "engine", **changes: Any) -> dict[str, Any]:
        host, port = changes.get("host", "127.0.0.1"), changes.get("port", 1001)
        valid = {
            "name": name,
            "host": host,
            "port": port,
            "hostname": "here",
            "url": f"http://{host}:{port}",
            "status": "running",
        }
        return {**valid, **changes}

    return make


@pytest.fixture
def service() -> Callable[..., Service]:
    """`service("name", **changes)` is a Service value."""

    def make(name: str = "engine", **changes: Any) -> Service:
        valid: dict[str, Any] = {
            "name": name,
            "host": "127.0.0.1",
            "port": 1001,
            "hostname": "here",
            "url": "http://127.0.0.1:1001",
            "status": "running",
            "timestamp": "2025-01-01T00:00:00+00:00",
            "generation": 1,
        }
        return Service(**{**valid, **changes})

    return make


class Clock:
    """Monotonic seconds that only tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer() -> Callable[[], float]:
    """Seconds since the test began."""
    began = time.monotonic()
    return lambda: time.monotonic() - began


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One member."""
    folder = tmp_path_factory.mktemp("etcd")
    with programs() as run, etcd_cluster(run, folder, size=1) as cluster:
        yield cluster


@pytest.fixture
def fakes() -> Iterator[Farm]:
    with farm() as made:
        yield made


@pytest.fixture
def play(etcd: Cluster, request: pytest.FixtureRequest) -> Play:
    """Runs a scenario with registries that are nobody else's."""

    def run_scenario(scenario: Scenario) -> None:
        async def inner() -> None:
            world = World(etcd, f"c{abs(hash(request.node.name))}")
            async with world.stack:
                await scenario(world)

        asyncio.run(inner())

    return run_scenario
