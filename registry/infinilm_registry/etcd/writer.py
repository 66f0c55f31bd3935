"""Changes registrations: each change is one transaction, made only if nothing came between."""

import asyncio
import logging
from collections.abc import Sequence

from infinilm_registry.etcd import wire
from infinilm_registry.etcd.client import EtcdClient, EtcdUnavailableError
from infinilm_registry.etcd.leases import LeaseKeeper
from infinilm_registry.etcd.picture import Picture, encode
from infinilm_registry.etcd.wire import Change, Json, KeyValue
from infinilm_registry.service import Service

LOG = logging.getLogger(__name__)
_PAUSE_SECONDS = 0.1


class Writer:
    """Writes; what etcd answers goes into the picture at once."""

    def __init__(self, client: EtcdClient, picture: Picture, leases: LeaseKeeper) -> None:
        self._client = client
        self._picture = picture
        self._leases = leases

    async def put(self, service: Service) -> bool:
        """Store a registration in place of the one we know, with a new lease.

        False if there is another one by now; the picture then has it.
        """
        known, value = self._picture.stored(service.name), encode(service)
        while not await self._try_put(service, value, known):
            stored = self._picture.stored(service.name)
            if stored is not None and stored != known and stored.value == value:
                self._leases.heard(service.name)  # it is ours, but its lease was revoked
                return True
            if stored != known:
                return False
        return True

    async def _try_put(self, service: Service, value: bytes, known: KeyValue | None) -> bool:
        """Whether it was stored now; if not, the picture then has what is stored instead."""
        place, lease = self._picture.place, await self._leases.grant(service)
        service_key, alive_key = place.service_key(service.name), place.alive_key(service.name)
        requests = [wire.put(service_key, value), wire.put(alive_key, b"", lease)]
        try:
            answer = await self._transact([_unchanged(service_key, known)], requests)
            if answer is None:
                # A member that was paused may carry the request out much later, when somebody has
                # removed the service. Without its lease, it fails then.
                await self._leases.revoke(lease)
        except asyncio.CancelledError:  # the sender has gone, or its time is over
            if known is None:  # the same; else the condition on its revision sees to it
                self._leases.revoke_soon(lease)
            raise
        if answer and answer.get("succeeded"):
            at = wire.revision_of(answer)
            created = known.create_revision if known else at
            stored = KeyValue(service_key, value, at, created)
            alive = KeyValue(alive_key, b"", at, at, lease)
            self._picture.take([Change(service_key, at, stored), Change(alive_key, at, alive)])
            return True
        await self.read(service.name)
        return False

    async def remove(self, name: str, *, only_silent: bool = False) -> bool:
        """Take out the registration that we know; False if there is another one, or none, by now.

        `only_silent`: also false if somebody has heard of it.
        """
        place, known = self._picture.place, self._picture.stored(name)
        service_key, alive_key = place.service_key(name), place.alive_key(name)
        conditions = [_unchanged(service_key, known)]
        if only_silent:
            conditions.append(wire.unchanged(alive_key, 0))
        while True:
            answer = await self._transact(
                conditions, [wire.delete(service_key), wire.delete(alive_key)]
            )
            if answer and answer.get("succeeded"):
                at = wire.revision_of(answer)
                self._picture.take([Change(service_key, at, None), Change(alive_key, at, None)])
                return True
            await self.read(name)
            stored = self._picture.stored(name)
            if answer is None and (not stored or not _same_life(stored, known)):
                return True  # by our request, or by another; what we meant is gone
            if answer or stored != known:
                return False

    async def read(self, name: str) -> None:
        """Have the picture say what etcd holds of a service now."""
        place = self._picture.place
        keys = (place.service_key(name), place.alive_key(name))
        answer = await self._client.call("/kv/txn", {"success": [wire.get(key) for key in keys]})
        at = wire.revision_of(answer)
        changes = []
        for key, response in zip(keys, answer["responses"], strict=True):
            found = wire.read_keys(response["response_range"])
            now = found[0] if found else None
            changes.append(Change(key, now.mod_revision if now else at, now))
        self._picture.take(changes)

    async def _transact(self, conditions: Sequence[Json], requests: Sequence[Json]) -> Json | None:
        """The answer; None where it is not known whether it was carried out."""
        body = {"compare": conditions, "success": requests}
        try:
            return await self._client.call_once("/kv/txn", body)
        except EtcdUnavailableError as error:
            LOG.info("a write may or may not have been made reason=%r", str(error))
            await asyncio.sleep(_PAUSE_SECONDS)
            return None


def _unchanged(key: str, known: KeyValue | None) -> Json:
    return wire.unchanged(key, known.mod_revision if known else 0)


def _same_life(stored: KeyValue, known: KeyValue | None) -> bool:
    """Whether it is still the key that was there, though perhaps with another value."""
    return known is not None and stored.create_revision == known.create_revision
