"""Two memberships in one process, with faults between them and a real member of etcd."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from infinilm_registry import commands
from infinilm_registry.entry import Liveness
from infinilm_registry.errors import (
    InstanceMismatchError,
    NotRegisteredError,
    StoreError,
)
from infinilm_registry.etcd.place import Place
from infinilm_registry.service import Sender, Service
from rig.etcd_cluster import Cluster
from rig.etcd_proxy import EtcdProxy
from rig.etcd_views import CALM, Play, View, World, until
from rig.farm import Farm

MakeService = Callable[..., Service]
TXN, WATCH = "/v3/kv/txn", "/v3/watch"
GRANT, REVOKE, RANGE = "/v3/lease/grant", "/v3/lease/revoke", "/v3/kv/range"


@pytest.fixture
def proxy(fakes: Farm, etcd: Cluster) -> EtcdProxy:
    return fakes.etcd_proxy(etcd.members[0].port)


async def lose_a_registration(
    world: World, proxy: EtcdProxy, by: View, service: Service
) -> Service:
    """Register it; whoever watches through the proxy is not told."""
    await until(lambda: proxy.passed.get(WATCH), "it watches")
    proxy.faults.lost_key = Place(("",), world.cluster).service_key(service.name)
    stored = await by.register(service)
    await until(lambda: proxy.lost, "an event is lost")
    return stored


def test_rules_of_instances_hold_although_a_registry_has_not_heard_yet(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        east, deaf = await world.view(), await world.view(proxy.port)
        first = await lose_a_registration(world, proxy, east, service(instance_id="old"))
        assert deaf.names == []
        await deaf.members.submit(commands.update("engine", {"weight": 3}, Sender("old")))
        with pytest.raises(InstanceMismatchError):
            await deaf.remove("engine", Sender("stranger"))
        # It has not heard of what others store, and yet its registrations are the next ones.
        second = await deaf.register(service(instance_id="new"))
        third = await east.register(service(instance_id="newest"))
        generations = [each.generation - first.generation for each in (second, third)]
        assert generations == [1, 2]
        with pytest.raises(InstanceMismatchError):
            await deaf.remove("engine", Sender("new"))
        await deaf.members.submit(commands.update("engine", {"weight": 7}, Sender("newest")))
        await east.remove("engine", Sender("newest"))
        with pytest.raises(NotRegisteredError):
            await deaf.remove("engine", Sender("newest"))

    play(scenario)


def test_a_write_whose_answer_is_lost_was_made_and_is_not_made_again(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        member = world.etcd.members[0].port
        view = await world.view(proxy.port, member)
        proxy.faults.unanswered = TXN
        stored = await view.register(service(instance_id="i"))
        assert view.names == ["engine"]
        assert view.table.find("engine").service.generation == stored.generation
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


@pytest.mark.parametrize("revoking", [False, True])
def test_a_registration_whose_sender_left_does_not_come_back(
    play: Play, service: MakeService, proxy: EtcdProxy, fakes: Farm, revoking: bool
) -> None:
    async def scenario(world: World) -> None:
        view, other = await world.view(proxy.port), await world.view()
        view.members._client._seconds = 1.0
        proxy.faults.hold = TXN
        registering = asyncio.create_task(view.register(service()))
        await until(lambda: proxy.held == 1, "held")
        if revoking:  # it leaves when the answer was waited for in vain
            proxy.faults.hold = REVOKE
            await until(lambda: proxy.held == 2, "held as well")
            proxy.faults.hold = ""
        registering.cancel()
        await until(lambda: proxy.passed.get(REVOKE), "its lease is revoked")
        passed = proxy.passed.get(TXN, 0)
        await asyncio.to_thread(fakes.call, proxy.release())
        await until(lambda: proxy.passed.get(TXN, 0) > passed, "the old request has arrived")
        await other.register(service("after"))
        assert world.stored() == {"after"}

    play(scenario)


def test_a_registration_that_was_made_although_its_sender_left_lives_by_its_heartbeats(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        view = await world.view(proxy.port)
        proxy.faults.unanswered = TXN
        registering = asyncio.create_task(view.register(service()))
        lease_of = view.members.picture.lease_of
        await until(lambda: lease_of("engine"), "it was made")
        registering.cancel()
        await until(lambda: view.names and not lease_of("engine"), "its lease is revoked")
        proxy.faults.unanswered = ""
        view.table.renew("engine")
        await until(lambda: lease_of("engine"), "another lease")

    play(scenario)


def test_a_service_whose_sender_left_while_it_registered_again_keeps_its_lease(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        view = await world.view(proxy.port)
        await view.register(service())
        lease_of = view.members.picture.lease_of
        first = lease_of("engine")
        proxy.faults.unanswered = TXN
        registering = asyncio.create_task(view.register(service()))
        await until(lambda: lease_of("engine") != first, "it was made")
        second = lease_of("engine")
        registering.cancel()
        proxy.faults.unanswered = ""
        await view.register(service("later"))
        assert REVOKE not in proxy.passed
        assert lease_of("engine") == second

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
        # A connection may be dead and show no end: the watch that did not tell is given up.
        await until(lambda: proxy.passed[WATCH] == 2, "another watch")

    play(scenario)


def test_a_watch_that_a_whole_read_has_overtaken_is_kept(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        east = await world.view()
        west = await world.view(proxy.port, pace=replace(CALM, compare=0.5, answer=30))
        await lose_a_registration(world, proxy, east, service("e0"))
        await until(lambda: west.names == ["e0"], "read before it is told")
        await east.register(service("e1"))
        await until(lambda: west.names == ["e0", "e1"], "the watch tells")
        await lose_a_registration(world, proxy, east, service("e2"))
        await until(lambda: west.names == ["e0", "e1", "e2"], "the next whole read")
        assert proxy.passed[WATCH] == 1

    play(scenario)


def test_the_watch_is_left_as_soon_as_a_write_finds_its_member_silent(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        east = await world.view()
        member = world.etcd.members[0].port
        west = await world.view(proxy.port, member, pace=replace(CALM, check=3600))
        await lose_a_registration(world, proxy, east, service("e0"))
        assert west.names == []
        proxy.faults.hold = GRANT
        await west.register(service("e1"))
        await until(lambda: west.names == ["e0", "e1"], "read anew")

    play(scenario)


def test_a_check_waits_less_long_than_other_calls(
    play: Play, service: MakeService, proxy: EtcdProxy
) -> None:
    async def scenario(world: World) -> None:
        east = await world.view()
        member = world.etcd.members[0].port
        west = await world.view(proxy.port, member, pace=replace(CALM, answer=0.1))
        west.members._client._seconds = 3600
        await lose_a_registration(world, proxy, east, service("e0"))
        proxy.faults.hold = RANGE
        await until(lambda: west.names == ["e0"], "read from the other member")

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
