"""R28, R29 on a real process, with leases of a second or two instead of minutes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rig.processes import wait_until
from rig.wall_clock import WallClock

Body = Callable[..., dict[str, Any]]
TTL = 1.5
LEASES = ("--heartbeat-timeout", str(TTL), "--removal-timeout", str(2 * TTL))
QUICK = (*LEASES, "--cleanup-interval", "0.1", "--write-rate", "10000")


@contextmanager
def heartbeats(url: str, names: list[str], every: float = TTL / 8) -> Iterator[None]:
    """Every name beats once in so many seconds (and the time that it takes)."""
    stop = threading.Event()

    def beat() -> (
        None
    ):  # 50 in a fraction of a lease: requests would take too long on a busy machine
        with closing(HTTPConnection(urlsplit(url).netloc, timeout=9)) as registry:
            while not stop.wait(every):
                for name in names:
                    registry.request("POST", f"/services/{name}/heartbeat")
                    registry.getresponse().read()

    sender = threading.Thread(target=beat)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join(20)


def healthy_until(registry: Any, moment: float) -> set[frozenset[str]]:
    """Every set of healthy services that was listed until the monotonic `moment`."""
    seen = set()
    while time.monotonic() < moment:
        seen.add(frozenset(registry.names("?healthy=true")))
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize(
    "interval",
    [pytest.param(None, id="scaled"), pytest.param(10, marks=pytest.mark.slow, id="defaults")],
)
def test_r28_a_restart_expires_nobody_for_one_ttl_and_then_only_the_dead(
    start: Any, body: Body, tmp_path: Path, interval: float | None
) -> None:
    ttl, flags = (35, ("--write-rate", "10000")) if interval else (TTL, QUICK)
    store, clock = ("--store", tmp_path / "r.sqlite3"), WallClock(tmp_path)
    names = [f"e{n:02}" for n in range(50)]
    first = start(*flags, *store)
    for name in names:
        assert first.register(body(name, heartbeat_interval=interval)).status_code == 201
    first.program.kill()
    clock.set(600)  # all that a new process can know of an outage of ten minutes
    time.sleep(2.5 * TTL)  # and, scaled, one longer than every lease and the time until removal

    second = start(*flags, *store, env=clock.env)
    restarted = time.monotonic()
    assert second.names("?healthy=true") == set(names)
    alive = set(names[3:])
    with heartbeats(second.url, names[3:], ttl / 8):
        wait_until(lambda: second.names("?healthy=true") != set(names), ttl + 20, "an expiry")
        took = time.monotonic() - restarted
        assert took > 0.7 * ttl, "the leases began before it listened"
        wait_until(lambda: second.names("?healthy=true") == alive, what="expiry of the dead")
        if interval is None:
            wait_until(lambda: second.names() == alive, what="removal of the dead")
        assert healthy_until(second, time.monotonic() + TTL) == {frozenset(alive)}
    print(f"R28: 50 services, first expiry {took:.1f} s after the restart, a lease is {ttl} s")


def test_r28_generation_and_instance_survive_a_restart(
    start: Any, body: Body, tmp_path: Path
) -> None:
    store = ("--store", tmp_path / "r.sqlite3")
    first = start(*store)
    first.register(body(instance_id="old", metadata={"models": ["m"]}, heartbeat_interval=10))
    first.register(body(instance_id="new", metadata={"models": ["m"]}, heartbeat_interval=10))
    before = first.get("/services/engine")
    revision = first.get("/services")["revision"]
    first.program.kill()
    second = start(*store)
    after = second.get("/services/engine")
    moving = {"last_heartbeat"}
    assert {k: v for k, v in after.items() if k not in moving} == {
        k: v for k, v in before.items() if k not in moving
    }
    assert second.call("DELETE", "/services/engine?instance_id=old").status_code == 409
    assert second.call("POST", "/services/engine/heartbeat").json()["ttl"] == 35
    assert second.get("/services")["revision"] > revision


def test_r29_heartbeats_that_fail_in_masses_mark_stale_and_come_back(
    start: Any, body: Body
) -> None:
    registry = start(*QUICK)
    names = [f"e{n:02}" for n in range(20)]
    for name in names:
        registry.register(body(name))
    lost = set(names[:12])

    def stale() -> set[str]:
        services = registry.get("/services")["services"]
        return {service["name"] for service in services if service["stale"]}

    with heartbeats(registry.url, names[12:]):
        wait_until(lambda: stale() == lost, what="all silent ones stale")
        assert registry.get("/stats")["self_preservation"]["active"] is True
        # Longer than the time until removal, which would be 2 TTL.
        assert healthy_until(registry, time.monotonic() + 2 * TTL) == {frozenset(names)}
        assert stale() == lost
    with heartbeats(registry.url, names):
        wait_until(lambda: stale() == set(), what="healing")
        assert registry.get("/stats")["self_preservation"]["active"] is False


def test_a_silent_service_wakes_a_watcher_on_time(start: Any, body: Body) -> None:
    registry = start(*LEASES)
    registry.register(body())
    began = time.monotonic()
    revision = registry.get("/services")["revision"]
    answer = registry.call("GET", f"/services?healthy=true&since={revision}&wait=30")
    assert answer.json()["services"] == []
    assert time.monotonic() - began == pytest.approx(TTL, abs=1)


def test_a_removed_service_is_told_to_register_again(
    start: Any, body: Body, tmp_path: Path
) -> None:
    store = ("--store", tmp_path / "r.sqlite3")
    limits = ("--heartbeat-timeout", "0.2", "--removal-timeout", "0.3", "--cleanup-interval", "0.1")
    registry = start(*limits, *store)
    registry.register(body())
    wait_until(lambda: registry.names() == set())
    beat = registry.call("POST", "/services/engine/heartbeat")
    assert (beat.status_code, beat.json()["re_register"]) == (404, True)
    registry.program.kill()
    assert start(*store).names() == set()
