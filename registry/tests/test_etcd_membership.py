"""Two memberships in one process, on one real member of etcd, with faults before it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infinilm_registry import commands
from infinilm_registry.entry import LeaseTerms, Liveness
from infinilm_registry.errors import (
    InstanceMismatchError,
    NotRegisteredError,
    RegistryFullError,
    StoreError,
)
from infinilm_registry.etcd.membership import EtcdMembership
from infinilm_registry.etcd.place import Place
from infinilm_registry.etcd.revision import SharedWatch
from infinilm_registry.etcd.sync import Pace
from infinilm_registry.service import ANYBODY, Sender, Service
from infinilm_registry.table import ServiceTable
from rig.etcd_cluster import Cluster, etcd_cluster, text
from rig.etcd_proxy import EtcdProxy
from rig.farm import Farm, farm
from rig.processes import programs

TXN, WATCH = "/v3/kv/txn", "/v3/watch"
CALM = Pace(check=0.1, compare=3600, stale_after=60, retry=0.05)
MakeService = Callable[..., Service]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("etcd")
    with programs() as run, etcd_cluster(run, folder, size=1) as cluster:
        yield cluster


@pytest.fixture
def fakes() -> Iterator[Farm]:
    with farm() as made:
        yield made


@pytest.fixture
def proxy(fakes: Farm, etcd: Cluster) -> EtcdProxy:
    return fakes.etcd_proxy(etcd.members[0].port)


class View:
    """One registry's insides."""

    def __init__(self, place: Place, pace: Pace = CALM, terms: LeaseTerms | None = None) -> None:
        self.watch = SharedWatch()
        self.table = ServiceTable(terms or LeaseTerms(), self.watch)
        self.members = EtcdMembership(place, self.table, (), pace)
        self.watch.follow(self.members.picture)

    @property
    def names(self) -> list[str]:
        return sorted(entry.service.name for entry in self.table.entries())

    async def register(self, service: Service) -> Service:
        return await self.members.submit(commands.register(service, 1000))

    async def remove(self, name: str, sender: Sender = ANYBODY) -> Service:
        return await self.members.submit(commands.remove(name, sender))


