"""Several registries' insides in one process, on one real member of etcd."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from infinilm_registry import commands
from infinilm_registry.entry import LeaseTerms
from infinilm_registry.etcd.membership import EtcdMembership
from infinilm_registry.etcd.place import Place
from infinilm_registry.etcd.revision import SharedWatch
from infinilm_registry.etcd.sync import Pace
from infinilm_registry.service import ANYBODY, Sender, Service
from infinilm_registry.table import ServiceTable
from rig.etcd_cluster import Cluster

CALM = Pace(check=0.1, compare=3600, stale_after=60, retry=0.05)


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
async def running(view: View) -> AsyncIterator[View]:
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
Play = Callable[[Scenario], None]
