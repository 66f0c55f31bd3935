"""Two memberships in one process, on one real member of etcd."""

import asyncio
from collections.abc import Callable

import pytest

from infinilm_registry import commands
from infinilm_registry.entry import LeaseTerms, Liveness
from infinilm_registry.errors import (
    NotRegisteredError,
    RegistryFullError,
)
from infinilm_registry.etcd.place import Place
from infinilm_registry.service import Service
from rig.etcd_cluster import text
from rig.etcd_views import Play, World, until

MakeService = Callable[..., Service]


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


def test_many_at_once_on_one_name_are_as_many_generations(play: Play, service: MakeService) -> None:
    async def scenario(world: World) -> None:
        views = [await world.view(), await world.view()]
        tasks = [views[n % 2].register(service(instance_id=f"i{n}")) for n in range(20)]
        generations = sorted([stored.generation for stored in await asyncio.gather(*tasks)])
        assert generations == list(range(generations[0], generations[0] + 20))

    play(scenario)


def test_a_full_registry_is_full_for_all(play: Play, service: MakeService) -> None:
    async def scenario(world: World) -> None:
        east, west = await world.view(), await world.view()
        await east.register(service("e0"))
        await until(lambda: west.names == ["e0"], "seen")
        with pytest.raises(RegistryFullError):
            await west.members.submit(commands.register(service("e1"), 1))

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


def test_services_that_are_gone_are_forgotten(play: Play, service: MakeService) -> None:
    async def scenario(world: World) -> None:
        view = await world.view()
        await view.register(service())
        view.table.renew("engine")
        for number in range(1000):  # as Pods that each have a name of their own
            name = f"pod-{number}"
            view.table.publish({name: service(name)})
            view.table.renew(name)
            view.table.publish({name: None})
        heard = view.members._leases._heard
        assert "engine" in heard
        assert len(heard) < 100

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


@pytest.mark.parametrize("garbage", ['{"name": "engine"}', '{"generation": 1e999}'])
def test_garbage_in_etcd_is_left_out_and_can_be_replaced(
    play: Play, service: MakeService, garbage: str
) -> None:
    async def scenario(world: World) -> None:
        key = Place(("",), world.cluster).service_key("engine")
        put = {"key": text(key), "value": text(garbage)}
        await asyncio.to_thread(world.etcd.call, "/kv/put", **put)
        view = await world.view()
        assert view.names == []
        await view.register(service())
        assert view.names == ["engine"]
        await asyncio.to_thread(world.etcd.call, "/kv/put", **put)
        await until(lambda: view.names == [], "left out again")

    play(scenario)
