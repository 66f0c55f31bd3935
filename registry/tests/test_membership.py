import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from infinilm_registry import commands
from infinilm_registry.app import StartError, _open_membership
from infinilm_registry.config import RegistryConfig
from infinilm_registry.entry import LeaseTerms
from infinilm_registry.errors import (
    InstanceMismatchError,
    NotRegisteredError,
    RegistryFullError,
    StoreError,
)
from infinilm_registry.membership import LocalMembership
from infinilm_registry.service import ANYBODY, Sender, Service
from infinilm_registry.store import MemoryStore, SqliteStore
from infinilm_registry.table import ServiceTable
from infinilm_registry.watch import Watch

MakeService = Callable[..., Service]


class RecordingStore(MemoryStore):
    """Remembers its transactions; breaks when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[dict[str, Service | None]] = []
        self.broken = False

    def write(self, changes: Mapping[str, Service | None]) -> None:
        if self.broken:
            raise StoreError("disk I/O error")
        self.writes.append(dict(changes))


class World:
    def __init__(self) -> None:
        self.store = RecordingStore()
        self.table = ServiceTable(LeaseTerms(), Watch(0))
        self.members = LocalMembership(self.table, self.store)

    def names(self) -> list[str]:
        return [entry.service.name for entry in self.table.entries()]


def play(scenario: Callable[[World], Awaitable[None]]) -> World:
    async def run() -> World:
        world = World()
        await world.members.load(())
        writer = asyncio.create_task(world.members.run())
        try:
            await scenario(world)
        finally:
            world.members.close()
            await writer
            await world.members.release()
        return world

    return asyncio.run(run())


def test_commands_that_gather_are_one_transaction(service: MakeService) -> None:
    async def scenario(world: World) -> None:
        batch = [commands.register(service(f"e{n}"), 1000) for n in range(500)]
        await asyncio.gather(*map(world.members.submit, batch))

    world = play(scenario)
    assert len(world.names()) == 500
    assert len(world.store.writes) <= 2


def test_a_late_removal_by_the_old_instance_meets_its_successor(service: MakeService) -> None:
    async def scenario(world: World) -> None:
        submit = world.members.submit
        first = await submit(commands.register(service(instance_id="old"), 10))
        # All in one batch: the removal is checked against what the batch has made so far.
        second, removal, change, heartbeat = await asyncio.gather(
            submit(commands.register(service(instance_id="new"), 10)),
            submit(commands.remove("engine", Sender("old"))),
            submit(commands.update("engine", {"weight": 5}, Sender("old"))),
            submit(commands.update("engine", {"status": "running"}, Sender("new"))),
            return_exceptions=True,
        )
        assert getattr(second, "generation", None) == first.generation + 1
        assert isinstance(removal, InstanceMismatchError)
        assert isinstance(change, InstanceMismatchError)
        assert isinstance(heartbeat, Service)

    world = play(scenario)
    entry = world.table.find("engine")
    assert entry
    assert (entry.service.instance_id, entry.service.weight) == ("new", 1)


def test_without_an_instance_id_everybody_may_remove(service: MakeService) -> None:
    async def scenario(world: World) -> None:
        await world.members.submit(commands.register(service(instance_id="x"), 10))
        await world.members.submit(commands.remove("engine", ANYBODY))
        with pytest.raises(NotRegisteredError):
            await world.members.submit(commands.remove("engine", ANYBODY))

    assert play(scenario).names() == []


def test_a_full_registry_still_takes_updates_and_replacements(service: MakeService) -> None:
    async def scenario(world: World) -> None:
        submit = world.members.submit
        answers = await asyncio.gather(
            *(submit(commands.register(service(f"e{n}"), 3)) for n in range(5)),
            submit(commands.register(service("e0", weight=9), 3)),
            submit(commands.remove("e1", ANYBODY)),
            submit(commands.register(service("e9"), 3)),
            return_exceptions=True,
        )
        refused = [isinstance(answer, RegistryFullError) for answer in answers]
        assert refused == [False] * 3 + [True] * 2 + [False] * 3

    assert sorted(play(scenario).names()) == ["e0", "e2", "e9"]


def test_what_the_store_refuses_is_not_acknowledged_and_not_visible(service: MakeService) -> None:
    async def scenario(world: World) -> None:
        submit = world.members.submit
        await submit(commands.register(service("kept"), 10))
        revision = world.table._watch.revision
        world.store.broken = True
        answers = await asyncio.gather(
            submit(commands.register(service("refused"), 10)),
            submit(commands.remove("kept", ANYBODY)),
            submit(commands.remove("unknown", ANYBODY)),
            return_exceptions=True,
        )
        refused, kept, unknown = answers
        assert isinstance(refused, StoreError)
        assert isinstance(kept, StoreError)
        assert isinstance(unknown, NotRegisteredError)
        assert world.table._watch.revision == revision
        world.store.broken = False
        await submit(commands.register(service("taken"), 10))

    assert play(scenario).names() == ["kept", "taken"]


def test_a_sender_that_leaves_does_not_stop_the_others(service: MakeService) -> None:
    async def scenario(world: World) -> None:
        gone = asyncio.create_task(world.members.submit(commands.register(service("gone"), 10)))
        await asyncio.sleep(0)
        gone.cancel()
        await world.members.submit(commands.register(service("here"), 10))

    assert play(scenario).names() == ["gone", "here"]


def test_clean_up_spares_who_has_spoken_meanwhile(service: MakeService) -> None:
    async def scenario(world: World) -> None:
        registered = await world.members.submit(commands.register(service(), 10))
        with pytest.raises(NotRegisteredError):
            await world.members.remove_silent(registered)

    assert play(scenario).names() == ["engine"]


def test_a_default_store_in_use_is_done_without_and_said(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite3"
    other = SqliteStore(path)
    other.open()

    async def scenario(*, chosen: bool) -> str | None:
        config = RegistryConfig(store=str(path), store_chosen=chosen)
        members = await _open_membership(config, ServiceTable(LeaseTerms(), Watch(0)))
        await members.release()
        return members.degraded_reason

    reason = asyncio.run(scenario(chosen=False))
    assert reason is not None
    assert "nothing is kept over a restart" in reason
    with pytest.raises(StartError, match="name another one with --store"):
        asyncio.run(scenario(chosen=True))
    other.close()
