"""Turns what etcd holds into the table that requests are answered from."""

import json
import logging
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from infinilm_registry.addresses import Networks
from infinilm_registry.entry import Entry, Liveness
from infinilm_registry.errors import InvalidRequestError
from infinilm_registry.etcd.mirror import Mirror
from infinilm_registry.etcd.place import Place
from infinilm_registry.etcd.wire import Change, KeyValue
from infinilm_registry.membership import log_changes
from infinilm_registry.service import Service
from infinilm_registry.table import ServiceTable
from infinilm_registry.validation import parse_json, parse_registration

LOG = logging.getLogger(__name__)
OPINION_BITS = 20


def encode(service: Service) -> bytes:
    """A registration as the value of its key."""
    return json.dumps(service.as_record(), separators=(",", ":")).encode()


def decode(value: bytes, name: str, allowed: Networks) -> Service:
    """The registration of `name` in a value; ValueError with the reason if there is no usable one.

    Others may write into etcd as well, so it is checked like one that comes over HTTP.
    """
    try:
        record: Any = parse_json(value)
        generation = int(record.get("generation", 0))
        service = replace(parse_registration(record, allowed), generation=generation)
    except (ValueError, TypeError, AttributeError, InvalidRequestError) as error:
        raise ValueError(str(error)) from None
    if service.name != name:
        raise ValueError(f"it is a registration of {service.name!r}")
    return service


class Picture:
    """The one who writes the table. `changed_at`: the revision at which the list changed last."""

    def __init__(self, place: Place, table: ServiceTable, allowed: Networks) -> None:
        self.place = place
        self.table = table
        self.changed_at = 0
        self._repaired = False  # by a whole read, at that very revision
        self._mirror = Mirror()
        self._allowed = allowed

    @property
    def seen(self) -> int:
        """The latest revision that a whole read or the watch has told of."""
        return self._mirror.seen

    def stored(self, name: str) -> KeyValue | None:
        """The registration of that name as it is stored."""
        return self._mirror.get(self.place.service_key(name))

    def lease_of(self, name: str) -> int | None:
        """The lease that says that somebody heard of this service lately."""
        alive = self._mirror.get(self.place.alive_key(name))
        return alive.lease if alive else None

    def hold(self) -> None:
        """Have all whose lease is held count as heard."""
        names = [entry.service.name for entry in self.table.entries()]
        self.table.hear_elsewhere([name for name in names if self.lease_of(name) is not None])

    def take(self, changes: Iterable[Change]) -> None:
        """Take over answers to reads and writes of our own."""
        self._show(self._mirror.take(changes))

    def take_watched(self, changes: Iterable[Change], revision: int) -> None:
        """Take over what the watch tells."""
        self._show(self._mirror.take_watched(changes, revision))

    def take_all(self, keys: Iterable[KeyValue], revision: int, asked: int) -> int:
        """Take over a whole read that began at `asked`; how many registrations differed."""
        if revision < asked:
            self.changed_at = 0  # an etcd that has begun anew counts from the start
        before = self.changed_at
        differing = self._show(self._mirror.take_all(keys, revision, asked))
        self._repaired = differing > 0 and before == self.changed_at
        return differing

    def opinion(self) -> int:
        """What this registry thinks of services beyond what etcd says, as a number; 0: nothing."""
        opinions = [_opinion(entry) for entry in self.table.entries() if _deviates(entry)]
        if not opinions and not self.table.stale and not self._repaired:
            return 0
        text = repr((sorted(opinions), self.table.stale, self._repaired))
        return zlib.crc32(text.encode()) % ((1 << OPINION_BITS) - 1) + 1

    def _show(self, changes: list[Change]) -> int:
        """Bring changes into the table; how many of them are of registrations."""
        # A whole read comes in the order of names; the list is in the order of registration.
        changes.sort(key=lambda change: change.now.create_revision if change.now else 0)
        services: dict[str, Service | None] = {}
        for change in changes:
            if (name := self.place.named_by_service_key(change.key)) is not None:
                services[name] = self._usable(change, name)
                self.changed_at = max(self.changed_at, change.revision)
                self._repaired = False
        if services:
            self.table.publish(services)
            log_changes(services)
        for change in changes:
            if (name := self.place.named_by_alive_key(change.key)) is not None:
                self._show_life(name)
        return len(services)

    def _usable(self, change: Change, name: str) -> Service | None:
        if change.now is None:
            return None
        try:
            return decode(change.now.value, name, self._allowed)
        except ValueError as error:
            LOG.warning("stored registration left out key=%s reason=%r", change.key, str(error))
            return None

    def _show_life(self, name: str) -> None:
        if self.lease_of(name) is None:
            self.table.lapse(name)
        else:
            self.table.hear_elsewhere([name])


def _deviates(entry: Entry) -> bool:
    """Whether we say something else of it than that it is as registered, and alive."""
    registered = entry.service.status == "running"
    return entry.liveness is not Liveness.FRESH or entry.is_healthy != registered


def _opinion(entry: Entry) -> tuple[str, str, bool]:
    return (entry.service.name, entry.liveness.value, entry.is_healthy)
