"""The real registry, and real babysitters with mock engines, for tests of the whole."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from rig.processes import Program, Programs, free_port, programs, wait_until


class Registry:
    """A registry process on one port; it can be killed and started again, empty."""

    def __init__(self, run: Programs, host: str = "127.0.0.1", *flags: str | Path) -> None:
        self._run = run
        self.host = host
        self._flags = flags or ("--store", "memory")
        self.port = free_port()
        self.url = f"http://{host}:{self.port}"
        self.program = self.start()

    def start(self) -> Program:
        """Start (again); nothing is remembered from before, unless a `--store` was given."""
        self.program = self._run.python(
            "registry/service_registry.py",
            *("--host", self.host, "--port", str(self.port), *self._flags),
        )
        self.program.wait_listening()
        return self.program

    def names(self) -> set[str]:
        """The services that are registered and healthy; empty when nobody answers."""
        try:
            answer = requests.get(f"{self.url}/services?healthy=true", timeout=5).json()
        except requests.ConnectionError:
            return set()
        return {service["name"] for service in answer["services"]}

    def entry(self, name: str) -> dict[str, Any]:
        """One registered service."""
        answer = requests.get(f"{self.url}/services/{name}", timeout=5)
        answer.raise_for_status()
        service: dict[str, Any] = answer.json()
        return service

    def delete(self, name: str) -> None:
        """Take a service off the list behind its babysitter's back."""
        requests.delete(f"{self.url}/services/{name}", timeout=5).raise_for_status()


class Babysitter:
    """A babysitter with a mock engine that says so many tokens a second.

    `times` are further keys of its section `[babysitter]`.
    """

    def __init__(
        self,
        run: Programs,
        folder: Path,
        name: str,
        registry_url: str,
        tokens: int = 1000,
        **times: float,
    ) -> None:
        self.name = name
        self.engine_name = f"{name}-server"
        self.port = free_port()
        config = folder / f"{name}.toml"
        settings = {"name": name, "host": "127.0.0.1", "port": self.port}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        lines += [
            f'registry_url = "{registry_url}"',
            "[babysitter]",
            "heartbeat_interval = 1",
            "drain_settle = 0.2",
            "probe_interval = 0.1",
            *(f"{key} = {value}" for key, value in times.items()),
        ]
        lines += ["[backend]", 'type = "mock"', 'models = ["m"]', f"tokens_per_second = {tokens}"]
        config.write_text("\n".join([*lines, ""]))
        self.program = run.python(
            "babysitter/enhanced_babysitter.py",
            *("--config-file", config, "--bind", "127.0.0.1", "--log-dir", folder / "logs"),
        )

    def engine(self) -> dict[str, Any]:
        """What the babysitter knows of its engine, `pid` and `metrics` among it."""
        info = requests.get(f"http://127.0.0.1:{self.port + 1}/info", timeout=5).json()
        engine: dict[str, Any] = info["engine"]
        return engine


class System:
    """A registry and two babysitters, "east" and "west", whose engines it lists."""

    def __init__(self, run: Programs, folder: Path, tokens: int = 1000, **times: float) -> None:
        self.registry = Registry(run)
        self.sitters = [
            Babysitter(run, folder, name, self.registry.url, tokens, **times)
            for name in ("east", "west")
        ]
        self.engine_names = {sitter.engine_name for sitter in self.sitters}
        self.wait_whole()

    def wait_whole(self) -> None:
        """Return when both engines are listed; a registry that was killed is started again."""
        if self.registry.program.process.poll() is not None:
            self.registry.start()
        wait_until(lambda: self.engine_names <= self.registry.names(), 30, "engines registered")


@contextlib.contextmanager
def running_system(folder: Path, tokens: int = 1000, **times: float) -> Iterator[System]:
    """A system; stopped at the end, so that no engine outlives it."""
    with programs() as run:
        made = System(run, folder, tokens, **times)
        yield made
        stop_all(made.sitters)


def stop_all(sitters: list[Babysitter]) -> None:
    """Stop babysitters, so that no engine outlives the test."""
    for sitter in sitters:
        sitter.program.signal(signal.SIGTERM)
    for sitter in sitters:
        sitter.program.wait(30)
