"""R29: a registry that loses the network takes nobody away; one engine that falls silent goes."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from rig.fake_engine import FakeEngine
from rig.farm import Farm, farm
from rig.load_client import Call, LoadClient, chat_call
from rig.namespaces import Host, network
from rig.processes import Programs, wait_until
from rig.routers import SLOW, Router, router_names
from rig.traffic import Traffic, faults

RATE = 10
WEST, EAST = 8, 12
STALE_PROBES = 5.5  # seconds at the most between a registry's probes of a stale service
ROOM = 1.0


@dataclass
class Site:
    """A host with engines; each of them sends heartbeats to the registry, as its babysitter would.

    Everything here runs on the host: the farm's thread was started there.
    """

    host: Host
    fakes: Farm
    engines: list[FakeEngine]
    beats: dict[str, asyncio.Task[None]]

    @property
    def names(self) -> set[str]:
        return {engine.name for engine in self.engines}

    def silence(self, name: str) -> None:
        """No heartbeat of this engine after the one that is under way."""
        self.fakes.call(_cancel(self.beats[name]))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _begin(url: str, names: list[str], interval: float) -> dict[str, asyncio.Task[None]]:
    return {name: asyncio.create_task(_beat(url, name, interval)) for name in names}


async def _beat(url: str, name: str, interval: float) -> None:
    client = LoadClient(url, timeout=1)
    call = Call(f"/services/{name}/heartbeat", b"{}")
    while True:
        began = time.monotonic()
        await client.send(call, began)
        await asyncio.sleep(began + interval - time.monotonic())


class World:
    """A registry, two sites of engines, all routers, and clients that ask them."""

    def __init__(self, run: Programs, folder: Path, interval: float, removal: float) -> None:
        self.run, self.folder, self.interval, self.removal = run, folder, interval, removal
        self.ttl = 3 * interval + 5
        self._stack = ExitStack()
        self.net = self._stack.enter_context(network("reg", "router", "client", "west", "east"))

    def build(self) -> None:
        """Start everything, in the order in which it needs each other."""
        self.url = self._start_registry()
        self.west, self.east = self._site("west", WEST), self._site("east", EAST)
        self.names = self.west.names | self.east.names
        self.routers = [self._start_router(name) for name in router_names()]
        for router in self.routers:
            with self.net["router"].inside():
                router.wait_healthy("20/20")
        with self.net["client"].inside():
            calls = [Traffic(r.url, RATE, lambda _: chat_call()) for r in self.routers]
        self.traffic = [self._stack.enter_context(traffic) for traffic in calls]

    def _start_registry(self) -> str:
        probes = max(1.0, self.interval)
        with self.net["reg"].inside():
            program = self.run.python(
                "registry/service_registry.py",
                *("--host", self.net["reg"].address, "--port", "0", "--store", "memory"),
                *("--heartbeat-timeout", str(min(self.removal, 120))),
                *("--removal-timeout", str(self.removal), "--cleanup-interval", "0.1"),
                *("--health-interval", str(probes), "--health-timeout", str(probes / 2)),
            )
            return program.wait_listening()

    def _start_router(self, name: str) -> Router:
        folder = self.folder / name
        folder.mkdir()
        flags = {
            "host": self.net["router"].address,
            "registry-url": self.url,
            "service-removal-grace-period": 0.5,
            "health-interval": 0.5,
            "state-dir": folder,
        }
        with self.net["router"].inside():
            return Router(self.run, name, flags)

    def _site(self, name: str, count: int) -> Site:
        host = self.net[name]
        with host.inside():
            fakes = self._stack.enter_context(farm())
            engines = [
                fakes.engine(f"{name}{number}", models=["m"], host=host.address)
                for number in range(count)
            ]
            for engine in engines:
                answer = requests.post(
                    f"{self.url}/services", json=registration(engine, self.interval), timeout=9
                )
                assert answer.status_code == 201, answer.text
        names = [engine.name for engine in engines]
        return Site(host, fakes, engines, fakes.call(_begin(self.url, names, self.interval)))

    def get(self, path: str) -> Any:
        """An answer of the registry, asked on its own host."""
        with self.net["reg"].inside():
            return requests.get(self.url + path, timeout=9).json()

    def listed(self, query: str = "") -> set[str]:
        return {service["name"] for service in self.get(f"/services{query}")["services"]}

    def stale(self) -> set[str]:
        return {s["name"] for s in self.get("/services")["services"] if s["stale"]}

    def healthy_in(self, router: Router) -> str:
        with self.net["router"].inside():
            return str(router.get("/health")["healthy_services"])

    def cut_east_off(self) -> None:
        """Nothing passes between the registry and the east; everybody else reaches both."""
        registry, east = self.net["reg"], self.net["east"]
        registry.drop(int(self.url.rpartition(":")[2]), east)
        for engine in self.east.engines:
            for port in (engine.port, engine.port + 1):
                east.drop(port, registry)

    def heal(self) -> None:
        self.net["reg"].clear()
        self.net["east"].clear()

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for `condition` while every service is listed as healthy; seconds that it took."""
        began = time.monotonic()

        def still() -> bool:
            assert self.listed("?healthy=true") == self.names, what
            return condition()

        wait_until(still, seconds, what, every=0.05)
        return time.monotonic() - began

    def close(self) -> None:
        self._stack.close()


