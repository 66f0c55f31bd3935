"""The services that are known now. One writer: the event loop; time comes from a given clock."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from infinilm_registry.entry import Entry, LeaseTerms, Liveness, ProbeRecord
from infinilm_registry.heartbeats import FEWEST_SERVICES, THRESHOLD, HeartbeatLedger
from infinilm_registry.service import Service
from infinilm_registry.watch import Watch

LOG = logging.getLogger(__name__)
Clock = Callable[[], float]
_NEVER = float("inf")
_RECHECK_SECONDS = 1.0
_MOST_LOGGED = 10


class ServiceTable:
    """Entries by name. Every change that a watcher should see advances the watch."""

    def __init__(self, terms: LeaseTerms, watch: Watch, clock: Clock = time.monotonic) -> None:
        self.terms = terms
        self.version = 0  # moves with everything, also with what does not move the revision
        self._watch = watch
        self._clock = clock
        self._ledger = HeartbeatLedger()
        self._entries: dict[str, Entry] = {}
        self._next_check = _NEVER

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str) -> Entry | None:
        """The entry as of now."""
        self.refresh()
        return self._entries.get(name)

    def entries(self) -> list[Entry]:
        """All entries as of now, in order of registration."""
        self.refresh()
        return list(self._entries.values())

    def publish(self, changes: Mapping[str, Service | None]) -> None:
        """Take over what is on disk: None removes, a service is added or updated (and renewed)."""
        for name, service in changes.items():
            if service is None:
                self._entries.pop(name, None)
                self._ledger.forget(name)
            else:
                self._enter(service)
        if changes:
            self.version += 1
            self._watch.advance()

    def _enter(self, service: Service) -> None:
        now, old = self._clock(), self._entries.get(service.name)
        lease = self.terms.grant(service, now)
        same = old is not None and old.service.generation == service.generation
        probe = old.probe if old and same else ProbeRecord()
        self._entries[service.name] = Entry(service, lease, time.time(), probe)
        self._count_beat(service, now, anew=not same)
        self._next_check = min(self._next_check, lease.expires_at)

    def renew(self, name: str) -> None:
        """A sign of life."""
        now, entry = self._clock(), self._entries[name]
        lease = self.terms.grant(entry.service, now)
        # Back from silence: what was missed meanwhile says nothing about the network now.
        self._count_beat(entry.service, now, anew=entry.liveness is not Liveness.FRESH)
        fresh = replace(entry, lease=lease, last_heartbeat=time.time(), liveness=Liveness.FRESH)
        self._next_check = min(self._next_check, lease.expires_at)
        self._replace(fresh)

    def _count_beat(self, service: Service, now: float, *, anew: bool) -> None:
        if anew:
            ttl = self.terms.ttl(service)
            self._ledger.start(service.name, ttl, service.heartbeat_interval, now)
        self._ledger.beat(service.name, now)

    def record_probe(self, service: Service, *, healthy: bool) -> None:
        """A probe's result; void if `service` has been replaced since the probe began."""
        entry = self._entries.get(service.name)
        if entry is None or entry.service is not service:
            return
        probe = entry.probe.after(healthy=healthy)
        if probe.down != entry.probe.down:
            LOG.warning("probes turned name=%s down=%s", service.name, probe.down)
        self._replace(replace(entry, probe=probe))

    def refresh(self) -> None:
        """Let time pass: mark what is overdue. Cheap until the next lease runs out."""
        now = self._clock()
        if now < self._next_check:
            return
        overdue = [
            entry
            for entry in self._entries.values()
            if entry.lease.expires_at <= now and entry.liveness is not Liveness.EXPIRED
        ]
        if overdue:
            self._mark(overdue, Liveness.STALE if self.preserving() else Liveness.EXPIRED)
        self._next_check = self._earliest_check(now)

    def _mark(self, overdue: Iterable[Entry], liveness: Liveness) -> None:
        turned = [entry for entry in overdue if entry.liveness is not liveness]
        for entry in turned:
            self._replace(replace(entry, liveness=liveness))
        if turned:
            names = ",".join(entry.service.name for entry in turned[:_MOST_LOGGED])
            LOG.warning(
                "heartbeats missing marked=%s count=%d names=%s", liveness.value, len(turned), names
            )

    def _earliest_check(self, now: float) -> float:
        times = [_NEVER]
        for entry in self._entries.values():
            if entry.liveness is Liveness.FRESH:
                times.append(entry.lease.expires_at)
            elif entry.liveness is Liveness.STALE:
                times.append(now + min(_RECHECK_SECONDS, entry.lease.ttl / 10))
        return min(times)

    def removable(self) -> list[Service]:
        """Silent for so long that they can go; none while heartbeats fail in masses."""
        self.refresh()
        if self.preserving():
            return []
        return [entry.service for entry in self._entries.values() if self.is_silent(entry.service)]

    def is_silent(self, service: Service) -> bool:
        """Whether this very registration has expired and its time until removal is over."""
        entry = self._entries.get(service.name)
        return (
            entry is not None
            and entry.service is service
            and entry.liveness is Liveness.EXPIRED
            and entry.lease.removable_at <= self._clock()
        )

    def heartbeat_share(self) -> float:
        """Received of expected heartbeats, over those not yet given up."""
        return self._ledger.received_share(self._living(), self._clock())

    def preserving(self) -> bool:
        """Whether so many heartbeats are missing that nobody is given up."""
        living = self._living()
        share = self._ledger.received_share(living, self._clock())
        return len(living) >= FEWEST_SERVICES and share < THRESHOLD

    def _living(self) -> list[str]:
        # Those given up count no more: otherwise three dead engines, one after the
        # other, would make a small fleet look like a broken network for ever.
        entries = self._entries.items()
        return [name for name, entry in entries if entry.liveness is not Liveness.EXPIRED]

    def _replace(self, entry: Entry) -> None:
        old = self._entries[entry.service.name]
        self._entries[entry.service.name] = entry
        self.version += 1
        if old.watched != entry.watched:
            self._watch.advance()
