"""R2 and R3: traffic does not notice that the registry is gone, and engines are found again."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.flows import closed_loop
from rig.load_client import Call, chat_call, kinds
from rig.processes import free_port, wait_until
from rig.routers import SLOW, Router, StartRouter
from rig.system import System, running_system
from rig.traffic import Traffic

RATE = 20
ROOM = 10  # seconds that a start may take longer on a loaded machine


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as made:
        yield made


@pytest.fixture
def system(shared: System) -> System:
    """Whole again, whatever the test before did to its registry."""
    shared.wait_whole()
    return shared


def call(number: int) -> Call:
    return chat_call(stream=number % 2 == 0, max_tokens=5)


def healthy_engines(router: Router) -> set[str]:
    """The engines that the router would send requests to."""
    services = router.get("/stats")["services"]
    engines = [s for s in services if s["metadata"].get("type") == "openai-api"]
    return {engine["name"] for engine in engines if engine["healthy"]}


def smallest_set(router: Router, seconds: float) -> int:
    """The least number of engines that the router knows as healthy within some seconds."""
    until, least = time.monotonic() + seconds, 99
    while time.monotonic() < until:
        least = min(least, len(healthy_engines(router)))
        time.sleep(0.05)  # between two looks
    return least


@pytest.mark.parametrize(
    ("before", "down", "grace"), [(0.5, 3.0, 1.0), pytest.param(20.0, 90.0, 60.0, marks=SLOW)]
)
def test_r02_a_registry_killed_and_restarted_empty_fails_no_request(
    start: StartRouter,
    system: System,
    *,
    before: float,
    down: float,
    grace: float,
) -> None:
    flags = {"registry-url": system.registry.url, "service-removal-grace-period": grace}
    router = start(flags=flags, healthy="2/2")
    traffic = Traffic(router.url, RATE, call)
    least = smallest_set(router, before)
    system.registry.program.kill()
    least = min(least, smallest_set(router, down))
    system.registry.start()
    wait_until(lambda: system.engine_names <= system.registry.names(), 15, "engines listed again")
    least = min(least, smallest_set(router, grace + before / 2))
    outcomes = traffic.end()
    assert kinds(outcomes) == {"ok": len(outcomes)}, [o.fault for o in outcomes if o.kind != "ok"]
    assert len(outcomes) >= RATE * (before + down + grace)
    assert least == 2
    print(f"R2 {router.name}: {len(outcomes)} requests, {down:.0f} s without a registry, 0 failed")


def test_r02_a_router_started_while_the_registry_is_down_serves_its_last_list(
    start: StartRouter, system: System, tmp_path: Path
) -> None:
    flags = {"registry-url": system.registry.url, "router-port": free_port()}
    first = start(flags=flags, healthy="2/2")
    wait_until(lambda: list(tmp_path.glob("router_last_services_*.json")), 5, "list saved")
    first.program.kill()
    system.registry.program.kill()
    began = time.monotonic()
    again = start(flags=flags, healthy="2/2")
    took = time.monotonic() - began
    assert took < 2 + ROOM
    print(
        f"R2 {again.name}: restarted without a registry, serves its saved list after {took:.2f} s"
    )
    outcomes = closed_loop(again.url, [chat_call(max_tokens=5)] * 20, 4)
    assert kinds(outcomes) == {"ok": 20}
    assert healthy_engines(again) == system.engine_names


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=SLOW)])
def test_r03_a_running_engine_is_always_found_again(
    start: StartRouter, system: System, rounds: int
) -> None:
    before = {name: system.registry.entry(name) for name in system.engine_names}
    router = start(flags={"registry-url": system.registry.url}, healthy="2/2")
    for number in range(rounds):
        if number % 2:
            system.registry.program.kill()
            system.registry.start()
        else:
            system.registry.delete(system.sitters[0].engine_name)
        wait_until(lambda: system.engine_names <= system.registry.names(), 5, f"round {number}")
        after = {name: system.registry.entry(name) for name in system.engine_names}
        assert [facts(after[name]) for name in sorted(after)] == [
            facts(before[name]) for name in sorted(before)
        ]
    router.wait_healthy("2/2")
    print(f"R3 {router.name}: {rounds} of {rounds} rounds, found again with the same facts")


def facts(entry: dict[str, object]) -> dict[str, object]:
    """What must be the same after a new registration."""
    same = ("name", "host", "port", "url", "status", "metadata", "weight")
    return {key: entry[key] for key in same}