def registration(engine: FakeEngine, interval: float) -> dict[str, Any]:
    host = engine.settings.host
    return {
        "name": engine.name,
        "host": host,
        "port": engine.port,
        "hostname": host,
        "url": f"http://{host}:{engine.port}",
        "status": "running",
        "metadata": {"type": "openai-api", "models": ["m"]},
        "heartbeat_interval": interval,
        "instance_id": engine.name,
    }


@contextmanager
def world(run: Programs, folder: Path, interval: float, removal: float) -> Iterator[World]:
    made = World(run, folder, interval, removal)
    try:
        made.build()
        yield made
    finally:
        made.close()


def check_trouble(world: World, hold: float) -> None:
    """12 of 20 are cut off: they are stale, listed, and judged by the routers' own probes."""
    world.cut_east_off()
    took = world.until(lambda: world.stale() == world.east.names, world.ttl + 20, "all stale")
    assert world.get("/stats")["self_preservation"]["active"] is True
    dead = world.east.engines[0]
    world.east.fakes.apply(dead, listening=False, sidecar=False)
    for router in world.routers:
        world.until(lambda r=router: world.healthy_in(r) == "19/20", 20, "own probes take it out")
    world.east.fakes.apply(dead, listening=True, sidecar=True)
    for router in world.routers:
        world.until(lambda r=router: world.healthy_in(r) == "20/20", 20, "and bring it back")
    over = time.monotonic() + hold
    world.until(lambda: time.monotonic() > over, hold + 20, "hold")
    assert world.stale() == world.east.names
    world.heal()
    healed = world.until(lambda: not world.stale(), 2 * world.interval + 20, "healed")
    print(f"R29: 12 of 20 cut off, all stale after {took:.1f} s, healed in {healed:.1f} s")
    assert healed <= max(world.interval, STALE_PROBES) + ROOM, "a heartbeat, and a probe"


def check_one_silent(world: World) -> None:
    """One of 20 falls silent: it is given up at the end of its lease."""
    silent = next(iter(world.west.names))
    world.west.silence(silent)
    began = time.monotonic()
    others = world.names - {silent}
    wait_until(
        lambda: world.listed("?healthy=true") == others, world.ttl + 20, "expiry of one", every=0.02
    )
    took = time.monotonic() - began
    assert took > world.ttl - world.interval - 1
    assert world.stale() == set()
    print(f"R29: 1 of 20 silent, expired after {took:.1f} s, its lease is {world.ttl:.1f} s")


@pytest.mark.parametrize(("interval", "removal"), [(0.2, 6), pytest.param(10, 300, marks=SLOW)])
def test_r29_a_partition_takes_nobody_away_and_one_that_is_silent_goes(
    run: Programs, tmp_path: Path, interval: float, removal: float
) -> None:
    with world(run, tmp_path, interval, removal) as made:
        check_trouble(made, hold=removal - (0 if interval > 1 else 2))
        check_one_silent(made)
        outcomes = [outcome for traffic in made.traffic for outcome in traffic.end()]
    assert faults(outcomes) == []
    print(f"R29: {len(outcomes)} requests through {len(made.routers)} routers, 0 failed")
