"""The services that are known now. One writer: the event loop; time comes from a given clock."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from infinilm_registry.entry import Entry, Lease, LeaseTerms, Liveness, ProbeRecord, ProbeResult
from infinilm_registry.heartbeats import HeartbeatLedger, Survey, survey
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
        self.expired = 0  # how often a service was given up
        self._watch = watch
        self._clock = clock
        self._ledger = HeartbeatLedger()
        self._entries: dict[str, Entry] = {}
        self._next_check = _NEVER
        self._preserving = False  # at the last check that found somebody silent
        self.stale = False  # as a whole: it may lack what others know, so nobody is given up
        self.on_renewal: Callable[[str], None] = _nothing  # told of signs of life that we get

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
        fresh = Entry(service, lease, time.time())
        if old and same:
            fresh = replace(fresh, probe=old.probe, liveness=self._after_sign_of_life(old))
        self._entries[service.name] = fresh
        self._count_beat(service, now, anew=not same)
        self._next_check = min(self._next_check, lease.expires_at)

    def renew(self, name: str) -> None:
        """A sign of life."""
        now, entry = self._clock(), self._entries[name]
        lease = self.terms.grant(entry.service, now)
        # Back from silence: what was missed meanwhile says nothing about the network now.
        self._count_beat(entry.service, now, anew=entry.liveness is not Liveness.FRESH)
        renewed = replace(entry, lease=lease, last_heartbeat=time.time())
        self._next_check = min(self._next_check, lease.expires_at)
        self._replace(replace(renewed, liveness=self._after_sign_of_life(entry)))
        self.on_renewal(name)

    def hear_elsewhere(self, names: Iterable[str]) -> None:
        """Others who share our store have heard these, within the time of their leases there."""
        now, today = self._clock(), time.time()
        for name in names:
            if entry := self._entries.get(name):
                self._count_beat(entry.service, now, anew=entry.liveness is not Liveness.FRESH)
                lease = self.terms.grant(entry.service, now)
                self._next_check = min(self._next_check, lease.expires_at)
                at = max(entry.last_heartbeat, today - self.terms.shared_ttl(entry.service))
                alive = self._after_sign_of_life(entry)
                self._replace(replace(entry, lease=lease, last_heartbeat=at, liveness=alive))

    def lapse(self, name: str) -> None:
        """Nobody who shares our store has heard it for the time of its lease there."""
        entry, now = self._entries.get(name), self._clock()
        if entry is None or self.stale:
            return
        full = self.terms.grant(entry.service, now)
        spent = min(full.ttl, self.terms.shared_ttl(entry.service))
        lease = Lease(full.ttl, full.expires_at - spent, full.removable_at - spent)
        self._ledger.silence(name)
        self._next_check = min(self._next_check, lease.expires_at)
        self._replace(replace(entry, lease=lease))

    def set_stale(self, *, stale: bool) -> None:
        """Say that all here may be out of date, or is no more: then everything has a full lease."""
        if self.stale == stale:
            return
        self.stale = stale
        self.version += 1
        self._next_check = self._clock()
        if not stale:
            for entry in self._living():
                lease = self.terms.grant(entry.service, self._clock())
                liveness = self._after_sign_of_life(entry)
                self._replace(replace(entry, lease=lease, liveness=liveness))
        self._watch.advance()

    def _count_beat(self, service: Service, now: float, *, anew: bool) -> None:
        if anew:
            ttl = self.terms.ttl(service)
            self._ledger.start(service.name, ttl, service.heartbeat_interval, now)
        self._ledger.beat(service.name, now)

    def record_probe(self, service: Service, result: ProbeResult) -> None:
        """A probe's result; void if `service` has been replaced since the probe began."""
        entry = self._entries.get(service.name)
        if entry is None or entry.service is not service:
            return
        probe = _before(entry, result).after(result)
        if probe.down != entry.probe.down:
            LOG.warning("probes turned name=%s down=%s", service.name, probe.down)
        now, liveness = self._clock(), entry.liveness
        if probe.unanswered or probe.dead:
            self._next_check = now
        elif entry.probe.unanswered and entry.lease.expires_at > now:
            liveness = Liveness.FRESH
        self._replace(replace(entry, probe=probe, liveness=liveness))

    def refresh(self) -> None:
        """Let time pass: mark what is silent. Cheap until the next lease runs out."""
        now = self._clock()
        if now < self._next_check:
            return
        if self.stale:
            self._mark(self._living(), Liveness.STALE)
            self._next_check = now + _RECHECK_SECONDS
            return
        preserving = self.survey().preserving
        if self._preserving and not preserving:
            self._start_stale_anew(now)
        self._preserving = preserving
        silent = [entry for entry in self._living() if _is_silent(entry, now)]
        kept = [entry for entry in silent if preserving and not entry.probe.dead]
        given_up = [entry for entry in silent if not preserving or entry.probe.dead]
        self._mark(kept, Liveness.STALE)
        self._mark(given_up, Liveness.EXPIRED)
        self._next_check = self._earliest_check(now)

    def _start_stale_anew(self, now: float) -> None:
        """The trouble is over: all get a full lease to be heard again, as after a restart.

        Those that are heard again already were stale for their probes alone, which spoke of it.
        """
        for entry in list(self._entries.values()):
            if entry.liveness is Liveness.STALE:
                heard = self._ledger.share(entry.service.name, now) > 0
                lease = self.terms.grant(entry.service, now)
                probe = ProbeRecord() if entry.probe.unanswered else entry.probe
                liveness = Liveness.FRESH if heard else Liveness.STALE
                self._replace(replace(entry, lease=lease, probe=probe, liveness=liveness))

    def _mark(self, entries: Iterable[Entry], liveness: Liveness) -> None:
        turned = [entry for entry in entries if entry.liveness is not liveness]
        for entry in turned:
            self._replace(replace(entry, liveness=liveness))
        self.expired += len(turned) if liveness is Liveness.EXPIRED else 0
        if turned:
            names = ",".join(entry.service.name for entry in turned[:_MOST_LOGGED])
            LOG.warning(
                "services silent marked=%s count=%d names=%s", liveness.value, len(turned), names
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
        """Given up and silent for so long that they can go; none while many are silent."""
        self.refresh()
        if self.stale or self.survey().preserving:
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

    def survey(self) -> Survey:
        """What is heard of those not yet given up.

        Those given up count no more: otherwise three dead engines, one after the other, would
        make a small fleet look like a broken network for ever.
        """
        now = self._clock()
        return survey((entry.service.sender, self._share(entry, now)) for entry in self._living())

    def _living(self) -> list[Entry]:
        return [e for e in self._entries.values() if e.liveness is not Liveness.EXPIRED]

    def _share(self, entry: Entry, now: float) -> float:
        return 0.0 if entry.probe.falling_silent else self._ledger.share(entry.service.name, now)

    def _after_sign_of_life(self, entry: Entry) -> Liveness:
        # It reaches us, but do we reach it? Unanswered probes stay judged until one is answered.
        if entry.probe.unanswered:
            return entry.liveness
        return Liveness.STALE if self.stale else Liveness.FRESH

    def _replace(self, entry: Entry) -> None:
        old = self._entries[entry.service.name]
        self._entries[entry.service.name] = entry
        self.version += 1
        if old.watched != entry.watched:
            self._watch.advance()


def _is_silent(entry: Entry, now: float) -> bool:
    """Whether it has to be judged: no heartbeat for a whole lease, or no probe that came back."""
    overdue = entry.lease.expires_at <= now or entry.probe.unanswered
    return overdue or (entry.liveness is Liveness.STALE and entry.probe.dead)


def _before(entry: Entry, result: ProbeResult) -> ProbeRecord:
    """The record that `result` adds to: the silence of a stale service spoke of the network."""
    lifted = entry.probe.unanswered and result is not ProbeResult.SILENT
    return ProbeRecord() if lifted and entry.liveness is Liveness.STALE else entry.probe


def _nothing(_: str) -> None:
    pass
