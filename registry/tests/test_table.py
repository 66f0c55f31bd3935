import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from infinilm_registry.entry import LeaseTerms, ProbeRecord, ProbeResult
from infinilm_registry.service import Service
from infinilm_registry.table import ServiceTable
from infinilm_registry.watch import Watch

MakeService = Callable[..., Service]


class World:
    """A table on a clock that moves in steps of a second, with services that beat every 10 s."""

    def __init__(self, clock: Any, make: MakeService) -> None:
        self.clock = clock
        self.make = make
        self.watch = Watch(0)
        self.table = ServiceTable(LeaseTerms(), self.watch, clock)

    def add(self, *names: str, interval: float | None = 10) -> None:
        self.table.publish({name: self.make(name, heartbeat_interval=interval) for name in names})

    def live(self, seconds: int, beating: Iterable[str] = (), every: int = 10) -> None:
        """Let time pass; the k-th of `beating` sends at its own second of the interval."""
        phases = {name: index % every for index, name in enumerate(beating)}
        for second in range(seconds):
            self.clock.pass_by(1)
            for name, phase in phases.items():
                if second % every == phase:
                    self.table.renew(name)
            self.table.refresh()

    def probe(self, *names: str, result: ProbeResult, times: int = 3) -> None:
        for _ in range(times):
            for name in names:
                entry = self.table.find(name)
                assert entry
                self.table.record_probe(entry.service, result)

    def healthy(self) -> set[str]:
        return {entry.service.name for entry in self.table.entries() if entry.is_healthy}

    def stale(self) -> set[str]:
        return {e.service.name for e in self.table.entries() if e.as_json()["stale"]}


@pytest.fixture
def world(clock: Any, service: MakeService) -> World:
    async def make() -> World:
        return World(clock, service)

    return asyncio.run(make())


def names(count: int) -> list[str]:
    return [f"e{number}" for number in range(count)]


def test_a_lease_ends_three_intervals_and_five_seconds_after_the_last_heartbeat(
    world: World,
) -> None:
    world.add("e", interval=10)
    world.clock.pass_by(34.9)
    assert world.healthy() == {"e"}
    world.clock.pass_by(0.1)
    assert world.healthy() == set()


def test_a_renewed_lease_lasts_as_long_as_the_first_one(world: World) -> None:
    world.add("e", interval=None)
    world.clock.pass_by(100)
    world.table.renew("e")
    world.clock.pass_by(119.9)
    assert world.healthy() == {"e"}
    world.clock.pass_by(0.1)
    assert world.healthy() == set()


def test_a_silent_service_is_removable_after_300_s_and_not_before(world: World) -> None:
    world.add("e", interval=None)
    world.clock.pass_by(299.9)
    assert world.table.removable() == []
    world.clock.pass_by(0.1)
    assert [service.name for service in world.table.removable()] == ["e"]


def test_nothing_is_removable_before_its_own_lease_ends(world: World) -> None:
    world.add("e", interval=1000)
    world.clock.pass_by(3004)
    assert world.table.removable() == []
    world.clock.pass_by(1)
    assert [service.name for service in world.table.removable()] == ["e"]


@pytest.mark.parametrize("jump", [3600, -3600, 86_400])
def test_r30_a_jump_of_the_wall_clock_expires_nobody(
    world: World, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add(*names(3))
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump)
    world.live(300, names(3))
    assert world.healthy() == set(names(3))


def test_r29_one_silent_of_twenty_is_expired_at_its_ttl_and_removed(world: World) -> None:
    world.add(*names(20))
    world.live(100, names(20))
    # e19 beat last at second 99.
    world.live(33, names(19))
    assert world.healthy() == set(names(20))
    world.live(2, names(19))
    assert world.healthy() == set(names(19))
    world.live(300, names(19))
    assert [service.name for service in world.table.removable()] == ["e19"]


@pytest.mark.parametrize("silent", [4, 6, 12, 19, 20])
def test_r29_many_silent_of_twenty_become_stale_and_stay(world: World, silent: int) -> None:
    world.add(*names(20))
    world.live(100, names(20))
    lost, kept = names(20)[:silent], names(20)[silent:]
    world.live(300, kept)
    assert world.healthy() == set(names(20))
    assert world.stale() == set(lost)
    world.live(400, kept)
    assert world.table.removable() == []
    world.live(10, names(20))
    assert world.stale() == set()


