"""Keeps the leases of services that beat here: a heartbeat renews its lease, or gets it a new one.

Heartbeats never wait for etcd: they are answered from memory, and their names go through here.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from infinilm_registry.etcd import wire
from infinilm_registry.etcd.client import EtcdClient, EtcdError, EtcdUnavailableError
from infinilm_registry.etcd.picture import Picture
from infinilm_registry.service import Service

LOG = logging.getLogger(__name__)
_AT_ONCE = 16
_SPARE_NAMES = 50  # names of gone services that are kept, beside one for each that is there


class LeaseKeeper:
    """One lease for each service; the key that it holds tells all registries that it was heard."""

    def __init__(
        self, client: EtcdClient, picture: Picture, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._picture = picture
        self._clock = clock
        self._heard: dict[str, float] = {}  # when a service was heard here last
        self._waiting: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._revoking: set[asyncio.Task[None]] = set()

    def heard(self, name: str) -> None:
        """A service was heard here: renew its lease soon."""
        table = self._picture.table
        if len(self._heard) > 2 * len(table) + _SPARE_NAMES:
            self._heard = {each: at for each, at in self._heard.items() if table.find(each)}
        self._heard[name] = self._clock()
        self._waiting[name] = None
        self._wake.set()

    def renew_heard(self) -> None:
        """Renew the leases of all that were heard here lately: they may have lapsed meanwhile."""
        now, table = self._clock(), self._picture.table
        for name, at in list(self._heard.items()):
            entry = table.find(name)
            if entry is None or now - at > table.terms.ttl(entry.service):
                del self._heard[name]
            else:
                self._waiting[name] = None
        self._wake.set()

    async def run(self) -> None:
        """Renew until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._work())

    async def grant(self, service: Service) -> int:
        """A new lease for a service; nothing hangs on it yet."""
        ttl = self._picture.table.terms.shared_ttl(service)
        return int((await self._client.call("/lease/grant", {"TTL": str(ttl)}))["ID"])

    async def revoke(self, lease: int) -> None:
        """End a lease now, so that no request that names it can be carried out any more."""
        with contextlib.suppress(EtcdError):  # there is none: so much the better
            await self._client.call("/lease/revoke", {"ID": str(lease)})

    def revoke_soon(self, lease: int) -> None:
        """The same for who cannot wait. If etcd is away, the lease ends when its time is over."""
        task = asyncio.create_task(self.revoke(lease))
        self._revoking.add(task)
        task.add_done_callback(self._revoked)

    def _revoked(self, task: asyncio.Task[None]) -> None:
        self._revoking.discard(task)
        if not task.cancelled() and (error := task.exception()):
            LOG.debug("lease not revoked reason=%r", str(error))

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            name = next(iter(self._waiting))
            del self._waiting[name]
            try:
                await self._renew(name)
            except (EtcdUnavailableError, EtcdError) as error:
                LOG.debug("lease not renewed name=%s reason=%r", name, str(error))

    async def _renew(self, name: str) -> None:
        if self._picture.table.stale:
            return  # `renew_heard` sees to it when etcd is back
        lease = self._picture.lease_of(name)
        if lease is None or not await self._keep(lease):
            await self._replace(name)

    async def _keep(self, lease: int) -> bool:
        """Whether the lease still lived; a keep-alive of a dead one is answered without a TTL."""
        return "TTL" in await self._client.call("/lease/keepalive", {"ID": str(lease)})

    async def _replace(self, name: str) -> None:
        """A new lease, if the service is still registered as we know it."""
        picture, entry = self._picture, self._picture.table.find(name)
        stored = picture.stored(name)
        if entry is None or stored is None:
            return
        lease, key = await self.grant(entry.service), picture.place.alive_key(name)
        answer = await self._client.call(
            "/kv/txn",
            {
                "compare": [wire.unchanged(stored.key, stored.mod_revision)],
                "success": [wire.put(key, b"", lease)],
            },
        )
        if answer.get("succeeded"):
            LOG.info("lease granted anew name=%s", name)
            at = wire.revision_of(answer)
            picture.take([wire.Change(key, at, wire.KeyValue(key, b"", at, at, lease))])