async def until(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(view: View) -> Any:
    await view.members.load()
    working = asyncio.create_task(view.members.run())
    try:
        yield view
    finally:
        view.members.close()
        await working
        await view.members.release()


class World:
    """Views on a cluster of registries that no other test uses."""

    def __init__(self, etcd: Cluster, cluster: str) -> None:
        self.etcd, self.cluster = etcd, cluster
        self.stack = AsyncExitStack()

    async def view(self, *ports: int, **options: Any) -> View:
        """A registry that asks at these ports: first of all the first."""
        urls = [f"http://127.0.0.1:{port}" for port in ports or (self.etcd.members[0].port,)]
        view = View(Place(tuple(urls), self.cluster), **options)
        return await self.stack.enter_async_context(running(view))

    def stored(self) -> set[str]:
        prefix = f"/infinilm/{self.cluster}/services/"
        return {key.removeprefix(prefix) for key in self.etcd.read(prefix)}


Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(etcd: Cluster, request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    def run(scenario: Scenario) -> None:
        async def inner() -> None:
            world = World(etcd, f"c{abs(hash(request.node.name))}")
            async with world.stack:
                await scenario(world)

        asyncio.run(inner())

    return run


Play = Callable[[Scenario], None]


def test_what_one_stores_the_other_sees_and_both_number_it_alike(
    play: Play, service: MakeService
) -> None:
    async def scenario(world: World) -> None:
        east, west = await world.view(), await world.view()
        for number in range(3):
            await (east, west)[number % 2].register(service(f"e{number}"))
        await until(lambda: east.names == west.names == ["e0", "e1", "e2"], "both see all")
        assert east.watch.revision == west.watch.revision
        late = await world.view()
        assert late.names == ["e0", "e1", "e2"]
        before = east.watch.revision
        await west.remove("e1")
        await until(lambda: east.names == late.names == ["e0", "e2"], "removed everywhere")
        assert east.watch.revision == west.watch.revision == late.watch.revision > before
        assert world.stored() == {"e0", "e2"}

    play(scenario)


def test_rules_of_instances_hold_although_a_registry_has_not_heard_yet(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        east, deaf = await world.view(), await world.view(proxy.port)
        await until(lambda: proxy.passed.get(WATCH), "it watches")
        proxy.faults.lost_key = Place(("",), world.cluster).service_key("engine")
        first = await east.register(service(instance_id="old"))
        await until(lambda: proxy.lost, "an event is lost")
        assert deaf.names == []
        await deaf.members.submit(commands.update("engine", {"weight": 3}, Sender("old")))
        with pytest.raises(InstanceMismatchError):
            await deaf.remove("engine", Sender("stranger"))
        # It has not heard of what others store, and yet its registrations are the next ones.
        second = await deaf.register(service(instance_id="new"))
        assert (first.generation, second.generation) == (1, 2)
        third = await east.register(service(instance_id="newest"))
        assert third.generation == 3
        with pytest.raises(InstanceMismatchError):
            await deaf.remove("engine", Sender("new"))
        await deaf.members.submit(commands.update("engine", {"weight": 7}, Sender("newest")))
        await east.remove("engine", Sender("newest"))
        with pytest.raises(NotRegisteredError):
            await deaf.remove("engine", Sender("newest"))

    play(scenario)


def test_many_at_once_on_one_name_are_as_many_generations(play: Play, service: MakeService) -> None:
    async def scenario(world: World) -> None:
        views = [await world.view(), await world.view()]
        tasks = [views[n % 2].register(service(instance_id=f"i{n}")) for n in range(20)]
        generations = {stored.generation for stored in await asyncio.gather(*tasks)}
        assert generations == set(range(1, 21))

    play(scenario)


def test_a_full_registry_is_full_for_all(play: Play, service: MakeService) -> None:
    async def scenario(world: World) -> None:
        east, west = await world.view(), await world.view()
        await east.register(service("e0"))
        await until(lambda: west.names == ["e0"], "seen")
        with pytest.raises(RegistryFullError):
            await west.members.submit(commands.register(service("e1"), 1))

    play(scenario)


def test_a_write_whose_answer_is_lost_was_made_and_is_not_made_again(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        member = world.etcd.members[0].port
        view = await world.view(proxy.port, member)
        proxy.faults.unanswered = TXN
        stored = await view.register(service(instance_id="i"))
        assert stored.generation == 1
        assert view.names == ["engine"]
        # The lease of the first attempt was revoked; the service has another one at once.
        await until(lambda: view.members.picture.lease_of("engine"), "a lease")
        # The client has moved to the member itself; back to the proxy for the removal.
        view.members._client._endpoints.reverse()
        await view.remove("engine", Sender("i"))
        assert view.names == []
        assert world.stored() == set()
        assert proxy.passed[TXN] >= 2

    play(scenario)


def test_a_registration_that_arrives_when_it_has_been_removed_does_not_come_back(
    play: Play, service: MakeService, proxy: EtcdProxy, fakes: Farm
) -> None:
    async def scenario(world: World) -> None:
        member = world.etcd.members[0].port
        view, other = await world.view(proxy.port, member), await world.view()
        proxy.faults.hold = TXN  # as in a member that was stopped with the request in its buffers
        await view.register(service())
        assert proxy.held == 1
        await view.remove("engine")
        passed = proxy.passed.get(TXN, 0)
        await asyncio.to_thread(fakes.call, proxy.release())
        await until(lambda: proxy.passed.get(TXN, 0) > passed, "the old request has arrived")
        await other.register(service("after"))
        assert world.stored() == {"after"}
        await until(lambda: view.names == ["after"], "seen")

    play(scenario)


def test_a_lost_event_is_repaired_by_the_next_whole_read(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        east = await world.view()
        deaf = await world.view(proxy.port, pace=replace(CALM, compare=1.0))
        await east.register(service("e0"))
        await until(lambda: deaf.names == ["e0"], "heard")
        proxy.faults.lost_key = Place(("",), world.cluster).service_key("e0")
        await east.remove("e0")
        await until(lambda: proxy.lost, "an event is lost")
        wrong = deaf.watch.revision
        await until(lambda: deaf.names == [], "repaired")
        assert deaf.watch.revision != wrong

    play(scenario)


def test_a_number_stands_for_one_list_only_though_registries_differ_in_what_they_think(
    play: Play, service: MakeService
) -> None:
    async def scenario(world: World) -> None:
        east, west = await world.view(), await world.view()
        await east.register(service("e0"))
        await east.register(service("e1"))
        await until(lambda: west.names == ["e0", "e1"], "seen")
        together = east.watch.revision
        for view, name in ((east, "e0"), (west, "e1")):
            entry = view.table.find(name)
            assert entry
            view.table._mark([entry], Liveness.EXPIRED)
        assert len({together, east.watch.revision, west.watch.revision}) == 3
        east.table.renew("e0")
        assert east.watch.revision == together

    play(scenario)


def test_a_heartbeat_anywhere_keeps_a_service_alive_everywhere(
    play: Play, service: MakeService
) -> None:
    async def scenario(world: World) -> None:
        terms = LeaseTerms(heartbeat_timeout=4.5, removal_timeout=9.0)  # a lease of 3 s in etcd
        east, west = await world.view(terms=terms), await world.view(terms=terms)
        await east.register(service())
        await until(lambda: west.names == ["engine"], "seen")
        for _ in range(10):  # for longer than the limit
            west.table.renew("engine")
            await asyncio.sleep(0.6)
            assert [e.liveness for e in east.table.entries()] == [Liveness.FRESH]
        expired = [Liveness.EXPIRED]
        await until(lambda: [e.liveness for e in east.table.entries()] == expired, "given up")
        await until(lambda: [e.liveness for e in west.table.entries()] == expired, "by both")
        west.table.renew("engine")  # its lease is gone, and it gets another one
        await until(
            lambda: [e.liveness for e in east.table.entries()] == [Liveness.FRESH], "back again"
        )

    play(scenario)


def test_a_lease_that_ended_unheard_is_replaced_at_the_next_heartbeat(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        east, deaf = await world.view(), await world.view(proxy.port)
        await until(lambda: proxy.passed.get(WATCH), "it watches")
        await deaf.register(service())
        proxy.faults.lost_key = Place(("",), world.cluster).alive_key("engine")
        lease = deaf.members.picture.lease_of("engine")
        assert lease
        await east.members._leases.revoke(lease)
        await until(lambda: proxy.lost, "the end of the lease is not told")
        assert deaf.members.picture.lease_of("engine") == lease
        deaf.table.renew("engine")  # etcd answers a keep-alive of a dead lease with 200 as well
        await until(lambda: east.members.picture.lease_of("engine"), "another lease")

    play(scenario)


def test_clean_up_spares_who_was_heard_elsewhere(play: Play, service: MakeService) -> None:
    async def scenario(world: World) -> None:
        east, west = await world.view(), await world.view()
        stored = await east.register(service())
        await until(lambda: west.names == ["engine"], "seen")
        west.table.is_silent = lambda _: True  # type: ignore[method-assign]
        (entry,) = west.table.entries()
        with pytest.raises(NotRegisteredError):
            await west.members.remove_silent(entry.service)
        assert world.stored() == {stored.name}
        lease = west.members.picture.lease_of("engine")
        assert lease
        await west.members._leases.revoke(lease)
        await west.members.remove_silent(entry.service)
        await until(lambda: east.names == [], "removed")

    play(scenario)


def test_without_etcd_reads_go_on_and_writes_are_refused_until_it_is_back(
    play: Play, service: MakeService, fakes: Farm
) -> None:
    async def scenario(world: World) -> None:
        relay = fakes.relay(world.etcd.members[0].port)
        view = await world.view(relay.port, pace=replace(CALM, stale_after=1.0))
        stored = await view.register(service(instance_id="i", heartbeat_interval=0.1))
        await asyncio.to_thread(fakes.call, relay.close())
        await until(lambda: view.members.down, "noticed")
        assert view.members.degraded_reason
        assert view.names == ["engine"]
        assert [entry.is_healthy for entry in view.table.entries()] == [True]
        for refused in (view.register(service("new")), view.remove("engine")):
            with pytest.raises(StoreError):
                await refused
        with pytest.raises(StoreError):
            await view.members.confirm("unknown")
        lease = view.members.picture.lease_of("engine")
        view.table.renew("engine")
        await asyncio.to_thread(fakes.call, relay.start(relay.port))
        await until(lambda: not view.members.down, "back")
        assert view.members.degraded_reason is None
        assert [e.liveness for e in view.table.entries()] == [Liveness.FRESH]
        assert view.members.picture.lease_of("engine") == lease
        assert (await view.register(service(instance_id="j"))).generation == stored.generation + 1

    play(scenario)


def test_a_registry_that_begins_without_etcd_says_that_it_knows_nothing(
    play: Play, service: MakeService, fakes: Farm
) -> None:
    async def scenario(world: World) -> None:
        other = await world.view()
        await other.register(service())
        relay = fakes.relay(world.etcd.members[0].port)
        port = relay.port
        await asyncio.to_thread(fakes.call, relay.close())
        view = await world.view(port)
        assert (view.members.known, view.members.down) == (False, True)
        await asyncio.to_thread(fakes.call, relay.start(port))
        await until(lambda: view.members.known, "read")
        assert view.names == ["engine"]
        assert not view.members.down

    play(scenario)


def test_garbage_in_etcd_is_left_out_and_can_be_replaced(play: Play, service: MakeService) -> None:
    async def scenario(world: World) -> None:
        key = Place(("",), world.cluster).service_key("engine")
        put = {"key": text(key), "value": text('{"name": "engine"}')}
        await asyncio.to_thread(world.etcd.call, "/kv/put", **put)
        view = await world.view()
        assert view.names == []
        await view.register(service())
        assert view.names == ["engine"]
        await asyncio.to_thread(world.etcd.call, "/kv/put", **put)
        await until(lambda: view.names == [], "left out again")

    play(scenario)
