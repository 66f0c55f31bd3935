"""R3: a registry that forgot a whole fleet is told again, spread over time, by every babysitter."""

import asyncio
import time
from collections.abc import Mapping

import aiohttp
import pytest

from infinilm_babysitter.config import check_config
from infinilm_babysitter.registration import Registrar
from infinilm_babysitter.registry_client import Answer, RegistryClient
from rig.processes import Program, Programs, free_port

SLOW = (pytest.mark.slow, pytest.mark.timeout(300))
REGISTRY = "registry/service_registry.py"


class TimedClient(RegistryClient):
    """Notes when each registration was answered, and how long that took."""

    def __init__(self, session: aiohttp.ClientSession, url: str, grown: asyncio.Event) -> None:
        super().__init__(session, (url,))
        self.grown = grown
        self.registrations: list[tuple[float, float]] = []

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        within: float | None = None,
    ) -> Answer:
        began = time.monotonic()
        answer = await super().call(method, path, body, within=within)
        if (method, answer.status) == ("POST", 201):
            now = time.monotonic()
            self.registrations.append((now, now - began))
            self.grown.set()
        return answer


def registrar(client: TimedClient, number: int, url: str, interval: float) -> Registrar:
    raw = {
        "name": f"b{number}",
        "host": "127.0.0.1",
        "port": 10_000 + 2 * number,
        "registry_url": url,
        "babysitter": {"heartbeat_interval": interval},
        "backend": {"type": "mock", "models": ["m"]},
    }
    made = Registrar(check_config(raw, file="test"), client, f"i{number}")
    made.engine_ready(({"id": "m"},))
    return made


async def all_registered(clients: list[TimedClient], times: int, limit: float) -> None:
    """Each babysitter has registered itself and its engine so many times."""
    async with asyncio.timeout(limit):
        while any(len(client.registrations) < 2 * times for client in clients):
            clients[0].grown.clear()
            await clients[0].grown.wait()


async def forget(run: Programs, port: int, old: Program) -> Program:
    """The registry is killed and back at once, empty."""
    await asyncio.to_thread(old.kill)
    return await asyncio.to_thread(start_registry, run, port)


def start_registry(run: Programs, port: int) -> Program:
    quiet = ("--health-interval", "3600", "--store", "memory")
    registry = run.python(REGISTRY, "--host", "127.0.0.1", "--port", str(port), *quiet)
    registry.wait_listening()
    return registry


async def fleet(run: Programs, count: int, interval: float) -> list[tuple[float, float]]:
    """The second registration of every engine: seconds after the restart, and how long it took."""
    port = free_port()
    registry = start_registry(run, port)
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        grown = asyncio.Event()
        clients = [TimedClient(session, url, grown) for _ in range(count)]
        made = [registrar(client, n, url, interval) for n, client in enumerate(clients)]
        for each in made:
            each.start()
        try:
            await all_registered(clients, 1, 60)
            await forget(run, port, registry)
            back = time.monotonic()
            await all_registered(clients, 2, 60 + 2 * interval)
        finally:
            await asyncio.gather(*(each.close(10) for each in made))
    return [(at - back, took) for client in clients for at, took in client.registrations[2:3]]


@pytest.mark.parametrize(("count", "interval"), [(50, 5), pytest.param(500, 10, marks=SLOW)])
def test_r03_babysitters_started_together_do_not_come_back_together(
    run: Programs, count: int, interval: float
) -> None:
    again = asyncio.run(fleet(run, count, interval))
    assert len(again) == count
    times, durations = sorted(at for at, _ in again), sorted(took for _, took in again)
    spread, p99 = times[-1] - times[0], durations[int(0.99 * count)]
    assert spread > interval / 2
    print(
        f"R3: {count} babysitters with heartbeats of {interval} s registered again over "
        f"{spread:.1f} s, p99 of a registration {1000 * p99:.0f} ms"
    )