@pytest.mark.parametrize("fleet", [4, 5, 6, 7, 12])
def test_r29_the_only_silent_sender_of_a_small_fleet_is_expired_at_its_ttl(
    world: World, fleet: int
) -> None:
    world.add(*names(fleet))
    world.live(100, names(fleet))
    alive = names(fleet)[:-1]
    world.live(36 + fleet, alive)
    assert world.healthy() == set(alive)
    assert world.stale() == set()
    world.live(300, alive)
    assert [service.name for service in world.table.removable()] == [names(fleet)[-1]]


def test_r29_a_babysitter_and_its_engine_are_one_sender(world: World) -> None:
    machines = [(f"b{n}", f"b{n}-server") for n in range(3)]
    for pair in machines:
        same = {"heartbeat_interval": 10, "instance_id": pair[0]}
        world.table.publish({name: world.make(name, **same) for name in pair})
    alive = [*machines[0], *machines[1]]
    world.live(100, [*alive, *machines[2]])
    world.live(45, alive)
    assert world.healthy() == set(alive)


@pytest.mark.parametrize("fleet", [4, 6, 12])
def test_r29_two_silent_senders_of_a_small_fleet_are_stale(world: World, fleet: int) -> None:
    world.add(*names(fleet))
    world.live(100, names(fleet))
    world.live(300, names(fleet)[2:])
    assert world.healthy() == set(names(fleet))
    assert world.stale() == set(names(2))


def test_r29_a_registry_that_hears_nobody_gives_up_nobody(world: World) -> None:
    pairs = {f"{kind}{n}": f"i{n}" for n in range(2) for kind in ("own", "engine")}
    for name, instance in pairs.items():
        world.table.publish({name: world.make(name, heartbeat_interval=10, instance_id=instance)})
    world.live(600)
    assert world.healthy() == world.stale() == set(pairs)


def test_r29_refused_probes_settle_that_a_stale_service_is_dead(world: World) -> None:
    world.add(*names(6))
    world.live(100, names(6))
    world.live(60, names(6)[2:])
    assert world.stale() == {"e0", "e1"}
    world.probe("e0", result=ProbeResult.REFUSED, times=2)
    assert world.stale() == {"e0", "e1"}
    world.probe("e0", result=ProbeResult.REFUSED, times=1)
    assert world.stale() == {"e1"}
    assert world.healthy() == set(names(6)[1:])
    # Only one is silent now, and gets a last lease.
    world.live(36, names(6)[2:])
    assert world.healthy() == set(names(6)[2:])


@pytest.mark.parametrize("result", [ProbeResult.BAD, ProbeResult.SILENT])
def test_r29_a_stale_service_stays_listed_whatever_else_its_probes_say(
    world: World, result: ProbeResult
) -> None:
    world.add(*names(6))
    world.live(60, names(3))
    world.probe(*names(6)[3:], result=result, times=9)
    assert world.stale() == set(names(6)[3:])
    # Who answers badly is not healthy, but lives; of the unanswered we know nothing.
    known_bad = set(names(6)[3:]) if result is ProbeResult.BAD else set()
    assert world.healthy() == set(names(6)) - known_bad


def test_r29_probes_that_all_come_to_nothing_are_the_network_too(world: World) -> None:
    """Heartbeats arrive, but the registry reaches nobody: a firewall, or an overloaded machine."""
    world.add(*names(10))
    for _ in range(3):
        world.live(10, names(10))
        world.probe(*names(10), result=ProbeResult.SILENT, times=1)
    assert world.healthy() == set(names(10))
    assert world.stale() == set(names(10))
    world.live(60, names(10))
    assert world.healthy() == set(names(10))
    world.probe(*names(5), result=ProbeResult.GOOD, times=1)
    world.probe(*names(10)[5:], result=ProbeResult.BAD, times=1)
    assert world.healthy() == set(names(10)), "one result takes nobody down"
    assert world.stale() == set()


def test_r29_probes_that_one_alone_leaves_unanswered_take_it_down(world: World) -> None:
    world.add(*names(10))
    world.live(10, names(10))
    world.probe("e3", result=ProbeResult.SILENT)
    world.live(60, names(10))
    world.table.publish({"e3": world.make("e3", heartbeat_interval=10, weight=7)})
    assert world.healthy() == set(names(10)) - {"e3"}
    assert world.stale() == set()
    world.probe("e3", result=ProbeResult.GOOD, times=2)
    assert world.healthy() == set(names(10))


def test_r29_healing_expires_nobody_on_the_way(world: World) -> None:
    world.add(*names(20))
    world.live(100, names(20))
    world.live(120, names(20)[12:])
    for back in range(12, -1, -1):  # one more is heard each second
        world.live(1, names(20)[back:], every=1)
        assert world.healthy() == set(names(20))
    assert world.stale() == set()


