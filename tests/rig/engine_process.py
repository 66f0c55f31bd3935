"""Fake engines as processes of their own: for kill -9, and to keep load out of our process."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import requests

from rig.processes import ROOT, Program, Programs, free_port


class EngineProcess:
    """A running fake engine, steered over its control path."""

    def __init__(
        self,
        run: Programs,
        name: str,
        models: Sequence[str],
        port: int | None = None,
        *,
        host: str = "127.0.0.1",
        flags: Sequence[str] = (),
    ):
        self.name = name
        self.host = host
        self.port = port or free_port()
        self.program: Program = run.start(
            sys.executable,
            *("-m", "rig.fake_engine", "--port", str(self.port)),
            *("--host", host, "--name", name, "--models", ",".join(models)),
            *flags,
            env={"PYTHONPATH": os.fspath(ROOT / "tests")},
        )
        self._session = requests.Session()
        self._session.trust_env = False

    def wait(self) -> "EngineProcess":
        """Return when it listens."""
        self.program.wait_listening()
        return self

    def state(self) -> dict[str, Any]:
        """Counters and records."""
        answer = self._session.get(f"http://{self.host}:{self.port + 1}/__control", timeout=10)
        answer.raise_for_status()
        state: dict[str, Any] = answer.json()
        return state

    def apply(self, **change: Any) -> None:
        """Merge settings; `reset=True` forgets the counters."""
        url = f"http://{self.host}:{self.port + 1}/__control"
        self._session.post(url, json=change, timeout=10).raise_for_status()

    def static(self, **more: Any) -> dict[str, Any]:
        """This engine as an entry of a static service list."""
        return {"name": self.name, "host": self.host, "port": self.port, **more}

    def close(self) -> None:
        self._session.close()


def engine_processes(
    run: Programs, count: int, models: Sequence[str] = ("m",)
) -> list[EngineProcess]:
    """`count` engines named e0, e1, ... that all serve `models`; returns when all listen."""
    engines = [EngineProcess(run, f"e{index}", models) for index in range(count)]
    return [engine.wait() for engine in engines]
