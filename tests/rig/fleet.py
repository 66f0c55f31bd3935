"""Two registries on one etcd, a router of each kind on both of them, and engines that beat."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from rig.engine_process import engine_processes
from rig.etcd_cluster import Cluster
from rig.load_client import Outcome, chat_call
from rig.processes import Program, Programs, wait_until
from rig.routers import Router, StartRouter, router_names
from rig.traffic import Traffic

BEAT_SECONDS = 0.5
RATE = 20


class Fleet:
    """Everything runs when it is made. Engines are registered under instance ids of their own."""

    def __init__(self, run: Programs, folder: Path, etcd: Cluster, engines: int = 3) -> None:
        self.etcd = etcd
        self.engines = engine_processes(run, engines)
        self.registries = [etcd_registry(run, etcd.store) for _ in range(2)]
        self.urls = [registry.wait_listening() for registry in self.registries]
        self._session = requests.Session()
        self._session.trust_env = False
        self.beats: list[tuple[int, bool]] = []  # status and degraded of every heartbeat's answer
        self._stop = threading.Event()
        for engine in self.engines:
            assert self.register(engine.name, engine.port).status_code == 201
        self._beating = threading.Thread(target=self._beat)
        self._beating.start()
        self.routers = [self._router(run, folder, name) for name in router_names()]

    def _router(self, run: Programs, folder: Path, name: str) -> Router:
        start = StartRouter(run, name, folder / name)
        flags = {"registry-url": self.urls, "registry-sync-interval": 1}
        return start(flags=flags, healthy=f"{len(self.engines)}/{len(self.engines)}")

    def call(self, number: int, method: str, path: str, **options: Any) -> requests.Response:
        """A call to one of the registries."""
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.urls[number] + path, timeout=10, **options)

    def register(self, name: str, port: int, number: int = 0) -> requests.Response:
        """Register an engine that says that it beats every 10 s."""
        return self.call(number, "POST", "/services", json=registration(name, port))

    def listed(self, number: int) -> list[str]:
        """The names that a registry lists."""
        services = self.call(number, "GET", "/services").json()["services"]
        return sorted(service["name"] for service in services)

    def marks(self, number: int) -> dict[str, Any]:
        """What the list says of itself and of its services."""
        answer = self.call(number, "GET", "/services").json()
        return {
            "stale": answer["stale"],
            "stale_services": sum(s["stale"] for s in answer["services"]),
            "healthy": sum(s["is_healthy"] for s in answer["services"]),
        }

    def wait_current(self, timeout: float = 30.0) -> None:
        """Return when neither registry calls its list stale."""
        wait_until(
            lambda: not any(self.marks(n)["stale"] for n in (0, 1)), timeout, "both lists current"
        )

    @contextlib.contextmanager
    def traffic(self) -> Iterator[list[list[Outcome]]]:
        """Calls to every router meanwhile; at the end, the outcomes of each."""
        outcomes: list[list[Outcome]] = []
        senders = [Traffic(router.url, RATE / len(self.routers), _call) for router in self.routers]
        try:
            yield outcomes
        finally:
            outcomes += [sender.end() for sender in senders]

    def _beat(self) -> None:
        """Each engine beats at one registry, and at the other if that one does not answer."""
        while not self._stop.wait(BEAT_SECONDS):
            for index, engine in enumerate(self.engines):
                path = f"/services/{engine.name}/heartbeat"
                answer = self.call(index % 2, "POST", path, json={"instance_id": engine.name})
                self.beats.append((answer.status_code, answer.json().get("degraded", False)))

    def close(self) -> None:
        self._stop.set()
        self._beating.join(30)
        for engine in self.engines:
            engine.close()
        self._session.close()


def _call(number: int) -> Any:
    return chat_call(stream=number % 2 == 0, max_tokens=5)


def etcd_registry(run: Programs, store: str, *more: str) -> Program:
    """A registry on that etcd; it does not probe, so that only heartbeats count."""
    flags = ("--host", "127.0.0.1", "--port", "0", "--store", store)
    quick = ("--write-rate", "100000", "--write-burst", "100000", "--health-interval", "3600")
    return run.python("registry/service_registry.py", *flags, *quick, *more)


def registration(name: str, port: int, **changes: Any) -> dict[str, Any]:
    """An engine with the model m."""
    valid = {
        "name": name,
        "host": "127.0.0.1",
        "port": port,
        "hostname": "127.0.0.1",
        "url": f"http://127.0.0.1:{port}",
        "status": "running",
        "instance_id": name,
        "heartbeat_interval": 10,
        "metadata": {"type": "openai-api", "models": ["m"]},
    }
    return {**valid, **changes}