@pytest.mark.parametrize("answered", [True, False], ids=["probe answered", "not yet"])
def test_r29_who_is_heard_when_the_trouble_ends_needs_no_second_heartbeat(
    world: World, answered: bool
) -> None:
    world.add(*names(20))
    world.live(100, names(20))
    world.live(60, names(20)[12:])
    world.probe(*names(12), result=ProbeResult.SILENT)
    world.live(1, names(20), every=1)
    assert world.stale() == set(names(12)), "do we reach them?"
    world.probe(*names(12)[not answered :], result=ProbeResult.GOOD, times=1)
    world.live(1)
    assert world.stale() == set()
    assert world.healthy() == set(names(20))


def test_r29_who_was_given_up_before_the_trouble_is_not_removed_in_it(world: World) -> None:
    world.add(*names(20))
    world.live(60, names(20)[1:])
    assert world.healthy() == set(names(20)[1:])
    world.live(400, names(20)[13:])
    assert world.stale() == set(names(20)[1:13])
    assert world.table.removable() == [], "what looks dead now may only be cut off"
    world.live(20, names(20)[1:])
    assert [service.name for service in world.table.removable()] == ["e0"]


def test_r29_lossy_heartbeats_expire_nobody(world: World) -> None:
    dice = random.Random(29)
    world.add(*names(20))
    for _ in range(600):
        world.live(1, [name for name in names(20) if dice.random() < 0.05])
    assert world.healthy() == set(names(20))


def test_r29_deaths_one_after_the_other_are_deaths(world: World) -> None:
    world.add(*names(12))
    alive = names(12)
    while len(alive) > 7:
        world.live(100, alive)
        alive.pop()
    world.live(100, alive)
    assert world.healthy() == set(alive)


def test_below_four_services_each_counts_for_itself(world: World) -> None:
    world.add(*names(3))
    world.live(40)
    assert world.healthy() == set()


def test_the_stale_are_expired_when_heartbeats_are_regular_again(world: World) -> None:
    world.add(*names(10))
    world.live(50, names(10))
    world.live(100, names(6))
    assert world.stale() == set(names(10)[6:])
    world.live(30, names(9))
    # As after a restart, e9 gets a full lease in which to be heard.
    assert world.healthy() == set(names(10))
    assert world.stale() == {"e9"}
    world.live(35, names(9))
    assert world.healthy() == set(names(9))
    assert world.stale() == set()


def test_three_failures_take_down_and_two_successes_bring_back() -> None:
    record, seen = ProbeRecord(), []
    good, fails = ProbeResult.GOOD, (ProbeResult.BAD, ProbeResult.SILENT, ProbeResult.REFUSED)
    for result in (*fails[:2], good, *fails, good, fails[0], good, good):
        record = record.after(result)
        seen.append(record.down)
    assert seen == [False] * 5 + [True] * 4 + [False]


def test_the_revision_moves_with_the_answer_and_not_with_heartbeats(world: World) -> None:
    def moved(action: Callable[[], object]) -> bool:
        before = world.watch.revision
        action()
        return world.watch.revision != before

    def probe(result: ProbeResult) -> None:
        world.probe("e", result=result, times=1)

    def change(**fields: Any) -> None:
        world.table.publish({"e": world.make("e", heartbeat_interval=10, **fields)})

    assert moved(lambda: world.add("e"))
    assert not moved(lambda: world.live(30, ["e"]))
    assert moved(lambda: change(status="draining"))
    assert moved(lambda: change(weight=2))
    assert moved(lambda: change(metadata={"models": ["m"]}))
    assert moved(lambda: change(port=1003))
    assert not moved(lambda: probe(ProbeResult.BAD))
    assert not moved(lambda: probe(ProbeResult.BAD))
    assert moved(lambda: probe(ProbeResult.BAD))
    assert not moved(lambda: probe(ProbeResult.GOOD))
    assert moved(lambda: probe(ProbeResult.GOOD))
    assert moved(lambda: world.live(36))
    assert not moved(lambda: world.live(100))
    assert moved(lambda: world.table.renew("e"))
    assert moved(lambda: world.table.publish({"e": None}))


def test_a_probe_of_a_replaced_registration_counts_for_nothing(world: World) -> None:
    world.add("e")
    old = world.table.find("e")
    assert old
    world.table.publish({"e": world.make("e", generation=2)})
    for _ in range(3):
        world.table.record_probe(old.service, ProbeResult.BAD)
    assert world.healthy() == {"e"}


@pytest.mark.parametrize("status", ["draining", "starting", "stopped"])
def test_only_running_services_are_healthy(world: World, status: str) -> None:
    world.table.publish({"e": world.make("e", status=status)})
    assert world.healthy() == set()
