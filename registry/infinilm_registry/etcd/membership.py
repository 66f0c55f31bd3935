"""The membership kept in etcd: any number of registries act as one (D12, R31, R32).

Commands are tried on what we know; what they change is written on condition that it was the latest
word, else they are tried again. So the rules of instances and generations hold across registries.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infinilm_registry.addresses import Networks
from infinilm_registry.commands import Command, Draft
from infinilm_registry.errors import NotRegisteredError, RegistryError, StoreError
from infinilm_registry.etcd.client import EtcdClient, EtcdError, EtcdUnavailableError
from infinilm_registry.etcd.leases import LeaseKeeper
from infinilm_registry.etcd.picture import Picture
from infinilm_registry.etcd.place import Place
from infinilm_registry.etcd.sync import LostTrackError, Pace, Sync
from infinilm_registry.etcd.writer import Writer
from infinilm_registry.service import Service
from infinilm_registry.table import ServiceTable

LOG = logging.getLogger(__name__)
_WRITE_SECONDS = 4.5  # a babysitter waits 5 s for an answer
_FIRST_READ_SECONDS = 5.0
_RETRY_AFTER = 2.0


class EtcdMembership:
    """Composes the parts; a table that is stale is one that etcd cannot be asked about."""

    def __init__(
        self, place: Place, table: ServiceTable, allowed: Networks, pace: Pace | None = None
    ) -> None:
        self.picture = Picture(place, table, allowed)
        self._table = table
        self._client = EtcdClient(place.endpoints)
        self._leases = LeaseKeeper(self._client, self.picture)
        self._sync = Sync(self._client, self.picture, pace or Pace(), self._leases.renew_heard)
        self._writer = Writer(self._client, self.picture, self._leases)
        self._closed = asyncio.Event()
        table.on_renewal = self._leases.heard

    @property
    def degraded_reason(self) -> str | None:
        """Why etcd cannot be asked."""
        return f"etcd does not answer: {self._sync.problem}" if self._table.stale else None

    @property
    def down(self) -> bool:
        """Whether etcd cannot be asked."""
        return self._table.stale

    @property
    def known(self) -> bool:
        """Whether etcd has ever been read."""
        return self._sync.known

    async def load(self) -> None:
        """Read what etcd holds; without an answer in time, go on and read it when it is there."""
        try:
            async with asyncio.timeout(_FIRST_READ_SECONDS):
                await self._sync.read_all()
        except (EtcdUnavailableError, EtcdError, LostTrackError, TimeoutError) as error:
            self._sync.problem = str(error) or "no answer in time"
            self._table.set_stale(stale=True)

    async def submit(self, command: Command) -> Service:
        """Run `command`; returns when its change is in etcd, and visible here.

        Raises:
            RegistryError: refused, or (StoreError) not known to be stored.
        """
        async with self._asking_etcd():
            return await self._run(command)

    async def confirm(self, name: str) -> None:
        """Have the table say of `name` what etcd says.

        Raises:
            StoreError: etcd cannot be asked.
        """
        async with self._asking_etcd():
            await self._writer.read(name)

    async def remove_silent(self, service: Service) -> None:
        """Take `service` out, if it is still the registered one and nobody has heard of it.

        Raises:
            RegistryError: it is not, or (StoreError) it could not be.
        """
        entry = self._table.find(service.name)
        if entry is None or entry.service is not service or not self._table.is_silent(service):
            raise NotRegisteredError(service.name)
        async with self._asking_etcd():
            if not await self._writer.remove(service.name, only_silent=True):
                raise NotRegisteredError(service.name)

    async def run(self) -> None:
        """Work until `close`."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._sync.run()), group.create_task(self._leases.run())]
            await self._closed.wait()
            for task in tasks:
                task.cancel()

    def close(self) -> None:
        """Let `run` end."""
        self._closed.set()

    async def release(self) -> None:
        """Close the connections to etcd."""
        await self._client.close()

    async def _run(self, command: Command) -> Service:
        confirmed = False
        while True:
            draft = Draft(self._registered, len(self._table))
            try:
                service = command(draft)
            except RegistryError:
                if confirmed:
                    raise
                # Another registry may know better by now.
                for name in draft.asked:
                    await self._writer.read(name)
                confirmed = True
                continue
            if await self._write(draft):
                return service
            confirmed = True

    async def _write(self, draft: Draft) -> bool:
        ((name, service),) = draft.changes.items()  # a command changes one service
        if service is None:
            return await self._writer.remove(name)
        return await self._writer.put(service)

    def _registered(self, name: str) -> Service | None:
        entry = self._table.find(name)
        return entry.service if entry else None

    @asynccontextmanager
    async def _asking_etcd(self) -> AsyncIterator[None]:
        """Fail at once while etcd is known to be away, else within a limit, as a StoreError."""
        if self._table.stale:
            raise StoreError(f"The registry cannot store the change: {self.degraded_reason}", 2)
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                yield
        except (EtcdUnavailableError, EtcdError) as error:
            raise StoreError(f"etcd does not answer: {error}", _RETRY_AFTER) from None
        except TimeoutError:
            reason = "etcd did not answer in time; the change may or may not have been made"
            raise StoreError(reason, _RETRY_AFTER) from None
