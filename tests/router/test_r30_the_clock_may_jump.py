"""R30: a jump of the wall clock expires nobody and changes no wait, in any of the programs."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from rig.fake_engine import FakeEngine
from rig.fake_registry import registration
from rig.farm import Farm
from rig.flows import closed_loop
from rig.load_client import LoadClient, Outcome, chat_call
from rig.processes import Programs, free_port, wait_until
from rig.routers import Router, router_names
from rig.system import Babysitter, Registry, stop_all
from rig.wall_clock import WallClock

HOUR, DAY = 3600.0, 86_400.0
FIRST_BYTE = 3.0  # seconds, the routers' limit
EJECTION = 5.0  # seconds, give or take a fifth
ROOM = 10.0  # seconds that anything may take longer on a loaded machine


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """The wall clock of every program that the test starts."""
    made = WallClock(tmp_path)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    return made


class Crasher:
    """A babysitter whose engine ends at once; each start leaves the machine's uptime."""

    def __init__(self, run: Programs, folder: Path, registry_url: str) -> None:
        self.port = free_port()
        self._starts = folder / "starts"
        config = folder / "crasher.toml"
        config.write_text(
            f'name = "crasher"\nhost = "127.0.0.1"\nport = {self.port}\n'
            f'registry_url = "{registry_url}"\n[backend]\ntype = "command"\ncommand = "sh"\n'
            f'args = ["-c", "cat /proc/uptime >> {self._starts}; exit 1"]\n'
        )
        self.program = run.python(
            "babysitter/enhanced_babysitter.py",
            *("--config-file", config, "--bind", "127.0.0.1", "--log-dir", folder / "logs"),
        )

    def gaps(self) -> list[float]:
        """Seconds between the starts so far."""
        lines = self._starts.read_text().splitlines() if self._starts.exists() else []
        times = [float(line.split()[0]) for line in lines]
        return [late - early for early, late in itertools.pairwise(times)]


class World:
    """Registry, babysitters, engines and both routers, all under the clock that jumps."""

    def __init__(self, run: Programs, fakes: Farm, folder: Path, clock: WallClock) -> None:
        self.clock = clock
        self.registry = Registry(run, "127.0.0.1", "--store", folder / "r.sqlite3")
        self.crasher = Crasher(run, folder, self.registry.url)
        self.sitter = Babysitter(run, folder, "east", self.registry.url)
        self.engines = [fakes.engine(f"e{n}", models=["f", f"only-{n}"]) for n in range(2)]
        for engine in self.engines:
            self.register(engine)
        self.routers = [self._router(run, name, folder / name) for name in router_names()]
        self.names = {"crasher", "east", "east-server", "e0", "e1"}
        wait_until(lambda: self.listed() == self.names, 30, "all registered")
        for router in self.routers:
            router.wait_healthy("3/3")

    def register(self, engine: FakeEngine) -> None:
        body = registration(engine.name, engine.port, models=engine.settings.models)
        requests.post(f"{self.registry.url}/services", json=body, timeout=9).raise_for_status()

    def _router(self, run: Programs, name: str, folder: Path) -> Router:
        folder.mkdir()
        flags = {"registry-url": self.registry.url, "first-byte-timeout": FIRST_BYTE}
        return Router(run, name, {**flags, "max-errors": 3, "state-dir": folder})

    def listed(self) -> set[str]:
        """What the registry lists, healthy or not."""
        answer = requests.get(f"{self.registry.url}/services", timeout=9).json()
        return {service["name"] for service in answer["services"]}

    def expired(self) -> int:
        page = requests.get(f"{self.registry.url}/metrics", timeout=9).text
        lines = dict(line.split() for line in page.splitlines() if not line.startswith("#"))
        return int(lines["infinilm_registry_expired_total"])

    def stale(self) -> int:
        """Those that self-preservation keeps although nothing is heard of them."""
        return int(requests.get(f"{self.registry.url}/health", timeout=9).json()["stale_services"])

    def jump(self, ahead: float) -> None:
        """All programs believe the new time, and nothing else changes."""
        self.clock.set(ahead)
        sitters = (self.sitter.port + 1, self.crasher.port + 1)
        urls = [self.registry.url, *(f"http://127.0.0.1:{port}" for port in sitters)]
        stamps = [requests.get(f"{url}/health", timeout=9).json()["timestamp"] for url in urls]
        stamps += [router.get("/health")["timestamp"] for router in self.routers]
        seen = [datetime.fromisoformat(stamp).timestamp() for stamp in stamps]
        assert seen == [pytest.approx(self.clock.now(), abs=60)] * len(seen), "the clock is faked"
        assert self.listed() == self.names
        assert (self.expired(), self.stale()) == (0, 0)
        for router in self.routers:
            router.wait_healthy("3/3")  # a probe may be late on a loaded machine
            assert closed_loop(router.url, [chat_call("m")], 1)[0].kind == "ok"


