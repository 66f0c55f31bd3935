"""The table where several registries share a store: what others hear, and what nobody hears."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from infinilm_registry.entry import LeaseTerms, Liveness, ProbeResult
from infinilm_registry.etcd.picture import Picture, encode
from infinilm_registry.etcd.place import Place
from infinilm_registry.etcd.revision import SharedWatch
from infinilm_registry.etcd.wire import KeyValue
from infinilm_registry.handlers import Handlers
from infinilm_registry.membership import LocalMembership
from infinilm_registry.metrics import CallCounts
from infinilm_registry.service import Service
from infinilm_registry.store import MemoryStore
from infinilm_registry.table import ServiceTable
from infinilm_registry.watch import Watch

TTL = 35  # of services that beat every 10 s
SHARED_TTL = 24  # of their leases in the store
FULL = 300


class World:
    """A table on a clock of the test, with services whose leases others hold."""

    def __init__(self, clock: Any, make: Callable[..., Service]) -> None:
        self.clock, self.make = clock, make
        self.watch = Watch(0)
        self.table = ServiceTable(LeaseTerms(), self.watch, clock)

    def add(self, count: int) -> list[str]:
        names = [f"e{n:02}" for n in range(count)]
        self.table.publish({name: self.make(name, heartbeat_interval=10) for name in names})
        return names

    def live(self, seconds: int, held: Iterable[str] = ()) -> None:
        for _ in range(seconds):
            self.clock.pass_by(1)
            self.table.hear_elsewhere(held)
            self.table.refresh()

    def marked(self, liveness: Liveness) -> list[str]:
        return [e.service.name for e in self.table.entries() if e.liveness is liveness]


@pytest.fixture
def world(clock: Any, service: Callable[..., Service]) -> World:
    return World(clock, service)


def test_who_is_heard_elsewhere_lives_here_as_well(world: World) -> None:
    names = world.add(3)
    world.live(1000, held=names)
    assert world.marked(Liveness.FRESH) == names
    assert world.table.removable() == []


def test_the_last_heartbeat_is_never_shown_older_than_the_lease_allows(world: World) -> None:
    (name,) = world.add(1)
    entry = world.table.find(name)
    assert entry
    long_ago = entry.last_heartbeat - 1000
    world.table._entries[name] = entry.__class__(entry.service, entry.lease, long_ago)
    world.table.hear_elsewhere([name])
    shown = world.table.find(name)
    assert shown
    assert shown.last_heartbeat == pytest.approx(entry.last_heartbeat - SHARED_TTL, abs=1)


def test_a_lapsed_lease_leaves_the_rest_of_the_limit_and_then_of_the_time_to_removal(
    world: World,
) -> None:
    silent, *others = world.add(10)
    world.live(60, held=[silent, *others])
    world.table.lapse(silent)
    world.live(TTL - SHARED_TTL - 1, held=others)
    assert world.marked(Liveness.EXPIRED) == []
    world.live(1, held=others)
    assert world.marked(Liveness.EXPIRED) == [silent]
    world.live(FULL - TTL - 1, held=others)
    assert world.table.removable() == []
    world.live(1, held=others)
    assert [service.name for service in world.table.removable()] == [silent]


def test_leases_that_lapse_one_after_the_other_are_the_network_and_nobody_is_given_up(
    world: World,
) -> None:
    names = world.add(20)
    world.live(60, held=names)
    for count in range(12):  # their heartbeats were spread over an interval
        world.table.lapse(names[count])
        world.live(count % 2, held=names[count + 1 :])
    world.live(FULL, held=names[12:])
    assert world.marked(Liveness.EXPIRED) == []
    assert world.marked(Liveness.STALE) == names[:12]
    assert world.table.removable() == []
    world.live(2, held=names)
    assert world.marked(Liveness.FRESH) == names


def test_one_that_is_heard_again_before_it_is_given_up_has_a_full_limit(world: World) -> None:
    (name,) = world.add(1)
    world.table.lapse(name)
    world.table.renew(name)
    world.live(TTL - 1)
    assert world.marked(Liveness.FRESH) == [name]
    world.live(1)
    assert world.marked(Liveness.EXPIRED) == [name]


def test_a_stale_table_gives_up_nobody_and_wakes_watchers_once(world: World) -> None:
    names = world.add(3)
    before = world.watch.revision
    world.table.set_stale(stale=True)
    world.table.refresh()
    turned = world.watch.revision
    assert turned > before
    world.table.lapse(names[0])
    for _ in range(10):
        world.live(100)
        world.table.renew(names[1])
    assert world.marked(Liveness.STALE) == names
    assert all(entry.is_healthy for entry in world.table.entries())
    assert world.table.removable() == []
    assert world.watch.revision == turned


def test_after_a_stale_time_everything_has_a_full_lease(world: World) -> None:
    names = world.add(3)
    world.table.set_stale(stale=True)
    world.live(1000)
    world.table.set_stale(stale=False)
    assert world.marked(Liveness.FRESH) == names
    world.live(TTL - 1, held=names[1:])
    assert world.marked(Liveness.FRESH) == names
    world.live(1, held=names[1:])
    assert world.marked(Liveness.EXPIRED) == names[:1]


def test_who_was_given_up_before_a_stale_time_is_not_revived_by_it(world: World) -> None:
    dead, *held = world.add(5)
    world.live(TTL, held=held)
    assert world.marked(Liveness.EXPIRED) == [dead]
    world.table.set_stale(stale=True)
    world.live(10)
    assert world.marked(Liveness.EXPIRED) == [dead]
    world.table.set_stale(stale=False)
    assert world.marked(Liveness.EXPIRED) == [dead]


def test_probes_count_in_a_stale_time_too(world: World) -> None:
    (name,) = world.add(1)
    world.table.set_stale(stale=True)
    entry = world.table.find(name)
    assert entry
    for _ in range(3):
        world.table.record_probe(entry.service, ProbeResult.REFUSED)
    entry = world.table.find(name)
    assert entry
    assert not entry.is_healthy


def test_signs_of_life_that_reach_us_are_told(world: World) -> None:
    told: list[str] = []
    world.table.on_renewal = told.append
    (name,) = world.add(1)
    world.table.hear_elsewhere([name])
    assert told == []
    world.table.renew(name)
    assert told == [name]


@pytest.mark.parametrize("phase", range(10))
def test_a_list_is_never_older_than_its_number(service: Callable[..., Service], phase: int) -> None:
    """A second passes at each look at the clock: leases run out while lists are being made."""
    clock, place, watch = itertools.count().__next__, Place(("",)), SharedWatch()
    table = ServiceTable(LeaseTerms(), watch, clock)
    picture = Picture(place, table, ())
    watch.follow(picture)
    intervals = (10, 11, 12, 20, 21, 22, 40)  # some run out shortly after another one, one alone
    services = [service(f"e{n}", heartbeat_interval=each) for n, each in enumerate(intervals)]
    keys = [KeyValue(place.service_key(one.name), encode(one), 5, 5) for one in services]
    picture.take_all(keys, 5, 0)
    members: Any = LocalMembership(table, MemoryStore())
    nobody: Any = None
    handlers = Handlers(table, watch, members, nobody, (), 10, CallCounts())
    for _ in range(phase):
        clock()
    lists = []
    for _ in range(100):
        watch.advance()  # as after any change: the number is counted anew when it is asked for
        request = make_mocked_request("GET", "/services")
        answer: Any = asyncio.run(handlers.list_services(request))
        body, tag = json.loads(answer.text), int(answer.headers["ETag"][3:-1])
        lists.append([(each["is_healthy"], each["stale"]) for each in body["services"]])
        now, present = watch.revision, table._entries.values()
        if now in (tag, body["revision"]):
            assert lists[-1] == [(e.is_healthy, e.liveness is Liveness.STALE) for e in present]
        if now == tag:
            assert body["revision"] == tag, "no number of a list that was made before"
    assert lists[0] != lists[-1]
    assert body["revision"] == tag == watch.revision
