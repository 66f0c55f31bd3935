"""Start a router, whichever of the two it is: they take the same flags and print the same line.

`ROUTERS=python,rust` picks the ones to test; without it, those that exist in this checkout.
"""

import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rig.processes import ROOT, Program, Programs, wait_until
from rig.raw_client import ask

Argv = list[str]

# Marks of full fault counts: not in the everyday lane, and longer than its limit.
SLOW = (pytest.mark.slow, pytest.mark.timeout(600))


def _python() -> Argv | None:
    script = ROOT / "router-python" / "distributed_router.py"
    return [sys.executable, os.fspath(script)] if script.exists() else None


def _rust() -> Argv | None:
    """The built binary: release before debug; the crate's name is its name."""
    manifest = ROOT / "router-rust" / "Cargo.toml"
    if not manifest.exists():
        return None
    name = tomllib.loads(manifest.read_text())["package"]["name"]
    built = [manifest.parent / "target" / kind / name for kind in ("release", "debug")]
    return next(([os.fspath(path)] for path in built if path.exists()), None)


PROGRAMS: dict[str, Callable[[], Argv | None]] = {"python": _python, "rust": _rust}


def router_names() -> list[str]:
    """The routers to test. Asked for by name, one that does not exist is an error, not a skip."""
    asked = os.environ.get("ROUTERS")
    if not asked:
        return [name for name, argv in PROGRAMS.items() if argv()]
    names = [name.strip() for name in asked.split(",")]
    if missing := [name for name in names if name not in PROGRAMS or not PROGRAMS[name]()]:
        raise ValueError(f"ROUTERS names {missing}: unknown or not built; known: {list(PROGRAMS)}")
    return names


def router_argv(name: str) -> Argv:
    """The command that runs router `name`."""
    argv = PROGRAMS[name]()
    if argv is None:
        raise FileNotFoundError(f"router {name!r} is not in this checkout or not built")
    return argv


def flag_list(flags: Mapping[str, Any]) -> list[str]:
    """`{"health-interval": 0.1}` as command line words; true is a bare flag, None leaves it out."""
    words: list[str] = []
    for name, value in flags.items():
        if value is None:
            continue
        words.append(f"--{name}")
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return words


# One thread, as Python's router has one: there is one pool of engine connections to look at.
ONE_POOL: dict[str, dict[str, Any]] = {"python": {}, "rust": {"threads": 1}}
FAST = {
    "health-interval": 0.1,
    "health-timeout": 1,
    "registry-sync-interval": 0.1,
    "drain-delay": 0.1,
    "slow-start": 0,  # tests of shares say when they want it
}


class Router:
    """A running router."""

    def __init__(
        self,
        run: Programs,
        name: str,
        flags: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
    ):
        self.name = name
        words = flag_list({"host": "127.0.0.1", "router-port": 0, **FAST, **flags})
        self.program: Program = run.start(*router_argv(name), *words, env=env)
        self.url = self.program.wait_listening()

    def get(self, target: str) -> Any:
        """The JSON of one of the router's own endpoints."""
        return json.loads(ask(self.url, "GET", target).body)

    def wait_healthy(self, expected: str) -> None:
        """Return when /health counts e.g. "2/2" engines."""
        seen: list[str] = []

        def equal() -> bool:
            seen.append(self.get("/health")["healthy_services"])
            return bool(seen[-1] == expected)

        try:
            wait_until(equal, 15, f"healthy_services {expected}")
        except AssertionError as error:
            raise AssertionError(f"{error}; last: {seen[-1]}; {self.program.output}") from None

    def memory(self) -> int:
        """Resident memory of the process in bytes."""
        pages = int(Path(f"/proc/{self.program.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Processor time that the process has used, in seconds."""
        fields = Path(f"/proc/{self.program.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def service(self, name: str) -> Any:
        """What /stats says of one service."""
        return next(s for s in self.get("/stats")["services"] if s["name"] == name)

    def descriptors(self) -> int:
        """Open file descriptors of the process."""
        return len(list(Path(f"/proc/{self.program.pid}/fd").iterdir()))

    def in_flight(self) -> int:
        """Requests that are being proxied now."""
        return int(self.get("/stats")["in_flight"])


def write_static(path: Path, services: Sequence[Mapping[str, Any]]) -> Path:
    """A static service file."""
    path.write_text(json.dumps(list(services)))
    return path


class StartRouter:
    """`router = start(engines=[engine], flags={"max-errors": 1})` waits until all are healthy."""

    def __init__(self, run: Programs, name: str, folder: Path) -> None:
        self._run = run
        self.name = name
        self._folder = folder

    def __call__(
        self,
        services: Sequence[Mapping[str, Any]] = (),
        *,
        flags: Mapping[str, Any] | None = None,
        healthy: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Router:
        given: dict[str, Any] = {"state-dir": self._folder, "access-log": "errors"}
        if services:
            given["static-services"] = write_static(self._folder / "static.json", services)
        router = Router(self._run, self.name, {**given, **(flags or {})}, env)
        router.wait_healthy(healthy or f"{len(services)}/{len(services)}")
        return router