@pytest.fixture
def world(run: Programs, fakes: Farm, tmp_path: Path, clock: WallClock) -> Iterator[World]:
    made = World(run, fakes, tmp_path, clock)
    yield made
    clock.set(0)
    stop_all([made.sitter])


class Stalled:
    """A request to each router whose engine gives no first byte, on a thread of its own."""

    def __init__(self, routers: list[Router]) -> None:
        self._outcomes: list[Outcome] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send(routers)))
        self._thread.start()

    async def _send(self, routers: list[Router]) -> None:
        clients = [LoadClient(router.url, timeout=FIRST_BYTE + 2 * ROOM) for router in routers]
        call = chat_call("only-1", script={"delay": 60}, stream=True)
        sent = (client.send(call, time.monotonic()) for client in clients)
        self._outcomes += await asyncio.gather(*sent)
        for client in clients:
            await client.close()

    def check(self) -> list[float]:
        """Each was answered at the limit; how long that took."""
        self._thread.join()
        assert [outcome.status for outcome in self._outcomes] == [504] * len(self._outcomes)
        took = [outcome.ended for outcome in self._outcomes]
        assert all(FIRST_BYTE - 0.1 < seconds < FIRST_BYTE + ROOM for seconds in took), took
        return took


def ejected(router: Router) -> bool:
    return bool(router.service("e0")["ejected"])


def eject(world: World, fakes: Farm) -> float:
    """Have every router eject an engine; when the first of them did."""
    fakes.apply(world.engines[0], script={"status": 502})
    began = time.monotonic()
    for router in world.routers:
        closed_loop(router.url, [chat_call("only-0")] * 3, 1)
        assert ejected(router)
    fakes.apply(world.engines[0], script={})
    return began


def check_ejection_ends(world: World, began: float) -> None:
    wait_until(lambda: not any(map(ejected, world.routers)), EJECTION + ROOM, "end of ejection")
    took = time.monotonic() - began
    assert took > 0.8 * EJECTION
    print(f"R30: ejection of {EJECTION:.0f} s +-20 % over two jumps: {took:.1f} s")


def check_restarts(crasher: Crasher) -> None:
    """Back-offs of 1, 2, 4, 8 s, give or take a fifth."""
    wait_until(lambda: len(crasher.gaps()) >= 4, 15 * 1.2 + 4 * ROOM, "five starts")
    gaps = crasher.gaps()[:4]
    for number, gap in enumerate(gaps):
        assert 0.8 * 2**number <= gap < 1.2 * 2**number + ROOM, gaps
    print(f"R30: restarts of a crashing engine after {[round(gap, 1) for gap in gaps]} s")


def check_the_dead_expire(world: World) -> None:
    """A lease is as long as ever: 3 heartbeats of 1 s and 5 s."""
    world.sitter.program.kill()
    began = time.monotonic()
    wait_until(lambda: world.expired() == 2, 8 + ROOM, "expiry of the dead")
    took = time.monotonic() - began
    assert took > 8 - 1.5
    print(f"R30: the dead expired after {took:.1f} s, their lease is 8 s")


def check_stored_times(world: World) -> None:
    """A registry that starts a day later by its clock, or an hour before, expires nobody."""
    for ahead in (2 * DAY, -HOUR):
        world.registry.program.kill()
        world.clock.set(ahead)
        world.registry.start()
        assert world.registry.names() >= {"e0", "e1", "east", "east-server"}


def test_r30_jumps_of_an_hour_and_a_day_change_nothing(world: World, fakes: Farm) -> None:
    stalled, began = Stalled(world.routers), eject(world, fakes)
    world.jump(HOUR)
    assert all(map(ejected, world.routers))
    world.jump(0)
    first = stalled.check()
    check_ejection_ends(world, began)
    stalled = Stalled(world.routers)
    world.jump(DAY)
    took: list[Any] = [*first, *stalled.check()]
    print(f"R30: first-byte limit of {FIRST_BYTE:.0f} s over jumps: at most {max(took):.2f} s")
    check_stored_times(world)
    check_the_dead_expire(world)
    check_restarts(world.crasher)
